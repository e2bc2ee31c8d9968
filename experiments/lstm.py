"""Recurrent language models (Zaremba et al. 2014, Table 1), which carry their state from batch to
batch. Each function is a run, as in experiments/bert.py.

Text, vocabulary and batch of `tiny` are those of `experiments/gpt.py:tiny`, so that both models are
measured on the same held-out tokens. The paper's own text, the Penn Treebank, is not distributed:
`paper` has its sizes, rows and passes on a Wikipedia of 10,000 tokens. Deviations: AdamW instead of
SGD with a rate of 1 that is divided after some epochs; the state becomes zeros where a document
begins, so that a model can read a text from its beginning.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import gpt
from experiments.budgets import at, third
from plm_jax.ablate.table import Arm, Better, Ordered, Table
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.lstm import LARGE, MEDIUM, SMALL, Gru, Lstm, Rnn
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW

STREAM = PackedDocuments(ordered=True)
PTB_TOKENS = 929_000


def tiny(budget: Budget = "small") -> Experiment:
  """An LSTM of 2 layers of 256. At `small`, it reads the tokens that the tiny GPT reads."""
  experiment = gpt.tiny(budget)
  optim = AdamW(peak=4e-3, warmup=experiment.optim.warmup, clip=1.0, decay=0.0)
  return replace(
    experiment,
    model=Lstm(width=256, tied=True),
    data=replace(experiment.data, segments=STREAM),
    optim=optim,
  )


def tiny_gru(budget: Budget = "small") -> Experiment:
  """A GRU of the same size."""
  return replace(tiny(budget), model=Gru(width=256, tied=True))


def tiny_rnn(budget: Budget = "small") -> Experiment:
  """A simple recurrent network of the same size, at a quarter of the learning rate."""
  experiment = tiny(budget)
  optim = replace(experiment.optim, peak=1e-3)
  return replace(experiment, model=Rnn(width=256, tied=True), optim=optim)


def small(budget: Budget = "paper") -> Experiment:
  """Table 1, "Non-regularized LSTM": 2 layers of 200, rows of 20 tokens, 13 passes."""
  return _zaremba(budget, SMALL, length=20, passes=13, clip=5.0)


def medium(budget: Budget = "paper") -> Experiment:
  """Table 1, "Medium regularized LSTM": 2 layers of 650, dropout 0.5, 39 passes."""
  return _zaremba(budget, MEDIUM, length=35, passes=39, clip=5.0)


def large(budget: Budget = "paper") -> Experiment:
  """Table 1, "Large regularized LSTM": 2 layers of 1,500, dropout 0.65, 55 passes."""
  return _zaremba(budget, LARGE, length=35, passes=55, clip=10.0)


def medium_variational(budget: Budget = "paper") -> Experiment:
  """The medium LSTM with one dropout mask for all tokens of a row (Gal and Ghahramani 2016)."""
  experiment = medium(budget)
  return replace(experiment, model=replace(experiment.model, variational=True))


def medium_tied(budget: Budget = "paper") -> Experiment:
  """The medium LSTM with one token table for input and output (Press and Wolf 2017)."""
  experiment = medium(budget)
  return replace(experiment, model=replace(experiment.model, tied=True))


def table_1() -> Table:
  """Zaremba et al. 2014, Table 1: with dropout, larger LSTMs are better."""
  columns = ("PTB valid (ppl)", "PTB test (ppl)")
  return Table(
    title="Zaremba et al. 2014, Table 1: LSTM language models",
    source="Zaremba et al. 2014, Table 1",
    question="A larger network learns its training text by heart. With dropout, is a larger LSTM better on new text?",
    arms=(
      Arm.of(small, 120.7, 114.5, columns=columns, name="small", laptop=("model.width=64",)),
      Arm.of(medium, 86.2, 82.7, columns=columns, name="medium", laptop=("model.width=192",)),
      Arm.of(large, 82.2, 78.4, columns=columns, name="large", laptop=("model.width=448",)),
    ),
    claims=(Ordered("clm_perplexity", ("small", "medium", "large")),),
    caveat="At the budgets small and smoke every width is a third of the published one.",
  )


def cells() -> Table:
  """LSTM, GRU and simple recurrent network of one size."""
  return Table(
    title="Recurrent cells",
    source="ours",
    question="The gates of an LSTM and of a GRU let a signal pass many steps unchanged. Are they better than a simple recurrent network of the same size?",
    arms=(Arm.of(tiny, name="lstm"), Arm.of(tiny_gru, name="gru"), Arm.of(tiny_rnn, name="rnn")),
    claims=(
      Better("clm_perplexity", "lstm", than="rnn"),
      Better("clm_perplexity", "gru", than="rnn"),
    ),
  )


def _zaremba(budget: Budget, model: Lstm, length: int, passes: int, clip: float) -> Experiment:
  """A size of Table 1: 20 rows whose state is carried."""
  optim = AdamW(peak=2e-3, warmup=500, schedule="cosine", clip=clip, decay=0.0)
  paper = Experiment(
    model=model,
    objectives=(CLM(),),
    data=replace(
      gpt.PAPER_CORPUS, tokenizer=BytePairs(vocab_size=10_000), segments=STREAM, length=length
    ),
    optim=optim,
    global_batch=20,
    steps=passes * PTB_TOKENS // (20 * length),
    schedule=Intervals(log=100, evaluate=2_000, save=2_000),
  )
  if budget == "paper":
    return paper
  width = third(layers=1, width=model.width, heads=1)["width"]
  paper = replace(paper, model=replace(model, width=width))
  data = replace(gpt.SMALL_CORPUS, segments=STREAM, length=length)
  return at(budget, paper, data, replace(optim, peak=4e-3, warmup=300))
