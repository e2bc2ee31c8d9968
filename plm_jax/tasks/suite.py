"""A suite: several tasks that are fine-tuned one after the other, with one table at the end.

GLUE is one (glue.py). A suite names its parts, a task and its files each; the same commands and the
same cells as for a single task train and test them. It then averages the scores, and may write
files, such as a submission, with the best model of each part.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from plm_jax.errors import UserError
from plm_jax.tasks.comparison import TRAINED, Cell, named
from plm_jax.tasks.task import Task, with_settings
from plm_jax.train.processes import say

Scores = Mapping[str, float]
"""metric -> value of one part, for one arm and one seed."""


class PartResult(NamedTuple):
  """A part after fine-tuning. cells: its models and baselines. path: its directory, with one for
  each cell."""

  name: str
  cells: list[Cell]
  path: Path

  def best(self, metric: str) -> Path:
    """The directory of the fine-tuned model with the highest score."""
    main = next(arm for arm in TRAINED if any(cell.arm == arm for cell in self.cells))
    cells = [cell for cell in self.cells if cell.arm == main]
    cell = max(cells, key=lambda cell: cell.test[metric])
    return self.path / f"{cell.arm}-{cell.labels}-{cell.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite(abc.ABC):
  """Several tasks; its fields are set by --set=task.FIELD=VALUE, other such settings are those of
  the parts.

  source: the folder of its data. only: the names of the parts to run; empty is all.
  """

  name: ClassVar[str]

  source: str = ""
  only: tuple[str, ...] = ()

  @property
  def place(self) -> str:
    return Path(os.path.expanduser(self.source)).resolve().name

  @abc.abstractmethod
  def parts(self, cache: Path) -> dict[str, Task]:
    """The tasks by name, in the order of the table. Errors: `UserError` for a folder without
    them."""

  @abc.abstractmethod
  def scores(self, name: str, test: Scores) -> Scores:
    """The scores of a part that its table shows; their mean is the part's score. test: metric ->
    value, from `Task.score`."""

  def joint(self, cache: Path) -> Task | None:
    """The one task of all chosen parts, if one model learns them together. Its scores of a part are
    named PART/METRIC."""
    return None

  def finish(self, results: list[PartResult], path: Path, cache: Path) -> list[str]:
    """Writes what the suite makes of its models to `path`; lines for the user. All processes call
    it, and the first one writes."""
    return []

  def chosen(self, cache: Path) -> dict[str, Task]:
    """The parts that `only` names. Errors: `UserError` for other names."""
    parts = self.parts(cache)
    if unknown := [name for name in self.only if name not in parts]:
      raise UserError(
        f"task.only={','.join(self.only)}: there is no {unknown[0]!r} in {self.source!r}; it has "
        f"{', '.join(parts)}."
      )
    return {name: task for name, task in parts.items() if not self.only or name in self.only}


def with_suite_settings(suite: Suite, settings: list[str]) -> tuple[Suite, list[str]]:
  """The suite with its own settings, and those of its parts."""
  fields = {f"task.{field.name}" for field in dataclasses.fields(suite)}
  own = [setting for setting in settings if setting.partition("=")[0].strip() in fields]
  return with_settings(suite, own), [setting for setting in settings if setting not in own]


def tune_parts(
  suite: Suite,
  path: Path,
  cache: Path,
  tune: Callable[[Task, Path], list[Cell]],
) -> list[PartResult]:
  """Every part in turn, or all in one. tune: trains and tests a task in a directory, or reads its
  results."""
  results = []
  if (joint := suite.joint(cache)) is not None:
    cells = tune(joint, path)
    return [PartResult(n, [scores_of(c, n) for c in cells], path) for n in suite.chosen(cache)]
  for name, task in suite.chosen(cache).items():
    say(f"\n=== {suite.name}: {name} ===")
    results.append(PartResult(name, tune(task, path / name), path / name))
  return results


def scores_of(cell: Cell, part: str) -> Cell:
  """A cell of the joint task with the scores of one part."""

  def own(scores):
    return {n.removeprefix(f"{part}/"): x for n, x in scores.items() if n.startswith(f"{part}/")}

  return cell._replace(test=own(cell.test), dev=cell.dev and own(cell.dev))


def suite_table(suite: Suite, results: list[PartResult]) -> tuple[str, dict[str, Any]]:
  """Parts x arms: the mean over seeds of each score, and the averages; as lines and for JSON. An
  arm has an average if it has a score of every part."""
  arms = dict.fromkeys(cell.arm for result in results for cell in result.cells)
  labels = list(dict.fromkeys(cell.labels for result in results for cell in result.cells))
  rows: dict[str, dict[str, float]] = {}
  for result in results:
    for cell in result.cells:
      column = f"{cell.arm}, {cell.labels}"
      for metric in suite.scores(result.name, cell.test):
        same = [suite.scores(result.name, c.test)[metric] for c in result.cells
                if (c.arm, c.labels) == (cell.arm, cell.labels)]  # fmt: skip
        rows.setdefault(f"{result.name} {named(metric)}", {})[column] = sum(same) / len(same)
  columns = [f"{arm}, {size}" for size in labels for arm in arms]
  averages = {c: average(suite, results, *c.split(", ")) for c in columns}
  rows["average"] = {c: value for c, value in averages.items() if value is not None}
  lines = [f"{'mean over seeds':28}" + "".join(f"{column:>20}" for column in columns)]
  for name, values in rows.items():
    cells = (f"{values[c]:.3f}" if c in values else "-" for c in columns)
    lines.append(f"{name:28}" + "".join(f"{cell:>20}" for cell in cells))
  return "\n".join(lines), rows


def average(suite: Suite, results: list[PartResult], arm: str, labels: str) -> float | None:
  """The mean of the parts' scores, a part with several metrics averaged first (Wang et al. 2019,
  section 4). None if a part has no such cell."""
  parts = []
  for result in results:
    cells = [suite.scores(result.name, c.test) for c in result.cells
             if (c.arm, c.labels) == (arm, labels)]  # fmt: skip
    if not cells:
      return None
    parts.append(sum(sum(s.values()) / len(s) for s in cells) / len(cells))
  return sum(parts) / len(parts)
