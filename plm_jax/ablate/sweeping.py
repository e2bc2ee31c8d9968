"""A paper's table, run: every arm with every seed, pretraining and then evaluation.

    sweep("experiments/bert.py:table_6", budget="smoke")

The same call resumes a stopped or killed sweep. `python -m plm_jax.sweep` is the command.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax import cli
from plm_jax.ablate import launch
from plm_jax.ablate.gathering import gather
from plm_jax.ablate.here import check_unchanged, run_here
from plm_jax.ablate.plan import (
  PlannedRun,
  RunState,
  SweepPlan,
  claim,
  has_trained,
  is_done,
  read_plan,
  state_of,
)
from plm_jax.ablate.planned import arms_of, default_out, heading, planned, time_needed
from plm_jax.ablate.power import outlook
from plm_jax.ablate.reuse import copies
from plm_jax.ablate.table import Table
from plm_jax.ablate.view import line
from plm_jax.data.corpora import cache_folder
from plm_jax.data.mixture import prepare_each
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.notebook import grid
from plm_jax.runs import teacher_of
from plm_jax.train.workdir import lock


class Sweep(NamedTuple):
  """A sweep in the directory `out`. runs: those that this call was asked for. failed: None if they
  were only submitted, or shown."""

  out: Path
  table: Table
  plan: SweepPlan
  runs: list[PlannedRun]
  failed: list[PlannedRun] | None

  @property
  def states(self) -> dict[PlannedRun, RunState]:
    return {run: state_of(self.out, run, self.plan) for run in self.runs}

  @property
  def summary(self) -> str:
    """How many runs are done, and the next command."""
    done = sum(is_done(self.out, run, self.plan) for run in self.runs)
    lines = [f"\n{done} of {len(self.runs)} runs are done"]
    if done and not self.plan.is_of_cell:
      lines.append(f"next: python -m plm_jax.report {shlex.quote(str(self.out))}")
    return "\n".join(lines)

  def __repr__(self) -> str:
    steps = self.plan.steps
    return "\n".join(line(run, state, steps[run.arm]) for run, state in self.states.items())

  def _repr_html_(self) -> str:
    """A table of the runs, for notebooks."""
    rows = (
      (str(run), state.phase, f"{state.step:,}", "" if state.loss is None else f"{state.loss:.4f}")
      for run, state in self.states.items()
    )
    return grid(("run", "state", "step", "loss"), rows)


def sweep(
  table: str | Table | Callable[[], Table] | None,
  out: str | Path | None = None,
  *,
  arms: Sequence[str] = (),
  jobs: int = 1,
  launcher: str = "local",
  inline: bool = False,
  dry_run: bool = False,
  reuse: Sequence[str] = (),
  **options: Any,
) -> Sweep:
  """Runs the arms that are not done yet, and prints the progress.

  options: further arguments of `planned`. out: None is sweeps/FILE_FUNCTION_BUDGET. arms: default
  all. inline: whether the runs share this process, one after the other. dry_run: only shows the
  commands. reuse: sweeps whose trained runs are copied where this one has equal ones. Errors:
  `UserError` for values with which no arm can be run.
  """
  rows, plan, experiments = planned(table, jobs=jobs, arms=arms, **options)
  inline = inline and jobs == 1 and launcher == "local"
  if plan.is_of_cell and not inline:
    raise UserError(
      f"{rows.title!r} was made in this process, so no other process can run its arms: leave jobs "
      "and launcher out, or write the table and its rows into a file"
    )
  for folder in reuse:
    read_plan(Path(folder))
  out, names = Path(out or default_out(plan)), arms_of(rows, arms)
  print(heading(rows, plan, experiments, plan.runs(names), out), flush=True)
  if time := time_needed(rows, plan, plan.runs(names), experiments):
    print(time, flush=True)
  if dry_run:
    for run in plan.runs(names):
      print("", *plan.shown(out, run), sep="\n")
    return Sweep(out, rows, plan, plan.runs(names), None)
  if plan.starts and launcher in ("ray", "slurm"):
    raise UserError(
      f"--launcher={launcher} starts runs in any order, and {next(iter(plan.starts))} needs a "
      "finished run of another arm; leave --launcher out"
    )
  if launcher == "ray":
    launch.import_ray()  # before any text is prepared
  with lock(out, "sweep", "--out"):
    plan = claim(out, plan)
    made = Sweep(out, rows, plan, plan.runs(names), None)
    runs = runs_left(made, experiments)
    for copied in copies(out, plan, runs, rows, reuse, cache_folder(plan.cache)):
      print(copied, flush=True)
    runs = [run for run in runs if not is_done(out, run, plan)]
    if runs and len(runs) < len(made.runs):
      show_outlook(made)
    if inline:
      made = made._replace(failed=run_here(out, plan, runs, rows))
    else:
      made = made._replace(failed=launch.LAUNCHERS[launcher](out, plan, runs, jobs) if runs else [])
  if made.failed is not None:  # else the runs were handed over
    print(made.summary)
    show_outlook(made)
  return made


def show_outlook(made: Sweep) -> None:
  """Prints what the seeds of a sweep could see, once two of them are measured."""
  for text in outlook(made.table, gather(made.out, made.table).scores, made.plan.seeds):
    print(text, flush=True)


def runs_left(made: Sweep, experiments: dict[str, Experiment]) -> list[PlannedRun]:
  """The runs that are not done, after their texts were prepared. Errors: `UserError` for an arm
  that was edited in its cell, and for a missing teacher."""
  out, plan = made.out, made.plan
  if plan.is_of_cell:
    check_unchanged(out, plan, made.runs, made.table)
  runs = [run for run in made.runs if not is_done(out, run, plan)]
  order = list(plan.references)
  runs.sort(key=lambda run: (run.seed, order.index(run.arm)))  # an arm goes on from an earlier one
  for run in runs:
    start = plan.start_of(run)
    if start and start not in runs and not has_trained(out, start, plan.steps.get(start.arm, -1)):
      raise UserError(
        f"{run} goes on from {start}, which is not trained here; add {start.arm} to --arms"
      )
  for arm in {run.arm for run in runs}:
    teacher_of(experiments[arm], plan.budget)
  prepare_texts([experiments[run.arm] for run in runs], cache_folder(plan.cache))
  return runs


def prepare_texts(experiments: list[Experiment], cache: Path) -> None:
  """Reads, tokenises and stores every text once, before the runs start."""
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  texts = {repr((e.data.source, e.data.tokenizer, e.data.held_out)): e for e in experiments}
  for experiment in texts.values():
    prepare_each(experiment.data, cache)
