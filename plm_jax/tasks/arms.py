"""Fine-tuning of every arm with every number of labels and every seed, then their table.

It is the work of run_finetune.py and of `plm.finetune`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from plm_jax import cli, overrides
from plm_jax.errors import UserError
from plm_jax.notebook import grid
from plm_jax.peft.methods import METHODS, AnyPeft
from plm_jax.runs import RunInfo, refuse_counted
from plm_jax.tasks.comparison import (
  PROBE,
  TRAINED,
  Cell,
  Comparison,
  draw,
  mean_and_deviation,
  named,
  numbers_of_labels,
  table,
)
from plm_jax.tasks.examples import SPLITS
from plm_jax.tasks.finetuning import (
  REPORT,
  RESULTS,
  SAMPLE,
  FinetunePlan,
  baseline_cell,
  earlier_cells,
  identity,
  model_cell,
  plan,
  taught_by,
)
from plm_jax.tasks.probe import Probe
from plm_jax.tasks.search import searched
from plm_jax.tasks.suite import Suite, suite_table, tune_parts, with_suite_settings
from plm_jax.tasks.task import Task
from plm_jax.train import processes
from plm_jax.train.integrity import with_digest
from plm_jax.train.processes import say
from plm_jax.train.workdir import write_whole

FEW = 100  # test examples: with fewer a line warns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """The flags of run_finetune.py that choose cells and recipes; None is the command's default."""

  arms: str | None = None
  labels: str | None = None
  seeds: int | None = None
  search: bool = False
  teacher: str | None = None
  probe: bool = True
  peft: str | None = None

  @property
  def method(self) -> AnyPeft | None:
    """The method of parameter-efficient tuning. Errors: `UserError` for an unknown name."""
    if self.peft is not None and self.peft not in METHODS:
      raise UserError(f"--peft={self.peft} was given; expected one of {', '.join(METHODS)}")
    return METHODS[self.peft] if self.peft else None


class Scope(NamedTuple):
  """The cells of a fine-tuning."""

  arms: list[str]
  sizes: list[int | None]
  seeds: range


class FineTuning(NamedTuple):
  """The results in a directory. chance: metric -> score of the constant baseline. model: the
  directory of the fine-tuned model with the most labels and the first seed."""

  path: Path
  comparison: Comparison
  chance: dict[str, float]
  model: Path

  def __repr__(self) -> str:
    return table(self.comparison, self.chance)

  def _repr_html_(self) -> str:
    """The table, for notebooks."""
    comparison = self.comparison
    columns = [(labels, metric) for labels in comparison.labels for metric in comparison.metrics]
    header = ["arm", *(f"{named(metric)}, {labels} labels" for labels, metric in columns)]
    rows = [
      [name, *(mean_and_deviation(comparison.values(arm, *column)) for column in columns)]
      for arm, name in comparison.arms.items()
    ]
    constant = list(comparison.baselines.values())[-1]
    rows.append([constant, *(f"{self.chance[metric]:.3f}" for _, metric in columns)])
    return grid(header, rows)


class SuiteTuning(NamedTuple):
  """The results of a suite. text: its table. scores: part and metric -> arm and labels -> mean over
  seeds."""

  path: Path
  text: str
  scores: dict[str, dict[str, float]]

  def __repr__(self) -> str:
    return self.text

  def _repr_html_(self) -> str:
    """The table, for notebooks."""
    columns = list(dict.fromkeys(column for row in self.scores.values() for column in row))
    rows = [
      [name, *(f"{row[c]:.3f}" if c in row else "-" for c in columns)]
      for name, row in self.scores.items()
    ]
    return grid(["mean over seeds", *columns], rows)


def recipes() -> ModuleType:
  """The file of the default recipes."""
  return cli.load_module("experiments.finetune")


def finetune(
  source: RunInfo,
  start: Path,
  task: Task | Suite,
  settings: Sequence[str],
  options: Options,
  cache: Path,
  workdir: str | Path | None = None,
  dry_run: bool = False,
) -> FineTuning | SuiteTuning | None:
  """Trains and tests every cell, prints the table and writes results.*; continues what was stopped.

  start: the directory that the user named, which is `source.path` unless it is a published model.
  workdir: None is START/finetune/TASK, or runs/NAME/finetune/TASK for a published model. dry_run:
  shows the task and the configuration, trains nothing, and returns None.
  """
  refuse_counted(source)
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  if isinstance(task, Suite):
    return finetune_suite(source, start, task, list(settings), options, cache, workdir, dry_run)
  path = Path(workdir or source.path)
  chosen = planned(source, task, list(settings), cache, path, options)
  if options.teacher:
    chosen = chosen._replace(teacher=Path(options.teacher).absolute())
    taught_by(chosen)  # refuses a directory that is no run
  chosen = chosen._replace(search=options.search)
  if not workdir:
    extras = [name for name in ("search", "teacher") if getattr(options, name)]
    extras += [options.peft] if options.peft else []
    chosen = chosen._replace(path=finetunings(source, start) / "-".join([name_of(task), *extras]))
  scope = scope_of(chosen, options)
  experiments = [chosen.experiment(size, 0) for size in scope.sizes]  # refuses too few examples
  say(describe(chosen, scope))
  if not dry_run:
    return compare(chosen, scope, options)
  for experiment in experiments:
    say(f"\n{overrides.describe(experiment)}")
  return None


