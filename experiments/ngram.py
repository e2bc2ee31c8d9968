"""N-gram models (Chen and Goodman 1999), estimated by counting. Each function is a run, as in
experiments/bert.py.

Text, vocabulary and held-out rows are those of `experiments/gpt.py:tiny`, so that all language
models of the project are measured on the same held-out tokens.
"""

from __future__ import annotations

from dataclasses import replace

from experiments import gpt
from plm_jax.ablate.table import Arm, Better, Table
from plm_jax.experiment import Budget, Experiment
from plm_jax.models.ngram import NGram


def base(budget: Budget = "small") -> Experiment:
  """Interpolated modified Kneser-Ney of order 5."""
  return replace(gpt.tiny(budget), model=NGram(), steps=0)


def kn3(budget: Budget = "small") -> Experiment:
  """Kneser-Ney of order 3."""
  return replace(base(budget), model=NGram(order=3))


def kn2(budget: Budget = "small") -> Experiment:
  """Kneser-Ney of order 2."""
  return replace(base(budget), model=NGram(order=2))


def jelinek_mercer(budget: Budget = "small") -> Experiment:
  """Jelinek-Mercer interpolation of order 5, with weights for each range of a context's count."""
  return replace(base(budget), model=NGram(smoothing="jelinek_mercer"))


def add_k(budget: Budget = "small") -> Experiment:
  """Add-k of order 5, k = 0.01."""
  return replace(base(budget), model=NGram(smoothing="add_k"))


def smoothing() -> Table:
  """Chen and Goodman 1999: modified Kneser-Ney is better than all other methods."""
  arms = (
    Arm.of(base, name="kneser-ney"),
    Arm.of(kn3, name="kneser-ney-3"),
    Arm.of(kn2, name="kneser-ney-2"),
    Arm.of(jelinek_mercer, name="jelinek-mercer"),
    Arm.of(add_k, name="add-k"),
  )
  return Table(
    title="Smoothing of n-grams",
    source="Chen and Goodman 1999, section 5",
    question="Most sequences of five words in a new text never occurred in the training text. What probability should a model give them?",
    arms=arms,
    claims=(
      Better("clm_perplexity", "kneser-ney", than="jelinek-mercer"),
      Better("clm_perplexity", "kneser-ney", than="add-k"),
      Better("clm_perplexity", "kneser-ney", than="kneser-ney-2"),
    ),
  )
