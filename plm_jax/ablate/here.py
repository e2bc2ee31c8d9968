"""The runs of a sweep in this process, one after the other.

This is for runs of seconds, where starting two processes takes longer than the run, and for
experiments that only this process has (made in a notebook's cell). The files are those of
plm_jax/ablate/launch.py.
"""

import json
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from plm_jax import notebook
from plm_jax.ablate.evaluating import evaluate
from plm_jax.ablate.launch import failure
from plm_jax.ablate.plan import (
  CELL,
  PlannedRun,
  SweepPlan,
  begin_attempt,
  failure_of,
  has_trained,
  is_done,
  log_of,
  workdir_of,
)
from plm_jax.ablate.table import Arm, Table
from plm_jax.ablate.view import View
from plm_jax.budgets import of_rows
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.pretraining import pretrain
from plm_jax.runs import Run, RunInfo
from plm_jax.train.metrics import Sink
from plm_jax.train.workdir import Workdir, read_records, write_whole


def run_here(out: Path, plan: SweepPlan, runs: list[PlannedRun], table: Table) -> list[PlannedRun]:
  """Runs them all; returns those that failed. An interrupted run has saved its state."""
  failed = []
  curves = live_curves(out, plan) if runs and notebook.in_notebook() else None
  with View(out, plan, runs, 1) as view:
    for run in runs:
      view.started(run)
      sinks = [curves.sink(*run)] if curves else []
      code = perform(out, plan, run, table.arm(run.arm), sinks)
      view.ended(run, code)
      if code:
        failed.append(run)
        view.say(failure(out, run, code))
  return failed


def live_curves(out: Path, plan: SweepPlan) -> notebook.LiveArms:
  """The picture in a notebook, with the runs of earlier calls."""
  return notebook.LiveArms(
    (*run, read_records(workdir_of(out, run) / "metrics.jsonl")) for run in plan.runs()
  )


def check_unchanged(out: Path, plan: SweepPlan, runs: list[PlannedRun], table: Table) -> None:
  """A `UserError` if the directory of a run holds another experiment than its arm has now."""
  for run in runs:
    if (workdir_of(out, run) / "config.json").exists():
      with Workdir(workdir_of(out, run)) as workdir:
        try:
          source = start_of(out, plan, run)
          workdir.check_same_experiment(*resolved(plan, run, table.arm(run.arm), source))
        except UserError as error:
          raise UserError(str(error).replace("another --workdir", "another `out`")) from None


def perform(
  out: Path, plan: SweepPlan, run: PlannedRun, arm: Arm, sinks: Sequence[Sink] = ()
) -> int:
  """Pretrains and evaluates a run; its prints go to its log. sinks: further destinations of its
  records. Returns 0, or the exit code that the command would have."""
  begin_attempt(out, run)
  step, code = "pretraining", 0
  with open(log_of(out, run), "a") as log, redirect_stdout(log), ExitStack() as stack:
    if plan.budget == "smoke":  # others show their progress bar
      stack.enter_context(redirect_stderr(log))
    try:
      if not has_trained(out, run, plan.steps[run.arm]):
        train(out, plan, run, arm, sinks)
      step = "evaluation"
      if not is_done(out, run, plan):
        evaluate(Run.load(workdir_of(out, run)), plan.evaluation, cache_folder(plan.cache))
    except UserError as error:
      print(f"error: {error}")
      code = 2
    except Exception:  # a bug of ours, or of the user's own experiment, ends one run only
      traceback.print_exc(file=log)
      code = 1
  if code:
    why = {"step": step, "code": code, "why": f"{step} ended with exit code {code}"}
    write_whole(failure_of(out, run), json.dumps(why) + "\n")
  return code


def train(
  out: Path, plan: SweepPlan, run: PlannedRun, arm: Arm, sinks: Sequence[Sink] = ()
) -> None:
  """The work of run_pretrain.py with the flags of `SweepPlan.commands`."""
  source = start_of(out, plan, run)
  experiment, record = resolved(plan, run, arm, source)
  experiment.check_trains()
  with Workdir(workdir_of(out, run)) as workdir:
    workdir.check_same_experiment(experiment, record)
    pretrain(experiment, record, workdir, cache_folder(plan.cache), source, sinks=sinks)


def start_of(out: Path, plan: SweepPlan, run: PlannedRun) -> RunInfo | None:
  """The run that a run goes on from. Errors: `UserError` if it has not begun."""
  start = plan.start_of(run)
  return None if start is None else RunInfo.read(workdir_of(out, start))


def resolved(
  plan: SweepPlan, run: PlannedRun, arm: Arm, source: RunInfo | None = None
) -> tuple[Experiment, dict[str, Any]]:
  """The experiment of a run, and its record for config.json. source: the run that it goes on
  from."""
  reference = plan.references[run.arm]
  row = arm.experiment(of_rows(plan.budget)) if reference == CELL else reference
  return chosen_experiment(row, "", plan.budget, plan.settings_of(run), run.seed, source)