def planned(
  source: RunInfo, task: Task, settings: list[str], cache: Path, folder: Path, options: Options
) -> FinetunePlan:
  """The plan of the recipe; the first process prepares the text in the cache."""
  recipe = recipes().recipe
  if options.method is not None:
    recipe = functools.partial(recipe, peft=options.method)
  with processes.first_goes_first():
    return plan(source, recipe, task, settings, cache, folder, options.method)


def finetunings(source: RunInfo, start: Path) -> Path:
  """The folder of a model's fine-tunings: in its directory, or in runs/NAME for a published one."""
  name = start.name or start.resolve().name
  return (start if source.path == start else Path("runs") / name) / "finetune"


def finetune_suite(
  source: RunInfo,
  start: Path,
  suite: Suite,
  settings: list[str],
  options: Options,
  cache: Path,
  workdir: str | Path | None,
  dry_run: bool,
) -> SuiteTuning | None:
  """Every part as a task, then one table and what the suite makes of the models."""
  suite, settings = with_suite_settings(suite, settings)
  extras = [options.peft] if options.peft else []
  path = Path(workdir or finetunings(source, start) / "-".join([name_of(suite), *extras]))

  def tune(task: Task, folder: Path) -> list[Cell]:
    chosen = planned(source, task, settings, cache, folder, options)
    scope = scope_of(chosen, options)
    say(describe(chosen, scope))
    return [] if dry_run else compare(chosen, scope, options).comparison.cells

  with processes.first_goes_first():
    suite.chosen(cache)  # the first writes the files of TFDS's data sets
  results = tune_parts(suite, path, cache, tune)
  if dry_run:
    return None
  result = SuiteTuning(path, *suite_table(suite, results))
  if processes.is_first():
    print(f"\n=== {suite.name} ===\n{result.text}")
    write_whole(path / RESULTS, json.dumps(result.scores, indent=2) + "\n")
  say("\n".join(suite.finish(results, path, cache)))
  return result


def scope_of(chosen: FinetunePlan, options: Options) -> Scope:
  """The cells that the options ask for. Errors: `UserError` for options that name none."""
  document = chosen.source.document
  alone, untrained = "public" in document or options.peft, "untrained" in document
  default = "random" if untrained else "pretrained" if alone else ",".join(TRAINED)
  arms = list(dict.fromkeys((options.arms or default).split(",")))
  if untrained and (arms != ["random"] or options.peft):
    flag = f"--peft={options.peft}" if options.peft else f"--arms={options.arms}"
    raise UserError(
      f"{flag} was given, and --from names an experiment, whose model has random parameters; leave "
      "the flag out, or name a run that was trained"
    )
  if not (untrained or "pretrained" in arms) or not set(arms) <= set(TRAINED):
    raise UserError(f"--arms={options.arms} was given; expected pretrained or pretrained,random.")
  if options.peft and "random" in arms:
    raise UserError(
      f"--arms={options.arms} with --peft={options.peft} would freeze random parameters; leave "
      "random out"
    )
  compares = len(arms) > 1
  seeds = (3 if compares else 1) if options.seeds is None else options.seeds
  if seeds < 1:
    raise UserError(f"--seeds={seeds} was given; at least one seed is needed.")
  if seeds > 10_000:
    raise UserError(f"--seeds={seeds} was given; expected at most 10,000.")
  # A user's file may be small, and is for the best model rather than for a comparison.
  labels = options.labels or ("500,all" if compares and not chosen.task.place else "all")
  return Scope(arms, numbers_of_labels(labels, "labels"), range(seeds))


def name_of(task: Task | Suite) -> str:
  """The name of a task's directory: word_order, classify-reviews.csv."""
  place = re.sub(r"[^A-Za-z0-9_.-]+", "_", task.place)
  return f"{task.name}-{place}" if place else task.name


