"""The two figures of a report: learning curves of all arms, and every metric with its seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plm_jax.ablate.verdict import SeedScores

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]
"""arm -> seed -> (step, value) of one metric."""

HELD_OUT = "held out"  # the end of a panel's title
_COLUMNS = 2


def _figure(panels: int, height: float):
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  columns = min(_COLUMNS, panels)
  rows = -(-panels // columns)
  figure = Figure(figsize=(5.2 * columns, height * rows), layout="constrained")
  axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
  for axis in axes[panels:]:
    axis.remove()
  return figure, axes[:panels]


def colours(arms: Sequence[str]) -> dict[str, tuple]:
  """One colour per arm, the same in both figures; no two differ only in red and green."""
  from matplotlib import colormaps

  palette = colormaps["tab10" if len(arms) <= 10 else "tab20"]
  return {arm: palette(number % palette.N) for number, arm in enumerate(arms)}


def draw_learning_curves(panels: Mapping[str, Curves], arms: Sequence[str], path: Path) -> None:
  """Draws a panel per title: thin lines are seeds, a thick one is their mean. Points above the axis
  and those of step 0 are left out, not joined to the next: losses of early steps are far apart, and
  a straight line between them was never measured."""
  figure, axes = _figure(len(panels), 3.6)
  colour = colours(arms)
  for axis, (title, curves) in zip(axes, panels.items()):
    spreads = {arm: spread(curves.get(arm, {})) for arm in arms}
    spreads = {arm: values for arm, values in spreads.items() if len(values[0])}
    top = max(high[steps >= 0.1 * steps[-1]].max() for steps, _, _, high in spreads.values())
    bottom = min(low.min() for _, _, low, _ in spreads.values())
    style = {"marker": "o", "ms": 3} if title.endswith(HELD_OUT) else {}
    for arm, (steps, mean, _, _) in spreads.items():
      for seed in curves[arm].values():
        points = [(step, value) for step, value in seed if step and value <= top]
        axis.plot(*zip(*points), color=colour[arm], lw=0.6, alpha=0.5)
      within = (mean <= top) & (steps > 0)
      axis.plot(steps[within], mean[within], color=colour[arm], lw=1.8, label=arm, **style)
    room = 0.05 * (top - bottom) or 0.1
    axis.set_ylim(bottom - room, top + room)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
  handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels())}
  shown = [arm for arm in arms if arm in handles]  # in the order of the table
  figure.legend(
    [handles[arm] for arm in shown], shown, loc="outside lower center", ncols=4, frameon=False
  )
  figure.savefig(path, dpi=110)


def spread(
  seeds: Mapping[int, Sequence[tuple[int, float]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """(steps, mean, lowest, highest), at each step over the seeds that have a value there."""
  values: dict[int, list[float]] = {}
  for curve in seeds.values():
    for step, value in curve:
      if np.isfinite(value):
        values.setdefault(step, []).append(value)
  steps = sorted(values)
  rows = [(np.mean(values[s]), np.min(values[s]), np.max(values[s])) for s in steps]
  mean, lowest, highest = np.array(rows).reshape(-1, 3).T
  return np.array(steps), mean, lowest, highest


def draw_metrics(
  scores: SeedScores,
  metrics: Sequence[str],
  arms: Sequence[str],
  references: Mapping[str, float],
  path: Path,
) -> None:
  """A panel per metric, a row per arm: dots are seeds, bars their mean, dashed lines baselines."""
  figure, axes = _figure(len(metrics), 0.9 + 0.32 * len(arms))
  colour = colours(arms)
  for axis, metric in zip(axes, metrics):
    for row, arm in enumerate(arms):
      values = [v[metric] for v in scores.get(arm, {}).values() if metric in v]
      if values:
        axis.plot(values, [row] * len(values), "o", color=colour[arm], ms=6, alpha=0.7, mew=0)
        axis.plot(np.mean(values), row, "|", color="black", ms=15, mew=1.6)
    low, high = axis.get_xlim()
    reach = 2 * (high - low)  # a line further away would push the dots into a corner
    if low - reach <= references.get(metric, math.inf) <= high + reach:
      axis.axvline(references[metric], color="gray", ls="--", lw=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_title(metric)
    axis.locator_params(axis="x", nbins=6)  # more labels of four digits would overlap
    axis.grid(alpha=0.3)
  figure.savefig(path, dpi=110)
