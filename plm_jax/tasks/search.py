"""Search of a recipe: a small grid of learning rate, batch and epochs, chosen on the dev split."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from plm_jax.tasks.comparison import named
from plm_jax.tasks.finetuning import FinetunePlan, model_cell


class Grid(NamedTuple):
  """The values that are tried, each with each."""

  peaks: tuple[float, ...]
  batches: tuple[int, ...]
  epochs: tuple[int, ...]


class Point(NamedTuple):
  """One recipe and its score on dev. settings: as of --set."""

  settings: tuple[str, ...]
  name: str
  dev: float


def points(grid: Grid, examples: int, fixed: set[str]) -> dict[str, tuple[str, ...]]:
  """Name -> settings of every recipe. fixed: fields that the user has set, which are not varied."""
  recipes: dict[str, tuple[str, ...]] = {}
  for peak, batch, epochs in itertools.product(*grid):
    steps = max(1, epochs * examples // batch)
    settings = {"optim.peak": f"{peak:g}", "global_batch": str(batch), "steps": str(steps)}
    settings["optim.warmup"] = str(steps // 10)
    without = fixed | ({"optim.warmup"} if "steps" in fixed else set())
    kept = {field: value for field, value in settings.items() if field not in without}
    shown = {"optim.peak": f"rate-{peak:g}", "global_batch": f"batch-{batch}"}
    shown["steps"] = f"epochs-{epochs}"
    name = "_".join(text for field, text in shown.items() if field in kept)
    recipes.setdefault(name, tuple(f"{field}={value}" for field, value in kept.items()))
  return recipes


def searched(plan: FinetunePlan, size: int | None, grid: Grid) -> tuple[FinetunePlan, str]:
  """The plan with the best recipe for a number of labels, and the table of all. Every recipe is
  trained with seed 0, in PATH/search; a stopped search continues."""
  examples = len(plan.splits.few(size, 0).train)
  fixed = {setting.partition("=")[0].strip() for setting in plan.settings}
  if "global_batch" in fixed:  # the steps of an epoch follow from it
    grid = grid._replace(batches=(plan.experiment(size, 0).global_batch,))
  metric, tried = plan.task.metrics[0], []
  for name, settings in points(grid, examples, fixed).items():
    place = plan._replace(path=plan.path / "search" / (name or "given"), found=settings)
    arm = "random" if "untrained" in plan.source.document else "pretrained"
    cell = model_cell(place, arm, size, 0, f"search, {name}")
    assert cell.dev is not None  # a trained model has scores on dev
    tried.append(Point(settings, name or "given", cell.dev[metric]))
  best = max(tried, key=lambda point: point.dev)  # the first of equals
  lines = [f"search with {size or 'all'} labels, {named(metric)} on dev:"]
  lines += [
    f"  {point.dev:.4f}  {point.name}{'  (chosen)' if point is best else ''}"
    for point in sorted(tried, key=lambda point: -point.dev)
  ]
  return plan._replace(found=best.settings), "\n".join(lines)