def describe(chosen: FinetunePlan, scope: Scope) -> str:
  """The task: classes, splits, what was decided, and the recipe."""
  task, splits = chosen.task, chosen.splits
  sizes = ", ".join(str(size or "all") for size in scope.sizes)
  count = len(scope.seeds)
  source = chosen.source
  lines = [
    f"{task.name} from {source.path}, {sizes} labels, {count} seed{'s' * (count > 1)}",
    f"{task.source}: {task.question}",
  ]
  if task.classes:
    lines.append("  " + ", ".join(task.classes))
  for name in SPLITS:
    examples = getattr(splits, name)
    documents = len(examples.documents)  # as many as the examples where the data name none
    sources = f" from {documents:,} documents" if documents < len(examples) else ""
    lines.append(f"  {name:6}{len(examples):7,} examples{sources}")
  if len(splits.test) < FEW:
    lines.append(f"  few test examples: each is {1 / len(splits.test):.1%} of the scores")
  lines += [f"  {note}" for note in splits.notes]
  if splits.left_out:
    why = "; ".join(f"{label} ({why})" for label, why in splits.left_out.items())
    lines.append(f"  left out: {why}")
  hashes = " ".join(getattr(splits, name).fingerprint()[:12] for name in SPLITS)
  lines.append(f"  sha256 of {', '.join(SPLITS)}: {hashes}")
  for size in scope.sizes:
    defaults = recipes().rule(chosen.source, size or len(splits.train), chosen.peft)
    if "classes" not in task.objective().heads:
      defaults = defaults._replace(classifier=None)
    lines.append(f"  defaults for {size or 'all'} labels: {defaults}")
  lines += [f"  --set={setting}" for setting in chosen.settings]
  experiment = chosen.experiment(scope.sizes[0], 0)
  if experiment.peft is not None:
    shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
    lines.append(f"  {shapes.share()}")
  return "\n".join(lines)


def compare(chosen: FinetunePlan, scope: Scope, options: Options) -> FineTuning:
  """Every cell, then the table and results.*, with the directory's earlier cells. The first process
  alone computes the baselines and writes."""
  begun = time.perf_counter()
  cells = {cell[:3]: cell for cell in earlier_cells(chosen)}
  fitted = list(chosen.task.baselines)[:-1]
  probe = Probe(chosen.source, chosen.task)
  if options.probe and "untrained" not in chosen.source.document and probe.fits(chosen.splits):
    fitted.append(PROBE)
  used = {}
  for size in scope.sizes:
    known: dict[str, Cell] = {}  # with all labels every seed has the same examples
    best = chosen
    if options.search:
      best, tried = searched(chosen, size, recipes().grid(chosen.source, chosen.peft))
      say(tried)
    used[str(size or "all")] = overrides.to_json(best.experiment(size, 0))
    for seed in scope.seeds:
      for arm in (*scope.arms, *fitted):
        start = time.perf_counter()
        title = f"{arm}, {size or 'all'} labels, seed {seed}"
        if arm in chosen.task.baselines and not processes.is_first():
          continue
        if arm in fitted:
          cell = known.get(arm) or fitted_cell(chosen, probe, arm, size, seed)
          cell = cell._replace(seed=seed)
          known |= {arm: cell} if size is None else {}
        else:
          cell = model_cell(best, arm, size, seed, title)
        cells[cell[:3]] = cell
        shown = ", ".join(f"{named(m)} {cell.test[m]:.3f}" for m in chosen.task.metrics)
        say(f"{title:36} {shown}  ({time.perf_counter() - start:.0f} s)")
  constant = list(chosen.task.baselines)[-1]
  main = next(arm for arm in TRAINED if arm in scope.arms)
  result = FineTuning(
    chosen.path,
    Comparison.of(cells.values(), chosen.task),
    baseline_cell(chosen, constant, None, 0).test,
    chosen.path / f"{main}-{scope.sizes[-1] or 'all'}-{scope.seeds[0]}",
  )
  record = {"of": identity(chosen), "recipes": used}  # all processes look for the checkpoint
  if processes.is_first():
    write_results(result, record, len(scope.arms) == 1)
    print(goodbye(result, chosen.task, time.perf_counter() - begun))
  return result


def fitted_cell(chosen: FinetunePlan, probe: Probe, arm: str, size: int | None, seed: int) -> Cell:
  """A baseline that is fitted to the training examples."""
  if arm == PROBE:
    return probe.cell(chosen.splits.few(size, seed), str(size or "all"), seed)
  return baseline_cell(chosen, arm, size, seed)


def write_results(result: FineTuning, record: dict[str, Any], is_alone: bool) -> None:
  """Prints the table and writes results.*. record: of what the results are, and the experiment of
  seed 0 for each number of labels. is_alone: whether there is one arm, whose details are printed
  too."""
  print(result)
  document = record | result.comparison.record()
  write_whole(result.path / RESULTS, with_digest(document))
  draw(result.comparison, result.path / "results.png", result.chance)
  for name in (*([REPORT] if is_alone else []), SAMPLE):
    with contextlib.suppress(FileNotFoundError):  # of a version without it
      print(f"\n{(result.model / name).read_text().rstrip()}")


def goodbye(result: FineTuning, task: Task, seconds: float) -> str:
  """The time, the files, and a command to try next."""
  files = " or ".join(task.files)
  like = f"{task.line}; or FILE is a {files} file like the training file" if files else task.line
  if task.command == "encode":
    like = f"a text; python -m plm_jax.search --model={result.model} --file=FILE finds the nearest"
  return (
    f"\n{seconds:.0f} s of training and testing\n"
    f"{result.path}/results.png shows the table; {RESULTS} has every number\n"
    f"next: python -m plm_jax.{task.command} --model={result.model} --file=FILE\n"
    f"each line of FILE is {like}"
  )
