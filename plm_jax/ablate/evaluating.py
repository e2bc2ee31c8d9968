"""The evaluation of a run on sets that are the same for every arm of a table.

`python -m plm_jax.evaluate` is the command. docs/ablation.md defines the metrics, and
plm_jax/evaluation/ has the code of the sets and scores.
"""

import dataclasses
import hashlib
import math
import time
from pathlib import Path

import jax
import numpy as np

from plm_jax import cli
from plm_jax.ablate.plan import SCORES, Evaluation
from plm_jax.ablate.probing import probe, tagging
from plm_jax.data.mixture import prepare_each
from plm_jax.data.preparation import Prepared
from plm_jax.errors import UserError
from plm_jax.evaluation.gaps import gaps
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.minimal_pairs import blimp
from plm_jax.evaluation.pair_accuracy import pair_accuracies
from plm_jax.evaluation.scores import Scores
from plm_jax.evaluation.writing import written
from plm_jax.runs import Run
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.finetuning import FinetunePlan, model_cell, plan
from plm_jax.tasks.label import Label
from plm_jax.tasks.registry import chosen_task, task_class
from plm_jax.tasks.suite import Suite
from plm_jax.tasks.task import Task
from plm_jax.train.integrity import with_digest
from plm_jax.train.process import versions
from plm_jax.train.spikes import SPIKES
from plm_jax.train.workdir import read_records, run_hash, write_whole

FORMAT = 1


def evaluate(run: Run, asked: Evaluation, cache: Path) -> Scores:
  """The scores of every run and the optional ones in `asked`, written to scores.json in its
  directory, with the number of parameters, the seconds and the software."""
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  tasks = [task_of(kind, data) for kind, data in asked.parts.items()]
  start = time.perf_counter()
  texts = prepare_each(run.experiment.data, cache)
  parts = {name: scores_on(run, text, asked) for name, text in texts.items()}
  scores = parts[""] if "" in parts else Scores.of_texts(parts)
  scores.notes.extend(notes_of(run))
  if asked.blimp:
    blimp(run, Path(asked.blimp), asked.blimp_pairs, scores)
  if asked.finetune:
    finetune(run, asked.labels, cache, scores)
  for task in tasks:
    finetune_on(run, task, cache, scores)
  if asked.probe:
    probe(run, asked.probe_labels, cache, scores)
  if asked.tags:
    tagging(run, asked.tags, scores)
  record = {
    "format": FORMAT,
    "asked": dataclasses.asdict(asked),
    **scores._asdict(),
    "step": run.step,
    "run": run_hash(run.path),
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.params)),
    "sample": written(run, asked.prompt) if asked.prompt else None,
    "seconds": time.perf_counter() - start,
    "versions": versions(),
  }
  write_whole(run.path / SCORES, with_digest(record))
  return scores


def notes_of(run: Run) -> list[str]:
  """What a reader of its scores should know about its training."""
  notes = []
  if run.step < run.experiment.steps and "public" not in run.document:
    notes.append(f"measured after {run.step:,} of {run.experiment.steps:,} steps")
  if read_records(run.path / SPIKES):
    notes.append(f"its training loss exploded ({SPIKES} of the run says when)")
  return notes


def scores_on(run: Run, text: Prepared, asked: Evaluation) -> Scores:
  """The scores on the held-out documents of one text."""
  scores = Scores.of(run)
  held_out(run, text, scores)
  pair_accuracies(run, text, scores)
  if asked.gaps:
    gaps(run, text, scores)
  return scores


def finetune(
  run: Run,
  labels: list[int | None],
  cache: Path,
  scores: Scores,
  settings: tuple[str, ...] = (),
) -> None:
  """Adds finetune_LABELS_accuracy and _macro_f1 to `scores`: those of run_finetune.py with
  --task=label and `settings`."""
  chosen = plan(run, recipe(), Label(), list(settings), cache, run.path / "finetune")
  for size in labels:
    add(chosen, size, run.experiment.seed, f"finetune_{size or 'all'}", scores)


def task_of(kind: str, data: str | None) -> Task:
  """The task of a part of --tasks. Errors: `UserError`, before anything is trained or measured, for
  data that it cannot read."""
  if data is None and not task_class(kind)().source:
    raise UserError(f"--tasks={kind} needs data: --tasks={kind}:DATA.")
  task = chosen_task(kind, data)
  if isinstance(task, Suite):
    raise UserError(f"--tasks takes tasks, and {task.name} is several; name one of them.")
  if data and not data.startswith(("tfds:", "hf:")) and not Path(data).exists():
    raise UserError(f"--tasks={kind}:{data}: there is no {data}.")
  if isinstance(task, FileTask):
    task.read_files()
  return task


def finetune_on(run: Run, task: Task, cache: Path, scores: Scores) -> None:
  """Adds TASK_METRIC to `scores`, for each metric of the task: those of run_finetune.py with all
  labels."""
  data = hashlib.sha256(task.source.encode()).hexdigest()[:8]
  chosen = plan(run, recipe(), task, [], cache, run.path / f"finetune_{task.name}_{data}")
  add(chosen, None, run.experiment.seed, task.name, scores)


def recipe():
  return cli.load_module("experiments.finetune").recipe


def add(chosen: FinetunePlan, size: int | None, seed: int, name: str, scores: Scores) -> None:
  """Fine-tunes, and adds the test scores as NAME_METRIC."""
  title = f"fine-tuning on {size or 'all'} labels ({chosen.task.name})"
  cell = model_cell(chosen, "pretrained", size, seed, title)
  test = {metric: cell.test[metric] for metric in chosen.task.metrics}
  measured_on = [{"test": np.array(chosen.splits.test.fingerprint())}]
  scores.add(name, test, len(chosen.splits.test), measured_on)
