"""LSTM language models (Zaremba et al. 2014), which carry their state from batch to batch. Each
function is a run, as in experiments/bert.py.

Text, vocabulary and batch are those of `experiments/gpt.py:tiny`, so that both models are measured
on the same held-out tokens. The paper's own text, the Penn Treebank, is not distributed.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import gpt
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.lstm import Lstm
from plm_jax.optim.adamw import AdamW


def tiny(budget: Budget = "small") -> Experiment:
  """An LSTM of 2 layers of 256. At `small`, it reads the tokens that the tiny GPT reads."""
  experiment = gpt.tiny(budget)
  segments = PackedDocuments(separate=False, ordered=True)
  optim = AdamW(peak=4e-3, warmup=experiment.optim.warmup, clip=1.0, decay=0.0)
  return replace(
    experiment,
    model=Lstm(width=256, tied=True),
    data=replace(experiment.data, segments=segments),
    optim=optim,
  )
