"""Comparison of fine-tuned models: scores of each seed, paired differences, a verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plm_jax.errors import UserError

METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
ARMS = {
  "pretrained": "fine-tuned from the checkpoint",
  "random": "same model, random initialisation",
  "words": "bag of words, linear",
}


def numbers_of_labels(text: str, flag: str) -> list[int | None]:
  """`500,all` -> [500, None]. Errors: `UserError`, naming the flag, for anything else."""
  words = [word.strip().replace("_", "") for word in text.split(",")]
  if not all(word == "all" or (word.isdecimal() and int(word)) for word in words):
    raise UserError(f"--{flag}={text} was given; expected numbers or all, such as 500,all.")
  return [None if word == "all" else int(word) for word in dict.fromkeys(words)]


class Cell(NamedTuple):
  """One arm with one number of labels and one seed; test: metric -> value."""

  arm: str
  labels: str  # "500" or "all"
  seed: int
  test: dict[str, float]

  @property
  def place(self) -> tuple:
    """Sort key: number of labels, "all" last; then seed and arm."""
    size = math.inf if self.labels == "all" else int(self.labels)
    return size, self.seed, list(ARMS).index(self.arm)


class Comparison(NamedTuple):
  """All cells of one task."""

  cells: list[Cell]

  @property
  def labels(self) -> list[str]:
    return list(dict.fromkeys(cell.labels for cell in self.cells))

  def values(self, arm: str, labels: str, metric: str) -> np.ndarray:
    """float64 [seeds], in the order of the seeds."""
    scores = sorted(
      (c.seed, c.test[metric]) for c in self.cells if (c.arm, c.labels) == (arm, labels)
    )
    return np.array([value for _, value in scores])

  def margins(self, labels: str, metric: str) -> np.ndarray:
    """Pretrained minus random, float64 [seeds]: both arms of a seed have the same examples, order,
    dropout and fresh head."""
    return self.values("pretrained", labels, metric) - self.values("random", labels, metric)

  def record(self) -> dict:
    """The content of results.json."""
    return {
      "cells": [cell._asdict() for cell in self.cells],
      "margins": {
        labels: {metric: self.margins(labels, metric).tolist() for metric in METRICS}
        for labels in self.labels
      },
    }


def table(comparison: Comparison, chance: dict[str, float]) -> str:
  """Arm x labels: mean and standard deviation over the seeds, then the paired differences. chance:
  metric -> score of the majority class."""
  columns = [(labels, metric) for labels in comparison.labels for metric in METRICS]
  counts = {len(comparison.values("pretrained", l, "accuracy")) for l in comparison.labels}
  seeds = " or ".join(map(str, sorted(counts)))
  heads = [f"{METRICS[metric]}, {labels}" for labels, metric in columns]
  spread = "one seed" if seeds == "1" else f"mean ± standard deviation of {seeds} seeds"
  lines = [
    f"\non the test split, {spread}",
    f"{'metric, number of training labels':34}" + "".join(f"{head:>18}" for head in heads),
  ]
  for arm, name in ARMS.items():
    values = [comparison.values(arm, *column) for column in columns]
    lines.append(f"{name:34}" + "".join(f"{_spread(v):>18}" for v in values))
  always = "".join(f"{chance[metric]:>10.3f}{'':8}" for _, metric in columns)
  lines.append(f"{'majority class':34}{always}".rstrip())
  return "\n".join(lines) + "\n" + "\n".join(verdict(comparison, l) for l in comparison.labels)


def _spread(values: np.ndarray) -> str:
  if len(values) < 2:
    return f"{values.mean():.3f}"
  return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def verdict(comparison: Comparison, labels: str) -> str:
  """The gain from pretraining with `labels` labels, by seed, and whether all seeds agree."""
  shown = {m: comparison.margins(labels, m) for m in METRICS}
  numbers = "; ".join(
    f"{METRICS[m]} " + " ".join(f"{x:+.3f}" for x in margins) for m, margins in shown.items()
  )
  every = np.concatenate(list(shown.values()))
  seeds = len(shown["accuracy"])
  if (every > 0).all():
    agreed = f"pretraining wins, {'and all seeds agree' if seeds > 1 else 'on one seed'}"
  elif not every.any():
    agreed = "no difference at all"
  elif (every <= 0).all():
    agreed = f"pretraining does not win, {'and all seeds agree' if seeds > 1 else 'on one seed'}"
  else:
    who = "seeds" if seeds > 1 else "two metrics"
    agreed = f"the {who} do not agree on whether pretraining wins"
  return f"{labels} labels, pretrained minus random for each seed: {numbers}: {agreed}."


def draw(comparison: Comparison, path: Path, chance: dict[str, float]) -> None:
  """Both metrics: a bar for the mean of each arm, a dot for each seed, a line for the majority
  class."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 3.8), layout="constrained")
  place = np.arange(len(comparison.labels))
  width = 0.8 / len(ARMS)
  for axis, (metric, name) in zip(figure.subplots(1, 2, sharey=True), METRICS.items()):
    for number, (arm, label) in enumerate(ARMS.items()):
      values = [comparison.values(arm, labels, metric) for labels in comparison.labels]
      x = place + (number - 1) * width
      axis.bar(x, [v.mean() for v in values], 0.92 * width, label=label, alpha=0.75)
      for at, seeds in zip(x, values):
        axis.plot(np.full(len(seeds), at), seeds, "k.", ms=5)
    axis.axhline(chance[metric], color="gray", ls="--", lw=1, label="majority class")
    axis.set_xticks(place, [f"{labels} labels" for labels in comparison.labels])
    axis.set_title(f"{name} on the test split")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
  figure.legend(
    *axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
  )
  figure.savefig(path, dpi=120)
