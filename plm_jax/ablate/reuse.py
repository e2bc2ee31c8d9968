"""Finished runs of other sweeps in place of equal ones: T5's baseline is a row of four tables."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plm_jax import overrides
from plm_jax.ablate.here import resolved
from plm_jax.ablate.plan import PlannedRun, SweepPlan, has_trained, read_plan, workdir_of
from plm_jax.ablate.table import Table
from plm_jax.config_tree import is_within
from plm_jax.data.mixture import prepare_each
from plm_jax.experiment import Experiment
from plm_jax.pretraining import text_record
from plm_jax.train.workdir import read_config

PLACE = ("mesh", "data.workers")  # fields in which equal runs may differ


def copies(
  out: Path,
  plan: SweepPlan,
  runs: list[PlannedRun],
  table: Table,
  sweeps: Sequence[str],
  cache: Path,
) -> Iterator[str]:
  """Copies trained runs of `sweeps` to the places of equal ones of `runs` that have not begun, and
  yields a line for each. A run that goes on from another is never copied.

  Runs are equal if their settings, seed and text are; mesh and data.workers may differ. A copy is
  evaluated again if this sweep asks for other measurements. cache: of prepared text.
  """
  known = [run for folder in sweeps for run in _trained(Path(folder))]
  for run in runs:
    if plan.start_of(run) or workdir_of(out, run).exists():
      continue
    wanted, _ = resolved(plan, run, table.arm(run.arm))
    for path, document in known:
      if _equal(wanted, document, cache):
        _copy(path, workdir_of(out, run))
        yield f"{run} is a copy of {path}"
        break


def _trained(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
  """The directories of the trained runs of a sweep, and what their config.json holds."""
  plan = read_plan(folder)
  paths = [workdir_of(folder, run) for run in plan.runs() if _is_trained(folder, plan, run)]
  return [(path, read_config(path)) for path in paths]


def _is_trained(folder: Path, plan: SweepPlan, run: PlannedRun) -> bool:
  return not plan.start_of(run) and has_trained(folder, run, plan.steps[run.arm])


def _equal(wanted: Experiment, document: dict[str, Any], cache: Path) -> bool:
  before = overrides.from_json(document["experiment"])
  if not all(is_within(path, PLACE) for path, _, _ in overrides.diff(wanted, before)):
    return False
  return text_record(prepare_each(wanted.data, cache)) == document.get("text")


def _copy(source: Path, target: Path) -> None:
  partial = target.with_name(f".{target.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(source, partial, ignore=shutil.ignore_patterns(".lock", "finetune*"))
  os.rename(partial, target)
