"""A task: reader, objective, predictor and metrics, in one frozen dataclass.

A task is the `data` of an `Experiment`, so config.json stores it with the labels and the length
that reading its data filled in. No command names a task: plm_jax/tasks/registry.py lists them.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax

from plm_jax import overrides
from plm_jax.data.tokenizers import Tokenizer, TokenizerConfig, WordPiece
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters
from plm_jax.runs import RunInfo
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.rows import EncodedRows, framed_rows
from plm_jax.tasks.word_ngrams import ngrams_of


class Trained(NamedTuple):
  """A fine-tuned model ready to predict. config: that of the encoder, as are the parameters. batch:
  rows per forward pass. mesh: of its devices. fits: few rows make a smaller batch, of 1, 2, 4, ...
  rows or groups of rows."""

  config: Model
  params: Parameters
  tokenizer: Tokenizer
  compute: Compute
  mesh: jax.sharding.Mesh
  batch: int = 32
  fits: bool = False


class Context(NamedTuple):
  """What reading a task may depend on. source: the run that is fine-tuned. cache: the folder of
  prepared text."""

  source: RunInfo
  cache: Path

  @property
  def tokenizer(self) -> Tokenizer:
    return self.source.tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
  """A task; its fields are set by --set=task.FIELD=VALUE.

  source: a file, a folder or "tfds:NAME", set by --data.
  examples: the number of training examples, drawn by the seed and set by --labels; None is all.
  length: tokens per row, special tokens included; longer texts are cut. None is decided by reading.
  tokenizer: that of the run that is fine-tuned.
  """

  # Of --task.
  name: ClassVar[str]
  # The first decides verdicts and early stopping; tables show them all. Higher is better.
  metrics: ClassVar[tuple[str, ...]]
  # The trivial baselines and their names in tables; the last is constant.
  baselines: ClassVar[dict[str, str]]
  # The name in tables of the baseline with frozen features (probe.py).
  probe: ClassVar[str] = "frozen features, linear probe"
  # The command that uses a trained model on new texts.
  command: ClassVar[str] = "predict"
  # The suffixes of the files that `read_file` reads; a line of any other file goes to `parse`.
  files: ClassVar[tuple[str, ...]]
  # Whether an example has one answer, so that accuracy counts examples.
  one_answer: ClassVar[bool] = False

  source: str = ""
  tokenizer: TokenizerConfig = WordPiece(vocab_size=4096)  # noqa: RUF009  frozen
  examples: int | None = None
  length: int | None = None
  workers: int = 0

  def __post_init__(self):
    if self.length is not None and self.length < 4:
      raise UserError(f"task.length is {self.length}; a row needs at least 4 tokens.")
    if self.examples is not None and self.examples < 1:
      raise UserError(f"task.examples is {self.examples}; it must be at least 1.")
    if self.workers < 0:
      raise UserError(f"task.workers is {self.workers}; it must be at least 0.")

  # --- for the user

  @property
  @abc.abstractmethod
  def question(self) -> str:
    """What is predicted, in one line."""

  @property
  def is_independent(self) -> bool:
    """Whether the prediction for an example does not depend on the examples beside it."""
    return True

  @property
  def line(self) -> str:
    """The content of a line that `parse` reads, for the user."""
    return "a text"

  @property
  def place(self) -> str:
    """The name of the task's directory, after the task's name; "" for the built-in text."""
    return Path(os.path.expanduser(self.source)).resolve().name

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the head's labels, for export; empty without labels."""
    return ()

  @property
  def together(self) -> int:
    """The rows of an example that are always in one batch."""
    return 1

  # --- reading

  @abc.abstractmethod
  def read(self, context: Context) -> tuple[Self, Splits]:
    """Reads the data; also returns the task with labels, length and all else that predictions
    need. Errors: `UserError` for data that cannot be learnt or scored."""

  @abc.abstractmethod
  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    """The examples of one file; with `labelled`, each needs a target."""

  @abc.abstractmethod
  def parse(self, line: str, name: str) -> Example:
    """The example in a line of text, without a target. name: of the line, for errors."""

  @abc.abstractmethod
  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    """With the targets of a task that was read, if all examples have one. Errors: `UserError` for
    targets that it does not know."""

  # --- training

  @abc.abstractmethod
  def objective(self) -> Any:
    """The `Objective` of a task that was read."""

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    """The rows to train and to predict on, with the targets that the objective reads: by default
    one row for each example."""
    rows = framed_rows(examples.ids, config, tokenizer, self.length)
    further = ngrams_of(config, tokenizer)
    return dataclasses.replace(rows, values=rows.values | examples.targets, further=further)

  def tune(self, trained: Trained, dev: Examples) -> Self:
    """The task with fields that are chosen after training, such as a threshold."""
    return self

  # --- predicting

  @abc.abstractmethod
  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """One prediction for each example, in order."""

  @abc.abstractmethod
  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """At least `metrics`."""

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    """Lines with the details of a score, such as a confusion matrix."""
    return ""

  @abc.abstractmethod
  def mistake(self, example: Example, prediction: Prediction) -> float:
    """How wrong a prediction is: 0 if it is right, and largest for the worst mistake."""

  @abc.abstractmethod
  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    """The predictions of one of `baselines` for the test split."""


@dataclasses.dataclass(frozen=True)
class _Root:
  """The root of --set=task.FIELD."""

  task: Any


def with_settings(task: Any, settings: Sequence[str]) -> Any:
  """The task with every "task.FIELD=VALUE". Errors: `UserError` for an unknown field or value."""
  return overrides.apply(_Root(task), settings).task


def shown(items: list[Example], predictions: list[Prediction]) -> Iterator[dict[str, Any]]:
  """The lines of predictions.jsonl: id, texts, target if there is one, prediction."""
  for item, prediction in zip(items, predictions, strict=True):
    texts = dict(zip(("text", *(f"text{n}" for n in range(2, 99))), item.texts))
    target = {} if item.target is None else {"target": item.target}
    yield {"id": item.name, **texts, **target, **prediction}
