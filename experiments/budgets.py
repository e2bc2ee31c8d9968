"""The budgets of all papers, which make their experiments comparable.

`paper` is the published recipe. This project measures at `small`: 3,000 steps of 64 rows of the
corpus of installed text, a peak rate of 1e-3, and models a third as wide and deep. `smoke` has ten
steps, which only show that everything runs.
"""

from __future__ import annotations

from dataclasses import replace

from plm_jax.data.pipeline import Corpus
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.optim.adamw import AdamW


def at(
  budget: Budget, paper: Experiment, data: Corpus, optim: AdamW, steps: int = 3_000
) -> Experiment:
  """The experiment `paper` at a budget. data, optim, steps: those of `small`."""
  if budget == "paper":
    return paper
  small = replace(
    paper,
    data=data,
    optim=optim,
    global_batch=64,
    steps=steps,
    schedule=Intervals(evaluate=steps // 6, early=True, save=steps // 6),
  )
  if budget == "small":
    return small
  return replace(
    small,
    optim=replace(optim, warmup=2),
    global_batch=16,
    steps=10,
    schedule=Intervals(log=5, evaluation_rows=64),
  )


def third(layers: int, width: int, heads: int) -> dict[str, int]:
  """A published size at `small` and `smoke`: a third of its layers, heads and width. The width is
  rounded down to a multiple of 64 (768 -> 256, 1024 -> 320). Rows of a table keep their order."""
  return {
    "layers": max(1, layers // 3),
    "width": width // 3 // 64 * 64,
    "heads": max(1, heads // 3),
  }
