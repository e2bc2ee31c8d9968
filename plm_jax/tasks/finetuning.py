"""Fine-tunes a checkpoint on a labelled task: one cell (arm, labels, seed) of the comparison.

Every cell of a model is an `Experiment` with a separate working directory, trained by the same
`fit` as pretraining: a stopped one continues, and a finished one is not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax import overrides
from plm_jax.aliases import fields_named
from plm_jax.data.pipeline import iterate
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import with_tokenizer
from plm_jax.files import read_json
from plm_jax.peft.methods import AnyPeft
from plm_jax.runs import RunInfo, base_record, initial_record, restored_onto
from plm_jax.tasks.augmentation import AugmentedBatches
from plm_jax.tasks.class_order import HEADS, in_order, stored_classes
from plm_jax.tasks.classification import TEACHER
from plm_jax.tasks.comparison import Cell
from plm_jax.tasks.examples import Examples, Splits
from plm_jax.tasks.mixture import MixedBatches
from plm_jax.tasks.packed_rows import check_packing
from plm_jax.tasks.predicting import TASK, load
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.sample_predictions import sample_predictions
from plm_jax.tasks.task import Context, Task, Trained, with_settings
from plm_jax.train.checkpoint import newest
from plm_jax.train.integrity import with_digest, without_digest
from plm_jax.train.loop import Data, compile_experiment, fit
from plm_jax.train.memory import give_back_memory
from plm_jax.train.process import versions
from plm_jax.train.processes import is_first
from plm_jax.train.selection import Selection
from plm_jax.train.spikes import batches_until
from plm_jax.train.step import together
from plm_jax.train.workdir import Workdir, write_whole

SCORES, RESULTS, REPORT = "scores.json", "results.json", "report.txt"
SAMPLE = "examples.txt"


class FinetunePlan(NamedTuple):
  """The settings that all cells share. recipe: (source, task, examples) -> Experiment. found:
  settings that --search chose, before the user's. teacher: a fine-tuned run for distillation.
  search: whether the recipe of these results was chosen by a search. peft: of --peft."""

  source: RunInfo
  recipe: Callable[..., Experiment]
  settings: list[str]
  task: Task
  splits: Splits
  path: Path
  found: tuple[str, ...] = ()
  teacher: Path | None = None
  search: bool = False
  peft: AnyPeft | None = None

  def experiment(self, examples: int | None, seed: int) -> Experiment:
    """The experiment of both model arms. Errors: `UserError` if the task has fewer examples."""
    train = self.splits.few(examples, seed).train
    count = len(train)
    experiment = self.recipe(self.source, self.task, count)
    chosen = [*self.found, *_settings(self.settings, of_task=False)]
    experiment = _with_recipe(experiment, chosen)
    objectives = tuple(
      o.balancing(train.targets["label"]) if getattr(o, "balanced", False) else o
      for o in experiment.objectives
    )
    experiment = dataclasses.replace(experiment, objectives=objectives)
    places = [setting.replace("task.", "data.", 1) for setting in self.settings]
    experiment = with_tokenizer(experiment, self.source, places)
    task: Any = experiment.data
    data, tuning = dataclasses.replace(task, examples=examples), experiment.tuning
    if tuning.patience and not tuning.every:
      epoch = max(1, min(count // experiment.global_batch, experiment.steps))
      tuning = dataclasses.replace(tuning, every=epoch)
    return dataclasses.replace(experiment, data=data, tuning=tuning, seed=seed)


def _with_recipe(experiment: Experiment, settings: list[str]) -> Experiment:
  """The experiment with the user's settings. A warmup that only the recipe names and that is longer
  than the user's steps becomes a tenth of them."""
  if any(setting.startswith("optim.warmup=") for setting in settings):
    return overrides.apply(experiment, settings)
  short = dataclasses.replace(experiment, optim=dataclasses.replace(experiment.optim, warmup=1))
  chosen, warmup = overrides.apply(short, settings), experiment.optim.warmup
  warmup = warmup if warmup <= chosen.steps else max(1, chosen.steps // 10)
  return dataclasses.replace(chosen, optim=dataclasses.replace(chosen.optim, warmup=warmup))


def plan(
  source: RunInfo,
  recipe: Callable[..., Experiment],
  task: Task,
  settings: list[str],
  cache: Path,
  path: Path,
  peft: AnyPeft | None = None,
) -> FinetunePlan:
  """Reads the task's data. Errors: `UserError` for settings or data that make no task."""
  settings = _as_of_task(settings)
  elsewhere = {"task.examples": "--labels", "seed": "--seeds"}
  if getattr(task, "labels", None) == ():  # a task that writes takes them
    elsewhere["task.labels"] = "the training file"
  for name, flag in elsewhere.items():
    if ignored := [s for s in settings if s.partition("=")[0].strip() == name]:
      raise UserError(f"--set={ignored[-1]} would have no effect: {flag} sets it for all runs.")
  task = with_settings(task, _settings(settings, of_task=True))
  task, splits = task.read(Context(source, cache))
  made = FinetunePlan(source, recipe, settings, task, splits, path, peft=peft)
  experiment = made.experiment(None, 0)  # refuses other settings
  if getattr(task, "packed", False):
    check_packing(experiment)
  if experiment.global_batch % (group := together(experiment.objectives)):
    raise UserError(
      f"global_batch={experiment.global_batch} must be a multiple of the {group} rows of an example"
    )
  return made


def task_settings(settings: Sequence[str]) -> list[str]:
  """Those of the task, "task.FIELD=VALUE"."""
  return _settings(_as_of_task(settings), of_task=True)


def _as_of_task(settings: Sequence[str]) -> list[str]:
  """The settings with "task." for "data."."""
  return [
    setting.replace("data.", "task.", 1) if setting.startswith("data.") else setting
    for setting in settings
  ]


def _settings(settings: list[str], of_task: bool) -> list[str]:
  """Those of the task, or the others. Names of other libraries for its fields, such as max_length,
  are among the former, so that the error has the field."""

  def is_of_task(setting: str) -> bool:
    name = setting.partition("=")[0].strip()
    return any(field.startswith("task.") for field in (name, *fields_named(name)))

  return [setting for setting in settings if is_of_task(setting) == of_task]


def identity(plan: FinetunePlan) -> dict[str, Any]:
  """The settings that all results in one directory share; labels and seeds may differ."""
  return {
    "checkpoint": checkpoint_record(plan.source),
    "task": plan.task.name,
    "text": plan.splits.record(),
    "settings": sorted(plan.settings),
    **({"taught_by": taught_by(plan)} if plan.teacher else {}),
    **({"search": True} if plan.search else {}),
    **({"peft": overrides.show(plan.peft)} if plan.peft else {}),
  }


def taught_by(plan: FinetunePlan) -> dict[str, Any] | None:
  """The record of the teacher of a distillation; None without one."""
  return checkpoint_record(RunInfo.read(plan.teacher)) if plan.teacher else None


def earlier_cells(plan: FinetunePlan) -> list[Cell]:
  """The cells that earlier commands left in this directory, with these or other labels and seeds.
  Errors: `UserError` if it holds results of another comparison."""
  path = plan.path / RESULTS
  if not path.exists():
    return []
  try:
    document = read_json(path)
    before, now = document.get("of"), identity(plan)
    if before == now or _canonical(before) == _canonical(now):
      return [Cell.of(cell) for cell in document["cells"]]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(f"{path} cannot be read ({error}); choose another --workdir") from error
  names = {"text": "data", "settings": "--set", "taught_by": "--teacher", "search": "--search"}
  before, now = _canonical(before or {}), _canonical(now)
  field = next(name for name in [*now, *before] if now.get(name) != before.get(name))
  raise UserError(
    f"{path} has results of another fine-tuning: {names.get(field, field)} "
    f"{_difference(before.get(field), now.get(field))}; choose another --workdir"
  )


def _canonical(of: dict[str, Any]) -> dict[str, Any]:
  """An identity with its settings in one spelling."""
  return of | {"settings": sorted(overrides.canonical(of.get("settings", [])))}


def _difference(before: Any, now: Any) -> str:
  """What differs, for a sentence; long records are only said to differ."""
  if isinstance(before, list) and isinstance(now, list):
    before, now = ([x for x in one if x not in two] for one, two in ((before, now), (now, before)))
    return f"is {' '.join(before) or 'nothing'} there and {' '.join(now) or 'nothing'} here"
  if isinstance(before, str) and isinstance(now, str):
    return f"is {before} there and {now} here"
  return "differs"


def model_cell(plan: FinetunePlan, arm: str, examples: int | None, seed: int, title: str) -> Cell:
  """Trains and tests one arm ("pretrained" or "random"), or reads its stored scores."""
  experiment = plan.experiment(examples, seed)
  labels = str(examples or "all")
  record = {
    "name": f"{arm}-{labels}-{seed}",
    "reference": "run_finetune.py",
    "arm": arm,
    "classes": list(plan.task.classes),
    "initial": checkpoint_record(plan.source) if arm == "pretrained" else None,
    "text": plan.splits.few(examples, seed).record(),
    "command": sys.argv,
    "versions": versions(),
    "taught_by": taught_by(plan),
    **({"base": base_record(plan.source)} if experiment.peft else {}),
  }
  with Workdir(plan.path / record["name"]) as workdir:
    workdir.check_same_experiment(experiment, record)
    if cell := _finished(workdir / SCORES, arm, labels, seed):
      return cell
    workdir.write_config(experiment, record)
    if is_first():
      plan.source.tokenizer.save(workdir / "tokenizer")
    dev, test = _train_and_test(plan, arm, experiment, workdir, title)
    give_back_memory()
    cell = Cell(arm, labels, seed, test, dev)
    if is_first():
      write_whole(workdir / SCORES, with_digest(cell._asdict()))
    return cell


def _finished(path: Path, arm: str, labels: str, seed: int) -> Cell | None:
  """The stored scores of a cell; None, with a note, if they are damaged or those of another."""
  if not path.exists():
    return None
  try:
    cell = Cell.of(without_digest(read_json(path), path))
    if cell[:3] == (arm, labels, seed):
      return cell
    why = f"they are those of {cell.arm} with {cell.labels} labels and seed {cell.seed}"
  except (UserError, ValueError, TypeError) as error:
    why = str(error)
  print(f"The scores in {path} cannot be used ({why}) and are computed again.", file=sys.stderr)
  return None


def checkpoint_record(source: RunInfo) -> dict[str, Any]:
  """The checkpoint's identity: its path, a hash of its run, and its step; paths can be reused."""
  run = {name: source.document.get(name) for name in ("experiment", "text", "initial")}
  digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
  step = 0 if "untrained" in source.document else newest(source.path, report=lambda _: None)[1]
  return initial_record(source) | {"run": digest, "step": [step]}


def _train_and_test(
  plan: FinetunePlan, arm: str, experiment: Experiment, workdir: Workdir, title: str
) -> tuple[dict[str, float], dict[str, float]]:
  """The scores on the dev split and on the test split."""
  task, tokenizer, tuning = experiment.data, plan.source.tokenizer, experiment.tuning
  splits = taught(plan, task, plan.splits.few(task.examples, experiment.seed))
  train, dev = (batches_of(experiment, examples, tokenizer) for examples in splits[:2])
  if getattr(task, "augment", None) and task.augment.is_on:
    more = {"examples": splits.train, "task": task, "model": experiment.model}
    train = AugmentedBatches(**vars(train), **more, tokenizer=tokenizer)
  program = compile_experiment(experiment, global_shapes(train))
  is_pretrained = arm == "pretrained"
  initial = restored(program, plan.source).params if is_pretrained else drawn(program, tokenizer)
  workers, until = task.workers, batches_until(experiment, workdir.path)
  data = Data(lambda start: iterate(train, start, until, workers), dev.evaluation())

  def trained(params) -> Trained:
    settings = experiment.compute, program.mesh, experiment.global_batch
    return Trained(experiment.model, params.encoder(), tokenizer, *settings)

  def score(params) -> float:
    predictions = task.predict(trained(params), splits.dev)
    return task.score(splits.dev, predictions)[task.metrics[0]]

  if tuning.patience:
    often = tuning.every, tuning.patience
    with Selection(workdir, score, *often, experiment.omitted) as selection:
      state, _ = fit(program, data, workdir, initial=initial, title=title, selection=selection)
      params = selection.best(program.abstract.params, state.params)
  else:
    params = fit(program, data, workdir, initial=initial, title=title)[0].params
  model = trained(params)
  tuned = task.tune(model, splits.dev)
  predictions = tuned.predict(model, splits.test)
  if is_first():
    write_whole(workdir / REPORT, tuned.report(splits.test, predictions) + "\n")
    sample = sample_predictions(tuned, splits.test, predictions)
    write_whole(workdir / SAMPLE, sample + "\n")
    write_whole(workdir / TASK, with_digest(overrides.to_json(tuned)))
  on_dev = tuned.score(splits.dev, tuned.predict(model, splits.dev))
  learnt = model.params.learnt() if hasattr(model.params, "learnt") else {}
  on_test = tuned.score(splits.test, predictions)
  return on_dev, on_test | {f"learnt/{name}": value for name, value in learnt.items()}


def batches_of(experiment: Experiment, examples: Examples, tokenizer: Tokenizer) -> LabelledBatches:
  """The batches of a split, of similar length or mixed in training if the task asks for that."""
  task: Any = experiment.data
  make = LabelledBatches
  if hasattr(task, "part_of"):
    part = np.array([task.part_of(item) for item in examples.items])
    make = functools.partial(MixedBatches, part=part, cap=task.cap)
  return make(
    task.rows(examples, experiment.model, tokenizer),
    seed=experiment.seed,
    global_batch=experiment.global_batch,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    by_length=getattr(task, "by_length", False),
    packed=getattr(task, "packed", False),
    devices=jax.local_device_count(),
  )


def taught(plan: FinetunePlan, task: Task, splits: Splits) -> Splits:
  """The splits; with a teacher the training examples have its logits as a further target."""
  if plan.teacher is None:
    return splits
  if not hasattr(task, "teacher_logits"):
    raise UserError(f"the task {task.name} has no distillation; leave --teacher out.")
  train = splits.train
  logits_NC = task.teacher_logits(*load(plan.teacher), train.items)
  return splits._replace(
    train=dataclasses.replace(train, targets=train.targets | {TEACHER: logits_NC})
  )


def global_shapes(batches: LabelledBatches) -> dict[str, Any]:
  """Shapes and dtypes of a batch of all processes together."""
  if batches.packed:
    return shapes_of_all(batches(0), batches.process_count)
  one = batches.rows.batch(np.zeros(1, int), np.ones(1, np.float32))
  return shapes_of_all(one, batches.global_batch)


def shapes_of_all(batch: dict[str, np.ndarray], times: int) -> dict[str, Any]:
  return {
    name: jax.ShapeDtypeStruct((times * len(x), *x.shape[1:]), x.dtype) for name, x in batch.items()
  }


def restored(program, source: RunInfo):
  """The parameters of the checkpoint's encoder with fresh heads, on the program's mesh. A stored
  classifier of as many classes is kept, in the order of the task's classes."""
  made = restored_onto(program, source, source.experiment.model.encoder_path)
  if set(HEADS) & set(made.fresh):
    return made
  wanted = program.experiment.data.classes
  return made._replace(params=in_order(made.params, stored_classes(source), wanted))


def drawn(program, tokenizer: Tokenizer) -> Any:
  """Random parameters that read characters, with those of the tokenizer's tokens; None for other
  models, whose random parameters `fit` makes."""
  if not hasattr(program.abstract.params, "spelled"):
    return None
  return program.create().params.spelled(tokenizer)


def baseline_cell(plan: FinetunePlan, name: str, examples: int | None, seed: int) -> Cell:
  """A trivial baseline on the same examples."""
  splits = plan.splits.few(examples, seed)
  test = plan.task.score(splits.test, plan.task.baseline(name, splits))
  return Cell(name, str(examples or "all"), seed, test)
