"""ELMo (Peters et al. 2018). Each function is a run, as in experiments/bert.py.

`paper` has the sizes, rows and passes of the released model on a Wikipedia of byte pairs, because
the 1B Word Benchmark is not distributed. Deviations: AdamW instead of Adagrad with a rate of 0.2; a
full softmax. `tiny` reads the text of `experiments/gpt.py:tiny`.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import gpt
from experiments.lstm import STREAM
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.elmo import Elmo
from plm_jax.objectives.bilm import BiLM
from plm_jax.optim.adamw import AdamW

SAMPLED = 8_192 * 3 // 384  # of each row; the original draws 8,192 on each of three GPUs
WORDS = 768_648_884  # of the benchmark; 10 passes


def base(budget: Budget = "paper") -> Experiment:
  """The released model: 93.6 million parameters and the output, 10 passes."""
  experiment = tiny(budget)
  if budget != "paper":
    return experiment
  return replace(
    experiment,
    model=Elmo(),
    objectives=(BiLM(sampled=SAMPLED),),
    data=replace(gpt.PAPER_CORPUS, segments=STREAM, length=20),
    optim=AdamW(peak=1e-3, warmup=2_000, clip=10.0, decay=0.0),
    global_batch=384,
    steps=10 * WORDS // (384 * 20),
  )


def tiny(budget: Budget = "small") -> Experiment:
  """Two LSTMs of 256 units with projections of 64 in each direction, and 112 filters."""
  experiment = gpt.tiny(budget)
  model = Elmo(width=64, cell=256, filters=((1, 16), (2, 32), (3, 64)), longest=20)
  return replace(
    experiment,
    model=model,
    objectives=(BiLM(),),
    data=replace(experiment.data, segments=STREAM),
    optim=AdamW(peak=4e-3, warmup=experiment.optim.warmup, clip=10.0, decay=0.0),
  )
