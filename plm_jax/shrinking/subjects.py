"""The runs that are made smaller: how each is scored, trained on, and timed.

A fine-tuned run is scored on the test split of its task. Any other run is scored by its loss on the
held-out documents of its own text.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plm_jax import cli
from plm_jax.compression.heads import Loss
from plm_jax.data.mixture import prepare_each
from plm_jax.errors import UserError
from plm_jax.evaluation.held_out import document_rows, held_out, held_out_rows
from plm_jax.evaluation.scores import Scores, is_causal
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import chosen_experiment, continuing
from plm_jax.export.to_run import run_directory
from plm_jax.models.compute import Compute
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.pretraining import pretrain
from plm_jax.runs import Run, RunInfo
from plm_jax.tasks.examples import Examples
from plm_jax.tasks.finetuning import FinetunePlan, model_cell, plan
from plm_jax.tasks.predicting import TASK, task_of, trained
from plm_jax.tasks.rows import width_of
from plm_jax.tasks.task import Context, Task
from plm_jax.train.workdir import Workdir

ROWS = 32  # of a batch whose throughput is measured
_DEV = 256  # rows from which the importance of heads is computed
Batches = list[dict[str, np.ndarray]]
Result = tuple[Run, Mapping[str, float]]


class Subject(abc.ABC):
  """A run that is made smaller.

  metric: the score that is compared. is_loss: whether less is better. labels: of training examples.
  place: the directory of the run.
  """

  metric: str
  is_loss: bool
  labels = "all"

  def __init__(self, run: Run):
    self.run, self.place = run, Path(run.path or "")

  @property
  def seed(self) -> int:
    return self.run.experiment.seed

  @abc.abstractmethod
  def data(self) -> dict[str, str]:
    """The identity of the data, for a record."""

  @abc.abstractmethod
  def scores(self, run: Run) -> Mapping[str, float]:
    """The scores of a run made from this one, with `metric`."""

  @abc.abstractmethod
  def rows(self, count: int, size: int) -> Batches:
    """`count` batches of `size` rows of the measured text, of mixed lengths in few shapes."""

  @abc.abstractmethod
  def loss(self) -> tuple[Loss, Batches]:
    """The loss of one row, and rows that the scores do not read, for the importance of heads."""

  @abc.abstractmethod
  def train(self, start: Path, path: Path, steps: int, settings: list[str], seed: int,
            sparse: bool, teacher: Path | None = None) -> Result:  # fmt: skip
    """The run in `start` after `steps` steps by the recipe of this run, and its scores. path: the
    directory of the training."""

  def recipe(self, start: RunInfo, steps: int, sparse: bool) -> Experiment:
    """The experiment of this run for another model and number of steps."""
    before, model = self.run.experiment, start.experiment.model
    tuning = dataclasses.replace(before.tuning, sparse=sparse, patience=0)
    optim = dataclasses.replace(before.optim, warmup=max(1, steps // 10))
    return dataclasses.replace(before, model=model, steps=steps, tuning=tuning, optim=optim)


class FineTuned(Subject):
  """A fine-tuned run. Errors: `UserError` if its data are not there, or are others."""

  is_loss = False

  def __init__(self, run: Run, cache: Path, data: str | None = None):
    super().__init__(run)
    trained_on: Any = run.experiment.data
    task: Any = dataclasses.replace(task_of(run), examples=trained_on.examples)
    if data is not None:
      task = dataclasses.replace(task, source=data)
    self.task: Task = task
    self.cache, self.metric = cache, task.metrics[0]
    _, self.splits = task.read(Context(run, cache))
    self.labels = str(task.examples or "all")
    known = ((run.document.get("text") or {}).get("splits") or {}).get("test")
    if known and known["sha256"] != self.splits.test.fingerprint():
      raise UserError(
        f"the test split of {task.source} is not the one that {run.path} was tested on; name the "
        "data of its fine-tuning by --data"
      )

  def data(self) -> dict[str, str]:
    return {"source": Path(self.task.source).name, "test": self.splits.test.fingerprint()}

  def scores(self, run: Run) -> Mapping[str, float]:
    # Scanned layers compile in a fraction of the time, and every way has separate programs.
    compute = dataclasses.replace(run.compute, layers="scan")
    task, model = task_of(run), trained(run, compute)
    return task.score(self.splits.test, task.predict(model, self.splits.test))

  def rows(self, count: int, size: int) -> Batches:
    rows, made = self.task.rows(self.splits.test, self.run.config, self.run.tokenizer), []
    chosen = np.linspace(0, len(rows) - 1, count * size, dtype=int)
    if size > 1:  # as predictions do
      chosen = chosen[np.argsort(rows.longest[chosen], kind="stable")]
    for numbers in chosen.reshape(count, size):
      width = width_of(int(rows.longest[numbers].max()), rows.width)
      made.append(rows.batch(numbers, np.ones(size, np.float32), width))
    return made

  def loss(self) -> tuple[Loss, Batches]:
    (objective,) = (o for o in self.run.experiment.objectives if o.name != "mix")
    rows = self.task.rows(self.few_of_dev(), self.run.config, self.run.tokenizer)
    return loss_of(objective, self.run.compute), [b for _, b in rows.by_length(ROWS)]

  def train(self, start, path, steps, settings, seed, sparse, teacher=None) -> Result:
    def recipe(source: RunInfo, task: Any, examples: int) -> Experiment:
      del examples
      return dataclasses.replace(self.recipe(source, steps, sparse), data=task)

    chosen: FinetunePlan = plan(RunInfo.read(start), recipe, self.task, settings, self.cache, path)
    splits = self.splits._replace(dev=self.few_of_dev())  # no step is chosen by it
    chosen = chosen._replace(teacher=teacher, splits=splits)
    examples: Any = self.task.examples
    cell = model_cell(chosen, "pretrained", examples, seed, path.name)
    return Run.load(path / f"pretrained-{self.labels}-{seed}"), cell.test

  def few_of_dev(self) -> Examples:
    dev = self.splits.dev
    return dev.take(np.linspace(0, len(dev) - 1, min(_DEV, len(dev)), dtype=int))


class Pretrained(Subject):
  """A run that predicts tokens, on its own text. Errors: `UserError` for a model that does not."""

  is_loss = True

  def __init__(self, run: Run, cache: Path):
    super().__init__(run)
    fills = getattr(run.params, "masked_lm", lambda: None)() is not None
    if hasattr(run.config, "source_ids") or not (is_causal(run) or fills):
      raise UserError(
        f"{run.path} was not fine-tuned, and is neither a left-to-right nor a masked language "
        "model, whose held-out losses are compared here; fine-tune it first: run_finetune.py --from"
      )
    cli.load_module("data.installed_text")  # makes tfds:installed_text known
    self.cache, self.texts = cache, prepare_each(run.experiment.data, cache)
    self.is_causal = is_causal(run)
    self.metric = "clm_loss" if self.is_causal else "mlm_loss"
    self.text = next(iter(self.texts.values()))

  def data(self) -> dict[str, str]:
    source = self.text.manifest["source"]
    return {"source": Path(source["given"]).name, "test": source["fingerprint"]}

  def scores(self, run: Run) -> Mapping[str, float]:
    scores = Scores.of(run)
    held_out(run, self.text, scores)
    return scores.metrics

  def rows(self, count: int, size: int) -> Batches:
    batches = self._rows(self.run)
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    chosen = np.linspace(0, len(rows["input_ids"]) - 1, count * size, dtype=int)
    return [{n: x[r] for n, x in rows.items()} for r in chosen.reshape(count, size)]

  def loss(self) -> tuple[Loss, Batches]:
    objective = CLM() if self.is_causal else MLM()
    training = dataclasses.replace(self.text, valid=self.text.train)
    batches = self._rows(self.run, training)
    return loss_of(objective, self.run.compute), batches[
      : max(1, _DEV // len(batches[0]["input_ids"]))
    ]

  def _rows(self, run: Run, text=None) -> Batches:
    if self.is_causal:
      return document_rows(run, text or self.text, CLM())
    return held_out_rows(run, text or self.text, (MLM(),))

  def train(self, start, path, steps, settings, seed, sparse, teacher=None) -> Result:
    if teacher is not None:
      raise UserError(
        "distil learns from a fine-tuned run; a pretrained student is an experiment: "
        "run_pretrain.py --experiment=experiments/distilbert.py:tiny"
      )
    source = RunInfo.read(start)
    experiment = continuing(self.recipe(source, steps, sparse), source)
    experiment = dataclasses.replace(experiment, seed=seed)
    chosen, record = chosen_experiment(experiment, "", "small", settings, None, source)
    with Workdir(path / "run") as workdir:
      workdir.check_same_experiment(chosen, record)
      pretrain(chosen, record, workdir, self.cache, source)
    run = Run.load(path / "run")
    return run, self.scores(run)


def loss_of(objective: Any, compute: Compute) -> Loss:
  """The mean loss of an objective on a batch."""

  def loss(model, batch):
    total, count = objective.loss(model, model(batch, compute), batch, None)["loss"]
    return total / (count + (count == 0))

  return loss


def subject(path: str, cache: Path, data: str | None = None) -> Subject:
  """The run in a directory. Errors: `UserError` if it is none, or is already smaller."""
  run = Run.load(run_directory(path, cache))
  if "shrunk" in run.document:
    raise UserError(f"{path} was made smaller already ({run.document['shrunk']['way']}).")
  if hasattr(run.config, "counted"):
    raise UserError(f"{path} is made from counts, and has no weights that could be smaller.")
  if (Path(run.path or "") / TASK).exists() or hasattr(run.experiment.data, "predict"):
    return FineTuned(run, cache, data)
  if data is not None:
    raise UserError(
      f"--data={data} was given, and {path} was pretrained and not fine-tuned: it is scored on the "
      "held-out documents of its own text; leave --data out, or fine-tune it first"
    )
  return Pretrained(run, cache)
