"""word2vec (Mikolov et al. 2013): skip-gram and CBOW, negative sampling and hierarchical softmax. Each
function is a run, as in experiments/bert.py.

Defaults are those of the published code (tmikolov/word2vec 20c129a, word2vec.c): width 100, window 5,
5 negatives, sample 1e-3, 5 passes, learning rate 0.025 for skip-gram and 0.05 for CBOW.
"""

from __future__ import annotations

from dataclasses import replace

from plm_jax.data.kept_words import KeptWords
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import Words
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.compute import Compute
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.word2vec import CBOW, SkipGram
from plm_jax.optim.sgd import SGD

# (steps, log, save). A step has 16 rows of 1,024 kept words; `small` is about 5 passes over the
# installed text, and `paper` one over a thousand million words.
STEPS = {"smoke": (20, 5, 10), "small": (250, 10, 125), "paper": (60_000, 100, 2_000)}


def base(budget: Budget = "paper") -> Experiment:
  """Skip-gram with negative sampling; NIPS 2013, Table 1: 61% of the analogies, NEG-15."""
  steps, log, save = STEPS[budget]
  width, negatives = (300, 15) if budget == "paper" else (100, 5)
  tokenizer = Words(
    vocab_size=1_000_000 if budget == "paper" else 30_000, min_count=5, drop_unknown=True
  )
  return Experiment(
    model=WordVectors(width=width),
    objectives=(SkipGram(negatives=negatives),),
    data=Corpus(tokenizer=tokenizer, segments=KeptWords(sample=1e-3), length=1024),
    optim=SGD(peak=0.025, updates=16),
    global_batch=16,
    steps=steps,
    schedule=Intervals(log=log, save=save, evaluation_rows=16),
    compute=Compute(dtype="float32"),
  )


def tiny(budget: Budget = "small") -> Experiment:
  """Skip-gram of 100 dimensions on the installed text, in seconds on two CPU cores."""
  return base("small" if budget == "paper" else budget)


def cbow(budget: Budget = "small") -> Experiment:
  """CBOW with negative sampling."""
  experiment = base(budget)
  negatives = experiment.objectives[0].negatives
  optim = replace(experiment.optim, peak=0.05)
  return replace(experiment, objectives=(CBOW(negatives=negatives),), optim=optim)


def skipgram_hs(budget: Budget = "small") -> Experiment:
  """Skip-gram with hierarchical softmax; NIPS 2013, Table 1: 47% of the analogies."""
  return replace(base(budget), objectives=(SkipGram(negatives=0, block=8),))


def cbow_hs(budget: Budget = "small") -> Experiment:
  """CBOW with hierarchical softmax."""
  return replace(cbow(budget), objectives=(CBOW(negatives=0, block=8),))


def phrases(budget: Budget = "small") -> Experiment:
  """Skip-gram with two-word phrases, threshold 100 as in word2phrase.c."""
  experiment = base(budget)
  data = replace(experiment.data, tokenizer=replace(experiment.data.tokenizer, phrases=100.0))
  return replace(experiment, data=data)
