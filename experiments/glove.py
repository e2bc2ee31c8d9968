"""GloVe (Pennington et al. 2014): vectors from counts of words near each other. Each function is a run.

Defaults are those of the published code (stanfordnlp/GloVe 52f7dbc): window 15, x_max 100, alpha 0.75,
AdaGrad at 0.05 with accumulators that begin at 1. The first stage counts the whole text; it is kept
beside the prepared text, and one pass of the second stage reads every entry once.
"""

from __future__ import annotations

from plm_jax.data.cooccurrences import Cooccurrences
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import Words
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.compute import Compute
from plm_jax.models.glove import Glove
from plm_jax.objectives.cooccurrence import LogCounts
from plm_jax.optim.sgd import Adagrad

# (steps, rows per step, log, save). A row has 256 entries; `small` is about 15 passes over the
# 3.8 million entries of the installed text.
STEPS = {
  "smoke": (20, 64, 5, 10),
  "small": (3_500, 64, 100, 1_000),
  "paper": (1_000_000, 512, 1_000, 10_000),
}


def base(budget: Budget = "paper") -> Experiment:
  """GloVe with 300 dimensions; Table 2: 71.7% of the analogies with 6 billion tokens."""
  steps, rows, log, save = STEPS[budget]
  paper = budget == "paper"
  return Experiment(
    model=Glove(width=300 if paper else 100),
    objectives=(LogCounts(),),
    data=Corpus(
      tokenizer=Words(vocab_size=400_000 if paper else 30_000, min_count=5, drop_unknown=True),
      segments=Cooccurrences(window=10 if paper else 15),
      length=256,
    ),
    optim=Adagrad(updates=rows // 8),
    global_batch=rows,
    steps=steps,
    schedule=Intervals(log=log, save=save, evaluation_rows=256),
    compute=Compute(dtype="float32"),
  )


def tiny(budget: Budget = "small") -> Experiment:
  """GloVe of 100 dimensions on the installed text."""
  return base("small" if budget == "paper" else budget)
