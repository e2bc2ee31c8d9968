"""fastText (Bojanowski et al. 2017): skip-gram whose words are also their character n-grams. Each
function is a run.

A step has 128 rows of 128 kept words, each of which is an update. Words share n-grams, so an update
of 1,024 words, as in word2vec.py, adds up hundreds of changes of one n-gram, and diverges.

Defaults are those of the published code (facebookresearch/fastText 1142dc4): n-grams of 3 to 6
characters in 2,000,000 buckets, 5 negatives drawn by count^0.5, sample 1e-4, learning rate 0.05.
The classifier of Joulin et al. 2017, with n-grams of words, is trained by
run_finetune.py --from=experiments/fasttext.py:supervised.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import word2vec
from plm_jax.data.kept_words import KeptWords
from plm_jax.data.tokenizers import Words
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.word2vec import CBOW, SkipGram
from plm_jax.optim.adamw import AdamW
from plm_jax.optim.sgd import SGD

BUCKETS = {"smoke": 10_000, "small": 100_000, "paper": 2_000_000}
ROWS, LENGTH = 128, 128  # as many words in a step as in word2vec.py


def base(budget: Budget = "paper") -> Experiment:
  """Skip-gram with n-grams, as published."""
  experiment, buckets = word2vec.base(budget), BUCKETS[budget]
  width = 300 if budget == "paper" else 100
  return replace(
    experiment,
    model=WordVectors(width=width, buckets=buckets, scale=1.0),
    objectives=(SkipGram(power=0.5),),
    global_batch=ROWS,
    data=replace(
      experiment.data,
      length=LENGTH,
      tokenizer=replace(experiment.data.tokenizer, buckets=buckets),
      segments=KeptWords(sample=1e-4),
    ),
    optim=SGD(peak=0.05, updates=ROWS),
    schedule=replace(experiment.schedule, evaluation_rows=ROWS),
  )


def tiny(budget: Budget = "small") -> Experiment:
  """Skip-gram with n-grams in 100,000 buckets on the installed text."""
  return base("small" if budget == "paper" else budget)


def cbow(budget: Budget = "small") -> Experiment:
  """CBOW with n-grams."""
  return replace(base(budget), objectives=(CBOW(power=0.5),))


def supervised(budget: Budget = "small") -> Experiment:
  """The classifier with bigrams of words (Joulin et al. 2017, section 3.1: h = 10)."""
  experiment = tiny(budget)
  return replace(
    experiment,
    model=replace(experiment.model, width=10, word_ngrams=2),
    objectives=(),
    data=replace(
      experiment.data, tokenizer=Words(vocab_size=1_000_000, min_count=1, split="marks")
    ),
    optim=AdamW(peak=0.02, warmup=0, decay=0.0),
    steps=0,
  )
