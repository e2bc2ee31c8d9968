"""Comparison of fine-tuned models: scores of each seed, paired differences, a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from plm_jax.errors import UserError
from plm_jax.tasks.metrics import NAMES

TRAINED = {
  "pretrained": "fine-tuned from the checkpoint",
  "random": "same model, random initialisation",
}

PROBE = "probe"


def numbers_of_labels(text: str, flag: str) -> list[int | None]:
  """`500,all` -> [500, None]. Errors: `UserError`, naming the flag, for anything else."""
  words = [word.strip().replace("_", "") for word in text.split(",")]
  if not all(word == "all" or (word.isdecimal() and int(word)) for word in words):
    raise UserError(f"--{flag}={text} was given; expected numbers or all, such as 500,all.")
  return [None if word == "all" else int(word) for word in dict.fromkeys(words)]


class Cell(NamedTuple):
  """One arm with one number of labels and one seed; test, dev: metric -> value."""

  arm: str
  labels: str  # "500" or "all"
  seed: int
  test: dict[str, float]
  dev: dict[str, float] | None = None  # of a trained model

  @classmethod
  def of(cls, value: Any) -> Self:
    """The cell of a JSON value. Errors: `TypeError`, `ValueError` for one that is none."""
    cell = cls(**value)
    scores = [cell.test, {} if cell.dev is None else cell.dev]
    texts = isinstance(cell.arm, str) and isinstance(cell.labels, str)
    if not texts or type(cell.seed) is not int or not all(map(_are_numbers, scores)):
      raise ValueError("its arm, labels, seed or scores have another type")
    return cell


def _are_numbers(scores: Any) -> bool:
  return isinstance(scores, dict) and all(type(v) in (int, float) for v in scores.values())


class Comparison(NamedTuple):
  """All cells of one task. metrics: those of its table; baselines: arm -> name, the last is
  constant."""

  cells: list[Cell]
  metrics: tuple[str, ...]
  baselines: dict[str, str]

  @classmethod
  def of(cls, cells: Iterable[Cell], task) -> Comparison:
    """The cells of a `Task` in the order of the table: by labels, "all" last, seed and arm."""
    baselines = {PROBE: task.probe} | task.baselines
    arms = [*TRAINED, *baselines]

    def place(cell: Cell):
      size = math.inf if cell.labels == "all" else int(cell.labels)
      return size, cell.seed, arms.index(cell.arm)

    return cls(sorted(cells, key=place), task.metrics, baselines)

  @property
  def arms(self) -> dict[str, str]:
    """The arms with cells, and their names."""
    present = {cell.arm for cell in self.cells}
    names = TRAINED | self.baselines
    return {arm: name for arm, name in names.items() if arm in present}

  @property
  def main(self) -> str:
    """The trained arm that is compared with the baselines: "pretrained", if it has cells."""
    return next(arm for arm in TRAINED if arm in self.arms)

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
    arms = [
      {c.seed: c.test[metric] for c in self.cells if (c.arm, c.labels) == (arm, labels)}
      for arm in TRAINED
    ]
    both = sorted(arms[0].keys() & arms[1].keys())
    return np.array([arms[0][seed] - arms[1][seed] for seed in both])

  def record(self) -> dict:
    """The content of results.json."""
    return {
      "cells": [cell._asdict() for cell in self.cells],
      "margins": {
        labels: {metric: self.margins(labels, metric).tolist() for metric in self.metrics}
        for labels in self.labels
      },
    }


def table(comparison: Comparison, chance: dict[str, float]) -> str:
  """Arm x labels: mean and standard deviation over the seeds, then the paired differences. chance:
  metric -> score of the constant baseline."""
  metrics = comparison.metrics
  columns = [(labels, metric) for labels in comparison.labels for metric in metrics]
  counts = {len(comparison.values(comparison.main, l, metrics[0])) for l in comparison.labels}
  seeds = " or ".join(map(str, sorted(counts)))
  heads = [f"{named(metric)}, {labels}" for labels, metric in columns]
  runs = "one seed" if seeds == "1" else f"mean ± standard deviation of {seeds} seeds"
  width = max(18, *(len(head) + 2 for head in heads))
  lines = [
    f"\non the test split, {runs}",
    f"{'metric, number of training labels':34}" + "".join(f"{head:>{width}}" for head in heads),
  ]
  for arm, name in comparison.arms.items():
    values = [comparison.values(arm, *column) for column in columns]
    lines.append(f"{name:34}" + "".join(f"{mean_and_deviation(v):>{width}}" for v in values))
  room = "" if seeds == "1" else " " * 8  # under the means
  always = "".join(f"{f'{chance[metric]:.3f}{room}':>{width}}" for _, metric in columns)
  lines.append(f"{list(comparison.baselines.values())[-1]:34}{always}".rstrip())
  lines += every_run(comparison) + learnt_weights(comparison)
  verdicts = [verdict(comparison, labels) for labels in comparison.labels]
  return "\n".join([*lines, *filter(None, verdicts)])


def every_run(comparison: Comparison) -> list[str]:
  """For trained arms with several seeds: the first metric of every run, and its median."""
  metric, lines = comparison.metrics[0], []
  for labels in comparison.labels:
    for arm in TRAINED:
      values = comparison.values(arm, labels, metric)
      if len(values) > 1:
        runs = " ".join(f"{value:.3f}" for value in values)
        median = np.median(values)
        lines.append(f"{arm}, {labels} labels, {named(metric)}: runs {runs}, median {median:.3f}")
  return lines


def learnt_weights(comparison: Comparison) -> list[str]:
  """The weights that a model learnt for its layers, the mean over the seeds; [] for others."""
  lines = []
  for labels in comparison.labels:
    cells = [c.test for c in comparison.cells if (c.arm, c.labels) == (comparison.main, labels)]
    names = [name for name in (cells[0] if cells else ()) if name.startswith("learnt/")]
    if names:
      means = [(name, np.mean([cell[name] for cell in cells])) for name in names]
      shown = ", ".join(f"{name.removeprefix('learnt/')} {mean:.3f}" for name, mean in means)
      lines.append(f"{labels} labels, learnt weights of the layers: {shown}")
  return lines


def named(metric: str) -> str:
  """A metric's name in a table."""
  return NAMES.get(metric, metric)


