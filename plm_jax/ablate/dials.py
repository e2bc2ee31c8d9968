"""Tables whose rows are run at several values of a dial: their arms, and the block of their report
that draws each metric against the dial, beside the best score in theory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, Heading, PageBlock, Picture, Text
from plm_jax.ablate.plots import colours
from plm_jax.ablate.report_numbers import number
from plm_jax.ablate.table import Arm

PICTURE = "dial.png"

Best = Callable[[str, float], float | None]
"""(metric, value of the dial) -> the best expected score."""


def dialled(
  rows: Sequence[Callable[..., Any]], setting: str, values: Sequence[float]
) -> tuple[Arm, ...]:
  """Every row at every value. setting: as after --set, with {} for the value."""
  return tuple(
    Arm.of(row, dial=value, settings=[setting.format(f"{value:g}")])
    for value in values
    for row in rows
  )


def blocks(
  measured: Measured,
  to: Path,
  dial: str,
  metrics: Mapping[str, str],
  best: Best | None = None,
  lesson: str = "",
) -> list[PageBlock]:
  """A picture, and a grid for each metric. dial: its name, as the axis has it. metrics: metric ->
  its name on the axis. lesson: what follows for real text."""
  present = {metric: title for metric, title in metrics.items() if metric in measured.metrics}
  if not present:
    return []
  draw(measured, dial, present, best, to / PICTURE)
  caption = "Dots are seeds, lines their mean" + ("; dashed: the best in theory." if best else ".")
  grids: list[PageBlock] = []
  for metric, title in present.items():
    grids += [Text(f"{title} (`{metric}`):"), grid(measured, dial, metric, best)]
  learnt = [Text(f"**For real text.** {lesson}")] if lesson else []
  return [*learnt, Picture(to / PICTURE, caption), Heading("By the dial"), *grids]


def rows_of(measured: Measured) -> list[str]:
  return list(dict.fromkeys(arm.row for arm in measured.arms))


def values_of(measured: Measured) -> list[float]:
  return sorted({arm.dial for arm in measured.arms if arm.dial is not None})


def grid(measured: Measured, dial: str, metric: str, best: Best | None) -> Grid:
  """A row for each value of the dial."""
  rows, names = [], rows_of(measured)
  for value in values_of(measured):
    entries = [shown(measured.values(f"{name}-{value:g}", metric)) for name in names]
    if best:
      limit = best(metric, value)
      entries.append("" if limit is None else number(limit))
    rows.append([f"{value:g}", *entries])
  return Grid((dial, *names, *(["best in theory"] if best else [])), rows)


def shown(values: Sequence[float]) -> str:
  if not values:
    return ""
  spread = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
  return number(statistics.fmean(values)) + spread


def draw(
  measured: Measured, dial: str, metrics: Mapping[str, str], best: Best | None, path: Path
) -> None:
  """A panel for each metric, a line for each row."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  names, values = rows_of(measured), values_of(measured)
  colour = colours(names)
  figure = Figure(figsize=(5.2 * len(metrics), 3.8), layout="constrained")
  panels = figure.subplots(1, len(metrics), squeeze=False)[0]
  for axis, (metric, title) in zip(panels, metrics.items(), strict=True):
    for name in names:
      dots = {v: x for v in values if (x := measured.values(f"{name}-{v:g}", metric))}
      means = [statistics.fmean(seeds) for seeds in dots.values()]
      axis.plot(list(dots), means, color=colour[name], label=name)
      for value, seeds in dots.items():
        axis.plot([value] * len(seeds), seeds, "o", ms=4, color=colour[name])
    limits = {v: limit for v in values if best and (limit := best(metric, v)) is not None}
    if limits:
      axis.plot(list(limits), list(limits.values()), "k--", lw=1, label="best in theory")
    if values[0] > 0 and values[-1] / values[0] >= 8:
      axis.set_xscale("log", base=2)
    axis.set_xticks(values, [f"{v:g}" for v in values])
    axis.minorticks_off()
    axis.set_xlabel(dial)
    axis.set_ylabel(title)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
  figure.savefig(path, dpi=110, facecolor="white")
