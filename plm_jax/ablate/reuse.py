"""Finished runs of other sweeps in place of equal ones: T5's baseline is a row of four tables."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from plm_jax import overrides
from plm_jax.ablate.here import resolved
from plm_jax.ablate.plan import PlannedRun, SweepPlan, has_trained, read_plan, workdir_of
from plm_jax.ablate.table import Table
from plm_jax.config_tree import is_within
from plm_jax.experiment import Experiment
from plm_jax.train.workdir import PLACE, read_config


def copies(
  out: Path,
  plan: SweepPlan,
  runs: list[PlannedRun],
  table: Table,
  sweeps: Sequence[str],
) -> Iterator[str]:
  """Copies trained runs of `sweeps` to the places of equal ones of `runs` that have not begun, and
  yields a line for each. A run that goes on from another is never copied.

  Runs are equal if all settings and the seed are, but for those that say where and how it runs. A
  copy is evaluated again if this sweep asks for other measurements. Errors: `UserError` for a
  folder that holds no sweep.
  """
  known = [run for folder in sweeps for run in _trained(Path(folder))]
  for run in runs:
    if plan.start_of(run) or workdir_of(out, run).exists():
      continue
    wanted, _ = resolved(plan, run, table.arm(run.arm))
    source = next((path for path, experiment in known if _equal(wanted, experiment)), None)
    if source is not None:
      _copy(source, workdir_of(out, run))
      yield f"{run} is a copy of {source}"


def _trained(folder: Path) -> list[tuple[Path, Experiment]]:
  """The directories and experiments of the trained runs of a sweep."""
  plan = read_plan(folder)
  paths = [workdir_of(folder, run) for run in plan.runs() if _is_trained(folder, plan, run)]
  return [(path, overrides.from_json(read_config(path)["experiment"])) for path in paths]


def _is_trained(folder: Path, plan: SweepPlan, run: PlannedRun) -> bool:
  return not plan.start_of(run) and has_trained(folder, run, plan.steps[run.arm])


def _equal(one: Experiment, other: Experiment) -> bool:
  return all(is_within(path, PLACE) for path, _, _ in overrides.diff(one, other))


def _copy(source: Path, target: Path) -> None:
  partial = target.with_name(f".{target.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(source, partial, ignore=shutil.ignore_patterns(".lock"))
  os.rename(partial, target)