def mean_and_deviation(values: np.ndarray) -> str:
  """Mean and standard deviation."""
  if not len(values):
    return "-"
  if len(values) < 2:
    return f"{values.mean():.3f}"
  return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def verdict(comparison: Comparison, labels: str) -> str:
  """The gain from pretraining with `labels` labels, by seed, and whether all seeds agree; and
  whether the fine-tuned model is below a baseline."""
  shown = {m: comparison.margins(labels, m) for m in comparison.metrics}
  every = np.concatenate(list(shown.values()))
  if not len(every):
    return _below_baseline(comparison, labels)
  numbers = "; ".join(
    f"{named(m)} " + " ".join(f"{x:+.3f}" for x in margins) for m, margins in shown.items()
  )
  seeds = len(shown[comparison.metrics[0]])
  if (every > 0).all():
    agreed = f"pretraining wins, {'and all seeds agree' if seeds > 1 else 'on one seed'}"
  elif not every.any():
    agreed = "no difference at all"
  elif (every <= 0).all():
    agreed = f"pretraining does not win, {'and all seeds agree' if seeds > 1 else 'on one seed'}"
  else:
    who = "seeds" if seeds > 1 else "two metrics"
    agreed = f"the {who} do not agree on whether pretraining wins"
  gain = f"{labels} labels, pretrained minus random for each seed: {numbers}: {agreed}."
  return "\n".join(filter(None, [gain, _below_baseline(comparison, labels)]))


def _below_baseline(comparison: Comparison, labels: str) -> str:
  metric = comparison.metrics[0]
  mean = comparison.values(comparison.main, labels, metric).mean()
  for arm, name in comparison.baselines.items():
    values = comparison.values(arm, labels, metric)
    if len(values) and mean < values.mean():
      return (
        f"{labels} labels: the fine-tuned model is below the baseline ({name}). Try --search, "
        "another learning rate (--set=optim.peak=RATE), more steps (--set=steps=N) or more labels."
      )
  return ""


def draw(comparison: Comparison, path: Path, chance: dict[str, float]) -> None:
  """Every metric: a bar for the mean of each arm, a dot for each seed, a line for the constant
  baseline."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  count = len(comparison.metrics)
  figure = Figure(figsize=(4.5 * count, 3.8), layout="constrained")
  axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
  place, arms = np.arange(len(comparison.labels)), comparison.arms
  width = 0.8 / len(arms)
  for axis, metric in zip(axes, comparison.metrics, strict=True):
    for number, (arm, label) in enumerate(arms.items()):
      values = [comparison.values(arm, labels, metric) for labels in comparison.labels]
      x = place + (number - (len(arms) - 1) / 2) * width
      means = [v.mean() if len(v) else np.nan for v in values]
      axis.bar(x, means, 0.92 * width, label=label, alpha=0.75)
      for at, seeds in zip(x, values):
        axis.plot(np.full(len(seeds), at), seeds, "k.", ms=5)
    constant = list(comparison.baselines.values())[-1]
    axis.axhline(chance[metric], color="gray", ls="--", lw=1, label=constant)
    axis.set_xticks(place, [f"{labels} labels" for labels in comparison.labels])
    axis.set_title(f"{named(metric)} on the test split")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
  handles = axes[-1].get_legend_handles_labels()
  figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
  figure.savefig(path, dpi=120)
