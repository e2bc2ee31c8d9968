"""A bidirectional LSTM, trained on a task from random parameters:

  python run_finetune.py --from=experiments/bilstm.py:tiny --task=tag --data=FOLDER

It has no pretraining objective, so there is nothing to do for run_pretrain.py. The vocabulary is
made from the task's training texts.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import gpt
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.bilstm import BiLstm
from plm_jax.optim.adamw import AdamW


def tiny(budget: Budget = "small") -> Experiment:
  """One layer of 128 units in each direction on token vectors of 128."""
  return replace(
    gpt.tiny(budget),
    model=BiLstm(width=256, embedding=128),
    objectives=(),
    optim=AdamW(peak=2e-3, warmup=0, decay=0.0),
    steps=0,
  )
