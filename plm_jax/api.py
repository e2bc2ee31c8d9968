"""The Python interface: `import plm_jax as plm`.

    model = plm.load("runs/bert_tiny")
    model.fill_mask("the [MASK] of the file")

Each function does the work of the command of its name; flags are its keywords. Errors are
`plm_jax.errors.UserError` with the command's sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plm_jax import cli, notebook, overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.reporting import report as write_report
from plm_jax.ablate.sweeping import Sweep
from plm_jax.ablate.sweeping import sweep as run_sweep
from plm_jax.ablate.table import Table
from plm_jax.ablate.verdict import Verdict
from plm_jax.arguments import checked
from plm_jax.budgets import AnyBudget
from plm_jax.data.corpora import cache_folder, default_cache
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.export.to_run import run_directory
from plm_jax.loaded_model import LoadedModel
from plm_jax.pretraining import pretrain as run_pretraining
from plm_jax.runs import Run, RunInfo
from plm_jax.tasks import arms as fine_tuning
from plm_jax.tasks.registry import chosen_task, task_class
from plm_jax.tasks.suite import Suite
from plm_jax.tasks.task import Task
from plm_jax.tasks.untrained import is_experiment, untrained_run
from plm_jax.train import processes
from plm_jax.train.process import keep_compilations
from plm_jax.train.report import heading
from plm_jax.train.workdir import Workdir

Settings = Mapping[str, Any] | Sequence[str]
"""{"optim.peak": 1e-3}, or ["optim.peak=1e-3"] as after --set."""


@checked
def load(path: str | Path | LoadedModel, task: str | None = None) -> LoadedModel:
  """The model of a directory: of a run, a fine-tuned run, or a published model as it was
  downloaded. task: "FILE:CLASS" of the task, if it is one of your own. Errors: `UserError` if the
  directory is none of them."""
  if isinstance(path, LoadedModel):
    return path
  if task is not None:
    task_class(task)  # imports its file
  keep_compilations(default_cache())
  source = Path(path)
  return LoadedModel(Run.load(run_directory(source)), source)


@checked
def pretrain(
  experiment: str | Experiment | None = None,
  *,
  budget: AnyBudget | None = None,
  settings: Settings = (),
  seed: int | None = None,
  start: str | Path | None = None,
  workdir: str | Path | None = None,
  cache: str | Path | None = None,
) -> LoadedModel:
  """Pretrains a model, prints its report and loads it; continues a run that was stopped.

  experiment: "FILE:FUNCTION", or an `Experiment` made in a cell, which has its own size; None is
  that of `start`, or "experiments/bert.py:tiny". budget: of a "FILE:FUNCTION"; None is small.
  settings: {"steps": 20, "optim.peak": 1e-3}. start: a run, or a published model, to go on from.
  workdir: None is runs/FILE_FUNCTION[_BUDGET], or runs/experiment. cache: None is
  ~/.cache/plm_jax.
  """
  if budget is not None and isinstance(experiment, Experiment):
    raise UserError(
      f"budget={budget!r} was given, and an Experiment has its own size; leave it out."
    )
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  folder = cache_folder(None if cache is None else str(cache))
  keep_compilations(folder)
  source = None if start is None else RunInfo.read(run_directory(start, folder))
  chosen, record = chosen_experiment(
    experiment, "experiments/bert.py:tiny", budget or "small", as_settings(settings), seed, source
  )
  chosen.check_trains()
  print(heading(record, chosen))
  with Workdir(workdir or Path("runs") / record["name"]) as opened:
    opened.check_same_experiment(chosen, record)
    run_pretraining(chosen, record, opened, folder, source, sinks=notebook.live_sinks())
    return load(opened.path)


@checked
def finetune(
  model: str | Path | LoadedModel,
  task: str | Task | Suite | type[Task] | None = None,
  data: str | Path | None = None,
  *,
  dev: str | Path | None = None,
  test: str | Path | None = None,
  labels: str | int | Sequence[int | str] | None = None,
  seeds: int | None = None,
  arms: str | Sequence[str] | None = None,
  settings: Settings = (),
  search: bool = False,
  teacher: str | Path | None = None,
  probe: bool = True,
  peft: str | None = None,
  workdir: str | Path | None = None,
  cache: str | Path | None = None,
  dry_run: bool = False,
) -> fine_tuning.FineTuning | fine_tuning.SuiteTuning | None:
  """Fine-tunes a model on a task, prints the table and returns it; continues what was stopped.

  model: a run, a published model, or "FILE:FUNCTION", an experiment whose model starts from random
  parameters. task: its name, or one of your own (FILE:CLASS, or the class
  of a cell); None is what the data suggest. labels: numbers of training examples, such as
  [500, "all"]. The other arguments are the flags of run_finetune.py, and so are the defaults. None
  is returned by dry_run only.
  """
  folder = cache_folder(None if cache is None else str(cache))
  keep_compilations(folder)
  files = {"dev": dev, "test": test}
  every = [f"task.{name}={path}" for name, path in files.items() if path] + as_settings(settings)
  sources = [s.partition("=")[2] for s in every if s.startswith(("task.source=", "data.source="))]
  place = next(reversed(sources), None) if data is None else str(data)
  chosen = chosen_task(task, place)
  if isinstance(model, LoadedModel):
    start = model.path
  elif is_experiment(model):
    cli.load_module("data.installed_text")  # makes tfds:installed_text known
    start = untrained_run(str(model), chosen, every, folder)
  else:
    start = Path(model)
  with processes.first_goes_first():
    source = RunInfo.read(run_directory(start, folder))
  options = fine_tuning.Options(
    arms=_words("arms", arms),
    labels=_words("labels", labels),
    seeds=seeds,
    search=search,
    teacher=None if teacher is None else str(teacher),
    probe=probe,
    peft=peft,
  )
  return fine_tuning.finetune(source, start, chosen, every, options, folder, workdir, dry_run)


@checked
def sweep(
  table: str | Table | Callable[[], Table],
  *,
  budget: AnyBudget = "small",
  seeds: int = 3,
  arms: str | Sequence[str] = (),
  settings: Settings = (),
  jobs: int = 1,
  out: str | Path | None = None,
  blimp: str | Path | None = None,
  blimp_pairs: int | None = None,
  finetune: str | int | Sequence[int | str] | None = None,
  reuse: Sequence[str | Path] = (),
  cache: str | Path | None = None,
) -> Sweep:
  """Runs every arm of a table with every seed, and measures it; continues what was stopped.

  table: "FILE:FUNCTION", the function, or a table made in a cell, whose arms may be `Experiment`s.
  jobs: 1 runs all in this process; more are that many processes at a time. The other arguments are
  the flags of `python -m plm_jax.sweep`.
  """
  keep_compilations(cache_folder(None if cache is None else str(cache)))
  return run_sweep(
    table,
    out,
    arms=arms.split(",") if isinstance(arms, str) else arms,
    jobs=jobs,
    inline=True,
    budget=budget,
    seeds=seeds,
    settings=as_settings(settings),
    reuse=[str(folder) for folder in reuse],
    blimp=None if blimp is None else str(blimp),
    blimp_pairs=blimp_pairs,
    finetune=_words("finetune", finetune),
    cache=None if cache is None else str(cache),
  )


@checked
def report(sweep: str | Path | Sweep, to: str | Path | None = None) -> Report:
  """Writes the report of a sweep, given by its directory or as the result of `sweep`. to: None is
  DIR/report."""
  is_result = isinstance(sweep, Sweep)
  place, table = (sweep.out, sweep.table) if is_result else (sweep, None)
  return Report(*write_report(place, to, table))


def as_settings(settings: Settings) -> list[str]:
  """The settings as words of `--set`."""
  if isinstance(settings, str):
    return [settings]
  if isinstance(settings, Mapping):
    return [f"{field}={overrides.show(value)}" for field, value in settings.items()]
  return list(settings)


def _words(name: str, values: Any) -> str | None:
  """The value of a flag that takes words with commas between them. Errors: `UserError` for none."""
  is_list = isinstance(values, Sequence) and not isinstance(values, str)
  if is_list and not values:
    raise UserError(f"{name}={values!r} was given; expected one value at least, or leave it out.")
  return ",".join(map(str, values)) if is_list else None if values is None else str(values)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
  """The report of a sweep. files: report.md, report.html, results.json and the pictures."""

  measured: Measured
  files: list[Path]

  @property
  def verdicts(self) -> list[Verdict]:
    return self.measured.verdicts

  @property
  def scores(self) -> Mapping[str, Mapping[int, Mapping[str, float]]]:
    """arm -> seed -> metric -> value."""
    return self.measured.scores

  def __repr__(self) -> str:
    lines = [f"{verdict.outcome:14} {verdict.claim}" for verdict in self.verdicts]
    if self.measured.plan.budget == "smoke":
      lines.append("at the budget smoke: verdicts mean nothing, they show that everything runs")
    return "\n".join([f"{self.measured.table.title}: {self.files[0]}", *lines])

  def _repr_html_(self) -> str:
    (page,) = (path for path in self.files if path.suffix == ".html")
    return notebook.frame(page.read_text())
