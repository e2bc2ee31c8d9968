"""Fine-tunes a checkpoint on a labelled task: one cell (arm, labels, seed) of the comparison.

Every cell of a model is an `Experiment` with a separate working directory, trained by the same
`fit` as pretraining: a stopped one continues, and a finished one is not repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from plm_jax import overrides
from plm_jax.data.corpora import open_source
from plm_jax.data.pipeline import iterate
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import with_tokenizer
from plm_jax.models.parameters import head_patterns, roles_of
from plm_jax.runs import RunInfo, initial_record
from plm_jax.tasks.bag_of_words import fit_bag_of_words
from plm_jax.tasks.classification import predict, score
from plm_jax.tasks.comparison import Cell
from plm_jax.tasks.labelled_text import LabelledText, Task, documents_of, read_task
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.loop import Data, compile_experiment, fit
from plm_jax.train.process import versions
from plm_jax.train.workdir import Workdir, write_whole

SCORES = "scores.json"
RESULTS = "results.json"


class FinetunePlan(NamedTuple):
  """The settings that all cells share. recipe: (model, data, classes, examples) -> Experiment."""

  source: RunInfo
  recipe: Callable[..., Experiment]
  settings: list[str]
  data: LabelledText
  task: Task
  path: Path

  def experiment(self, examples: int | None, seed: int) -> Experiment:
    """The experiment of both model arms. Errors: `UserError` if the task has fewer examples."""
    count = len(self.task.few(examples, seed).train.texts)
    return dataclasses.replace(
      _chosen(self.source, self.recipe, self.settings, len(self.task.classes), count),
      data=dataclasses.replace(self.data, examples=examples),
      seed=seed,
    )


def plan(
  source: RunInfo,
  recipe: Callable[..., Experiment],
  settings: list[str],
  cache: Path,
  path: Path,
) -> FinetunePlan:
  """Reads the task. Errors: `UserError` for settings or text without one."""
  data = _chosen(source, recipe, settings, 2, 1).data.resolved()
  for name, flag in (("data.examples", "--labels"), ("seed", "--seeds")):
    if ignored := [s for s in settings if s.partition("=")[0].strip() == name]:
      raise UserError(f"--set={ignored[-1]} would have no effect: {flag} sets it for all runs.")
  data = dataclasses.replace(data, held_out=_held_out(data, source, cache))
  task = read_task(data, source.tokenizer, documents_of(data, cache))
  return FinetunePlan(source, recipe, settings, data, task, path)


def _chosen(source: RunInfo, recipe, settings, classes: int, examples: int) -> Experiment:
  model = source.experiment.model.encoder
  # Embeddings of positions that pretraining never reached are still random.
  data = LabelledText(length=min(LabelledText.length, source.experiment.data.length))
  experiment = recipe(model, data, classes=classes, examples=examples)
  experiment = overrides.apply(experiment, settings)
  return with_tokenizer(experiment, source, settings)


def _held_out(data: LabelledText, source: RunInfo, cache: Path) -> float:
  """The share of documents to test on: no document that pretraining read."""
  runs = [run for run in _history(source) if run.document.get("text", {}).get("source")]
  if data.is_table:
    if any(data.source == run.experiment.data.source for run in runs):
      print(f"note: pretraining has read {data.source}, without the labels", file=sys.stderr)
    return data.held_out or 0.1
  fingerprint = open_source(data.source, cache).fingerprint()
  share = 1.0
  for run in runs:
    pretrained = run.document["text"]["source"]
    same = fingerprint == pretrained.get("fingerprint")
    if not same and data.source not in (pretrained.get("given"), run.experiment.data.source):
      continue
    if not same:
      print(
        f"note: {data.source} has changed since {run.path} was pretrained (other versions of the "
        "packages?); a document that changed may have been read in pretraining",
        file=sys.stderr,
      )
    share = min(share, run.experiment.data.held_out)
  if data.held_out is not None and data.held_out > share:
    raise UserError(
      f"data.held_out={data.held_out} is more than the {share} that {source.path} held out, so the "
      "test split would contain documents that pretraining has read; leave it out, or pretrain "
      f"with --set=data.held_out={data.held_out}."
    )
  return data.held_out or (share if share < 1 else 0.1)


def _history(source: RunInfo) -> Iterator[RunInfo]:
  """The run, the one that it started from, and so on, as far as their directories exist."""
  yield source
  while (initial := source.document.get("initial")) and "from" in initial:
    try:
      source = RunInfo.read(initial["from"])
    except UserError as error:
      print(f"note: the text of the pretraining before that is unknown: {error}", file=sys.stderr)
      return
    yield source


def identity(plan: FinetunePlan) -> dict[str, Any]:
  """The settings that all results in one directory share; labels and seeds may differ."""
  return {
    "checkpoint": checkpoint_record(plan.source),
    "text": plan.task.record(),
    "settings": sorted(plan.settings),
  }


def earlier_cells(plan: FinetunePlan) -> list[Cell]:
  """The cells that earlier commands left in this directory, with these or other labels and seeds.
  Errors: `UserError` if it holds results of another comparison."""
  path = plan.path / RESULTS
  if not path.exists():
    return []
  try:
    document = json.loads(path.read_text())
    if document.get("of") == identity(plan):
      return [Cell(**cell) for cell in document["cells"]]
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(f"{path} cannot be read ({error}); choose another --workdir") from error
  raise UserError(
    f"{path} has results of another task, checkpoint or --set; choose another --workdir"
  )


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
    "text": plan.task.few(examples, seed).record(),
    "command": sys.argv,
    "versions": versions(),
  }
  with Workdir(plan.path / record["name"]) as workdir:
    workdir.check_same_experiment(experiment, record)
    if (workdir / SCORES).exists():
      return Cell(**json.loads((workdir / SCORES).read_text()))
    workdir.write_config(experiment, record)
    plan.source.tokenizer.save(workdir / "tokenizer")
    test = _train_and_test(plan, arm, experiment, workdir, title)
    cell = Cell(arm, labels, seed, test)
    if jax.process_index() == 0:
      write_whole(workdir / SCORES, json.dumps(cell._asdict(), indent=2) + "\n")
    return cell


def checkpoint_record(source: RunInfo) -> dict[str, Any]:
  """The checkpoint's identity: its path, a hash of its run, and its step; paths can be reused."""
  run = {name: source.document.get(name) for name in ("experiment", "text", "initial")}
  digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
  step = Checkpoints(source.path / "checkpoints").steps()[-1:]
  return initial_record(source) | {"run": digest, "step": step}


