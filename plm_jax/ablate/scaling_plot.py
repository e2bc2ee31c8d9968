"""The picture of a scaling law: losses against compute for each size, and the best size against
compute beside published slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plm_jax.ablate.scaling_law import OPERATIONS, Fit
from plm_jax.ablate.scaling_runs import COUNTS, ScaledRun


def draw(
  path: Path,
  runs: Sequence[ScaledRun],
  fit: Fit,
  count: str,
  goal: ScaledRun,
  slopes: Mapping[str, float],
) -> None:
  """runs: all that are measured, `goal` the held-out one. count: of `COUNTS`, as it was fitted.
  slopes: published exponents of C in the best number of parameters."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12.5, 4.8), layout="constrained")
  left, right = figure.subplots(1, 2)
  _losses(left, runs, fit, count, goal)
  _best(right, runs, fit, count, goal, slopes)
  for axis in (left, right):
    axis.set_xscale("log")
    axis.set_xlabel(f"compute C = 6 N D, operations; N: {COUNTS[count]}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=110, facecolor="white")


def compute_of(run: ScaledRun, count: str) -> float:
  return float(OPERATIONS * getattr(run.sizes, count) * run.tokens)


def _losses(axis, runs, fit: Fit, count: str, goal: ScaledRun) -> None:
  """A curve and its runs for each size, and the held-out run."""
  from matplotlib import colormaps

  fitted = [run for run in runs if run.arm != goal.arm]
  shapes = list(dict.fromkeys(run.size for run in fitted))
  kept = set(fit.points)
  most = max(goal.tokens, *(run.tokens for run in fitted))
  tokens = np.geomspace(min(run.tokens for run in fitted), most, 60)
  for place, size in enumerate(shapes):
    of_size = [run for run in fitted if run.size == size]
    colour = colormaps["viridis"](0.9 * place / max(1, len(shapes) - 1))
    N = getattr(of_size[0].sizes, count)
    axis.plot(OPERATIONS * N * tokens, fit.law.loss(N, tokens), color=colour, lw=1, label=size)
    for run in of_size:
      fill = colour if run.point(count) in kept else "white"
      axis.plot(compute_of(run, count), run.loss, "o", ms=5, mfc=fill, mec=colour)
  N, C = getattr(goal.sizes, count), compute_of(goal, count)
  axis.plot(OPERATIONS * N * tokens, fit.law.loss(N, tokens), "--", color="#be123c", lw=1)
  loss, (low, high) = fit.predicted(N, goal.tokens)
  axis.errorbar(
    C, loss, [[loss - low], [high - loss]], fmt="_", color="#be123c", capsize=4,
    label=f"{goal.size}, predicted",
  )  # fmt: skip
  for run in runs:
    if run.arm == goal.arm:
      axis.plot(C, run.loss, "*", ms=11, color="black", label=f"{goal.size}, measured", zorder=4)
  axis.set_ylabel("held-out loss, nats")


def _best(axis, runs, fit: Fit, count: str, goal: ScaledRun, slopes: Mapping[str, float]) -> None:
  """The best number of parameters, with its interval, and published slopes through its middle."""
  fitted = [run for run in runs if run.arm != goal.arm]
  computes = [compute_of(run, count) for run in (*fitted, goal)]
  C = np.geomspace(min(computes), max(computes), 40)
  best = fit.law.best_parameters(C)
  low, high = np.quantile([law.best_parameters(C) for law in fit.resampled], (0.05, 0.95), axis=0)
  axis.fill_between(C, low, high, color="#1d4ed8", alpha=0.15, lw=0)
  axis.plot(C, best, color="#1d4ed8", lw=2, label=f"fitted, slope {fit.law.a:.2f}")
  middle = np.sqrt(C[0] * C[-1])
  styles = (("--", "#b45309"), (":", "#4d7c0f"), ("-.", "#7e22ce"), ("--", "#be123c"))
  for (name, slope), (style, colour) in zip(slopes.items(), styles):
    line = fit.law.best_parameters(middle) * (C / middle) ** slope
    axis.plot(C, line, ls=style, color=colour, lw=1.2, label=f"{name}, slope {slope:.2f}")
  for run in fitted:
    axis.plot(compute_of(run, count), getattr(run.sizes, count), ".", color="#999999", ms=4)
  axis.set_yscale("log")
  axis.set_ylabel("best number of parameters N")
