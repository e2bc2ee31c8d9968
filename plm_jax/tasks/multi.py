"""The task `multi`: one text or two, and any number of labels.

Source: transformers' `problem_type="multi_label_classification"`: the head of a classification,
with a sigmoid for each label in place of the softmax.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms
from plm_jax.tasks import metrics
from plm_jax.tasks.bag_of_words import best_bag_of_words
from plm_jax.tasks.classification import class_logits, unknown_label
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.file_task import TableTask
from plm_jax.tasks.label_sets import gathered, label_columns, labels_in, separable, separator_of
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.table_files import FIELDS, Columns, Table, columns, no_column
from plm_jax.tasks.task import Trained
from plm_jax.tasks.task_objective import TaskObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(TaskObjective):
  """Mean over rows and labels of `-y log p - (1 - y) log(1 - p)`, p = sigmoid(score).

  labels: their number.
  """

  labels: int
  name = "multi"
  problem_type = "multi_label_classification"  # in transformers' config.json

  @property
  def heads(self) -> dict[str, int]:
    return {"classes": self.labels}

  def loss(self, model, hidden, batch, noise) -> Terms:
    scores_BC = model.class_logits(hidden, batch, noise)
    losses_BC = jnp.logaddexp(0, scores_BC) - scores_BC * batch["labels"]
    return {"loss": ((losses_BC.mean(axis=1) * self.weights(batch)).sum(), self.count(batch))}

  def baseline(self, counts, batches, scores) -> Baseline:
    p_C = np.clip(self.values(batches, "labels").mean(axis=0), 1e-9, 1 - 1e-9)
    entropy = -(p_C * np.log(p_C) + (1 - p_C) * np.log(1 - p_C))
    return Baseline("frequency", {"loss": float(entropy.mean())})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multi(TableTask):
  """One text, and any number of labels; two texts if `text2` is named.

  label: the column of labels, or the columns of 0 and 1 with commas between them.
  separator: the character between the labels of a cell; None finds it, "" is none.
  labels: the names, the most frequent first; read from the training file.
  threshold: the least probability of a label that is predicted; None chooses it on the dev split.
  """

  name: ClassVar[str] = "multi"
  metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "subset_accuracy")
  baselines: ClassVar[dict[str, str]] = {
    "words": "bag of words, linear",
    "majority": "most frequent set of labels",
  }

  separator: str | None = None
  labels: tuple[str, ...] = ()
  threshold: float | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.threshold is not None and not 0 < self.threshold < 1:
      raise UserError(f"task.threshold={self.threshold} must be above 0 and below 1.")

  @property
  def question(self) -> str:
    return f"which of {len(self.labels)} labels, any number of them?"

  @property
  def texts(self) -> int:
    return 2 if self.text2 else 1

  @property
  def classes(self) -> tuple[str, ...]:
    return self.labels

  # --- reading

  def table(self, path: str | Path) -> Table:
    return gathered(super().table(path), self.label)

  def _columns(self, table: Table) -> Columns:
    label = self.label or ",".join(label_columns(table, None)) or None
    fields = {field: getattr(self, field) for field in FIELDS} | {"label": label}
    return columns(table, self.texts, **fields)

  def with_columns(self) -> Self:
    table = self.table(self.source)
    for name in label_columns(table, self.label):
      if name not in table.names:
        raise no_column(table, name, "label")
    task = super().with_columns()
    if task.label is None:
      return task
    table = task.table(task.source)
    cells = [row.get(task.label) for _, row in table.rows]
    separator = separator_of(cells) if self.separator is None else self.separator
    if separator and not any(separator in cell for cell in separable(cells)):
      raise UserError(
        f"task.separator={separator!r} was given, and no cell of the column {task.label!r} has it; "
        "leave it out, or correct it."
      )
    counts: Counter[str] = Counter()
    for cell, (line, _) in zip(cells, table.rows, strict=True):
      counts.update(dict.fromkeys(cell, 0) if isinstance(cell, dict) else {})
      counts.update(labels_in(cell, separator, table.at(line)))
    labels = tuple(sorted(counts, key=lambda label: (-counts[label], label)))
    return dataclasses.replace(task, separator=separator, labels=labels)

  def target_in(self, table: Table, line: int, row: dict[str, Any], column: str) -> Any:
    """The labels in the order of `labels`."""
    labels = labels_in(row.get(column), self.separator or "", table.at(line))
    return tuple(sorted(labels, key=lambda label: self._numbers.get(label, len(self.labels))))

  @property
  def _numbers(self) -> dict[str, int]:
    return {label: number for number, label in enumerate(self.labels)}

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    items, notes = super().read_noted(path)
    mean = sum(len(item.target) for item in items) / len(items)
    none = sum(not item.target for item in items)
    notes.append(f"{Path(path).name}: {mean:.2f} labels per example, {none:,} examples have none")
    if self.separator or all(len(item.target) < 2 for item in items):
      separator = repr(self.separator) if self.separator else "no separator was found"
      notes[-1] += f"; between labels: {separator} (--set=task.separator=... changes it)"
    return items, notes

  def stratum(self, item: Example) -> str | None:
    """The rarest label, so that the training split has examples of it."""
    return item.target[-1] if item.target else None

  def fitted(self, items: list[Example]) -> Self:
    uses = sum(len(item.target) for item in items)
    if len(self.labels) < 2 or not uses:
      raise UserError(
        f"{self.source!r} has {len(self.labels)} label ({', '.join(self.labels) or 'none'}); two "
        "are needed to learn. --set=task.label=COLUMN names the column of labels, and "
        "--set=task.separator=';' the character between them."
      )
    if len(self.labels) > max(100, uses // 2):
      raise UserError(
        f"{self.source!r} has {len(self.labels):,} different labels such as {self.labels[-1]!r} "
        f"for {len(items):,} examples; name the column of labels by --set=task.label=COLUMN."
      )
    return self

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    for item in items:
      for label in item.target or ():
        if label not in self.labels:
          raise unknown_label(item, label, self.labels)
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["labels"] = self._matrix(item.target for item in items).astype(np.float32)
    return Examples(items, encoded(items, tokenizer), targets)

  def _matrix(self, sets: Iterable[Sequence[str]]) -> np.ndarray:
    """bool [N, labels]."""
    return np.array([[label in labels for label in self.labels] for labels in sets], bool)

  # --- training and predicting

  def objective(self) -> MultiLabel:
    return MultiLabel(labels=len(self.labels))

  def tune(self, trained: Trained, dev: Examples) -> Self:
    """With the threshold that has the best micro-F1 on the dev split."""
    if self.threshold is not None:
      return self
    scores_NC = np.array([list(p["scores"].values()) for p in self.predict(trained, dev)])
    threshold = metrics.best_f1_threshold(scores_NC, dev.targets["labels"])
    return dataclasses.replace(self, threshold=threshold)

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"labels", "scores"}: the labels, and the probability of every label."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    p_NC = np.exp(-np.logaddexp(0, -outputs(trained, rows, class_logits).astype(np.float64)))
    threshold = 0.5 if self.threshold is None else self.threshold
    predictions = []
    for p_C in p_NC.round(6).tolist():
      scores = dict(zip(self.labels, p_C, strict=True))
      labels = [label for label, p in scores.items() if p >= threshold]
      predictions.append({"labels": labels, "scores": scores})
    return predictions

  def from_targets(self, labels_NC: np.ndarray) -> list[Prediction]:
    """The predictions of a linear model."""
    return [{"labels": [self.labels[i] for i in np.flatnonzero(row)]} for row in labels_NC]

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    return metrics.label_sets(*self._both(examples, predictions))

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    lines = metrics.by_class(*self._both(examples, predictions), self.labels)
    return "\n".join([*lines, f"threshold {self.threshold or 0.5:.3f}"])

  def _both(self, examples: Examples, predictions: list[Prediction]):
    """The true and the predicted labels, bool [N, labels] each."""
    true, predicted = (item.target for item in examples.items), (p["labels"] for p in predictions)
    return self._matrix(true), self._matrix(predicted)

  def mistake(self, example: Example, prediction: Prediction) -> float:
    """The sum over wrong labels of how far the probability is from the truth."""
    wrong = set(example.target) ^ set(prediction["labels"])
    return sum(abs(prediction["scores"][n] - (n in example.target)) for n in sorted(wrong))

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    if name == "words":
      return self.from_targets(best_bag_of_words(splits).predictions)
    ((labels, _),) = Counter(item.target for item in splits.train.items).most_common(1)
    return [{"labels": list(labels)} for _ in splits.test.items]