def _train_and_test(
  plan: FinetunePlan, arm, experiment: Experiment, workdir: Workdir, title
) -> dict:
  task = plan.task.few(experiment.data.examples, experiment.seed)
  train, dev, test = (
    LabelledBatches.of(
      examples,
      plan.source.tokenizer.vocab,
      experiment.data.length,
      experiment.model,
      seed=experiment.seed,
      global_batch=experiment.global_batch,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    for examples in (task.train, task.dev, task.test)
  )
  program = compile_experiment(experiment, global_shapes(train))
  initial = restored(program, plan.source).params if arm == "pretrained" else None
  workers = experiment.data.workers
  data = Data(lambda start: iterate(train, start, experiment.steps, workers), dev.evaluation())
  state, _ = fit(program, data, workdir, initial=initial, title=title)
  predictions = predict(state.params, test.evaluation(), experiment.compute, program.mesh)
  return score(task.test.label, predictions, len(task.classes))


def global_shapes(batches: LabelledBatches) -> dict[str, Any]:
  """Shapes and dtypes of a batch of all processes together."""
  count = batches.global_batch
  return {
    name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for name, x in batches(0).items()
  }


def restored(program, source: RunInfo):
  """The parameters of the checkpoint's encoder with fresh heads, on the program's mesh."""
  fresh = program.create().params
  place = source.experiment.model.encoder_path
  heads = head_patterns(roles_of(fresh))
  return restore_parameters(source.path, fresh, heads, heads, within=place)


def words_cell(plan: FinetunePlan, examples: int | None, seed: int) -> Cell:
  """The bag of words on the same examples."""
  task = plan.task.few(examples, seed)
  fitted = fit_bag_of_words(task)
  test = score(task.test.label, fitted.predictions, len(task.classes))
  return Cell("words", str(examples or "all"), seed, test)
