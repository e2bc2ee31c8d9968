"""The neural probabilistic language model (Bengio et al. 2003), Table 1 on the Brown corpus. Each
function is a run, as in experiments/bert.py.

The Brown corpus is not distributed. All budgets read the text, the vocabulary and the held-out rows
of `experiments/gpt.py:tiny`, so that all language models of the project are measured on the same
tokens. Deviations: AdamW instead of SGD with weight decay; tokens of a byte-pair vocabulary.

The paper mixes half of its rows with a trigram model. A mixture is not trained, it is scored:
`python -m plm_jax.score --model=runs/nnlm_base --mix=runs/ngram_kn3 --file=FILE`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from experiments import gpt
from plm_jax.ablate.table import Arm, Better, Table
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.nnlm import Nnlm
from plm_jax.optim.adamw import AdamW


def base(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP1": n = 5, 50 hidden units, 60 features, direct connections."""
  experiment = gpt.tiny(budget)
  # The step is cheap and the context short: rows of more tokens would only delay the updates.
  optim = AdamW(peak=2e-3, warmup=experiment.optim.warmup, schedule="wsd", decay=0.01)
  return replace(experiment, model=Nnlm(), optim=optim)


def mlp1(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP1"."""
  return base(budget)


def mlp2(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP2": MLP1, to be mixed with a trigram model."""
  return base(budget)


def mlp3(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP3": no hidden units, only the direct connections."""
  return _sized(budget, hidden=0)


def mlp4(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP4": MLP3, to be mixed with a trigram model."""
  return mlp3(budget)


def mlp5(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP5": 30 features."""
  return _sized(budget, features=30)


def mlp6(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP6": MLP5, to be mixed with a trigram model."""
  return mlp5(budget)


def mlp7(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP7": n = 3, 30 features."""
  return _sized(budget, order=3, features=30)


def mlp8(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP8": MLP7, to be mixed with a trigram model."""
  return mlp7(budget)


def mlp9(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP9": 100 hidden units, 30 features, no direct connections."""
  return _sized(budget, hidden=100, features=30, direct=False)


def mlp10(budget: Budget = "small") -> Experiment:
  """Table 1, "MLP10": MLP9, to be mixed with a trigram model."""
  return mlp9(budget)


def table_1() -> Table:
  """Bengio et al. 2003, Table 1: hidden units and longer contexts help."""
  arm = partial(Arm.of, columns=("Brown test (ppl)",))
  return Table(
    title="Bengio et al. 2003, Table 1: a neural probabilistic language model",
    source="Bengio et al. 2003, Table 1",
    question="A network that predicts the next word from the vectors of the last ones can see further back than a table of counts. Do hidden units and a longer context lower its perplexity?",
    arms=(
      arm(mlp1, 268, name="MLP1"),
      arm(mlp3, 310, name="MLP3"),
      arm(mlp5, 279, name="MLP5"),
      arm(mlp7, 293, name="MLP7"),
      arm(mlp9, 276, name="MLP9"),
    ),
    claims=(
      Better("clm_perplexity", "MLP1", than="MLP3"),
      Better("clm_perplexity", "MLP5", than="MLP7"),
    ),
    caveat="MLP2, 4, 6, 8 and 10 are these five mixed with a trigram model (published: 257, 272, "
    "259, 270, 252), which `python -m plm_jax.score --mix` measures.",
  )


def _sized(budget: Budget, **sizes) -> Experiment:
  experiment = base(budget)
  return replace(experiment, model=replace(experiment.model, **sizes))
