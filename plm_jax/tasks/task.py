"""The protocol of a task: reader, objective, predictor and metrics, in one frozen dataclass.

A task is the `data` of an `Experiment`, so config.json stores it with the labels and the length
that reading its data filled in. No command names a task: plm_jax/tasks/registry.py lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax

from plm_jax import overrides
from plm_jax.data.tokenizers import Tokenizer, TokenizerConfig
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters
from plm_jax.objectives.objective import Objective
from plm_jax.runs import RunInfo
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.rows import EncodedRows


class Trained(NamedTuple):
  """A fine-tuned model ready to predict. config: that of the encoder, as are the parameters. batch:
  rows per forward pass. mesh: of its devices."""

  config: Model
  params: Parameters
  tokenizer: Tokenizer
  compute: Compute
  mesh: jax.sharding.Mesh
  batch: int = 32


class Context(NamedTuple):
  """What reading a task may depend on. source: the run that is fine-tuned. cache: the folder of
  prepared text."""

  source: RunInfo
  cache: Path

  @property
  def tokenizer(self) -> Tokenizer:
    return self.source.tokenizer


class Task(Protocol):
  """A frozen dataclass; its fields are set by --set=task.FIELD=VALUE."""

  # The first decides verdicts and early stopping; tables show them all. Higher is better.
  metrics: ClassVar[tuple[str, ...]]
  # The trivial baselines and their names in tables, the strongest first; the last is constant.
  baselines: ClassVar[dict[str, str]]
  question: str  # one line for the user

  name: ClassVar[str]  # of --task
  files: ClassVar[tuple[str, ...]]  # the suffixes of files that `read_file` reads
  place: str  # the name of its directory, after the task's name
  source: str  # set by --data
  dev: str | None  # set by --dev and --test; None takes a share of the source
  test: str | None
  tokenizer: TokenizerConfig
  length: int | None  # tokens per row, special tokens included; None until the data is read
  workers: int
  examples: int | None  # training examples, set by --labels; None is all

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the head's labels, for export; empty without labels."""

  def read(self, context: Context) -> tuple[Self, Splits]:
    """Reads the data; also returns the task with labels, length and all else that predictions
    need. Errors: `UserError` for data that cannot be learnt or scored."""

  def objective(self) -> Objective:
    """Of a task that was read."""

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    """The rows to train and to predict on, with the targets that the objective reads."""

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """One prediction for each example, in order."""

  def tune(self, trained: Trained, dev: Examples) -> Self:
    """The task with fields chosen after training, such as a threshold; mostly `self`."""

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """At least `metrics`."""

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    """Lines with the details of a score, such as a confusion matrix; may be empty."""

  def mistake(self, example: Example, prediction: Prediction) -> float:
    """How wrong a prediction is: 0 if it is right, and largest for the worst mistake."""

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    """The predictions of one of `baselines` for the test split."""

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    """The examples of one file; with `labelled`, each needs a target."""

  def parse(self, line: str, name: str) -> Example:
    """The example in a line of text without a target."""

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    """With the targets of a task that was read, if the examples have any. Errors: `UserError` for
    targets that it does not know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDefaults:
  """The parts that most tasks share."""

  @property
  def classes(self) -> tuple[str, ...]:
    return ()

  def tune(self, trained: Trained, dev: Examples) -> Self:
    return self

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    return ""


@dataclasses.dataclass(frozen=True)
class _Root:
  """The root of --set=task.FIELD."""

  task: Any


def with_settings(task: Task, settings: Sequence[str]) -> Task:
  """The task with every "task.FIELD=VALUE". Errors: `UserError` for an unknown field or value."""
  return overrides.apply(_Root(task), settings).task


def shown(items: list[Example], predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
  """The lines of predictions.jsonl: id, texts, target if there is one, prediction."""
  for item, prediction in zip(items, predictions, strict=True):
    texts = dict(zip(("text", *(f"text{n}" for n in range(2, 99))), item.texts))
    target = {} if item.target is None else {"target": item.target}
    yield {"id": item.name, **texts, **target, **prediction}
