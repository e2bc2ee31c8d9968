"""Tasks with one label for each example: loss, predictions, scores and baselines.

Source: google-research/bert run_classifier.py. The state of [CLS] is pooled, dropped out and mapped
to one score per class; the loss is the mean cross-entropy of the rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.tasks import metrics
from plm_jax.tasks.bag_of_words import best_bag_of_words
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.rows import EncodedRows, framed_rows
from plm_jax.tasks.task import Task, Trained

NONE = "(none)"  # the label of a prediction below the threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
  """Mean of `-log p(label | row)` over rows; an objective like any other, so `fit` trains it.

  labels: the number of classes. Rows of row_weight 0 fill up a batch and do not count.
  """

  labels: int
  weight: float = 1.0
  name = "class"

  def __post_init__(self):
    if self.labels < 2:
      raise UserError(f"a classification needs at least 2 classes, and class.labels={self.labels}")

  @property
  def heads(self) -> dict[str, int]:
    return {"classes": self.labels}

  def corrupt(self, batch, draws, vocab) -> dict:
    """The batch unchanged: labels are in the rows."""
    return batch

  def count(self, batch) -> jax.Array:
    return batch["row_weight"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_BC = model.class_logits(hidden, batch, noise)
    return cross_entropy(logits_BC, batch["label"], batch["row_weight"])

  def baseline(self, counts, batches, scores) -> Baseline:
    return majority(batches, "label")


def class_logits(model, hidden, batch) -> jax.Array:
  """float32 [B, classes]."""
  return model.class_logits(hidden, batch, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTask(Task):
  """One label for each example.

  labels: the names of the classes, in the order of their numbers; read from the data.
  threshold: a prediction with a lower probability is "(none)".
  """

  metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
  baselines: ClassVar[dict[str, str]] = {
    "words": "bag of words, linear",
    "majority": "majority class",
  }

  labels: tuple[str, ...] = ()
  threshold: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.threshold < 1:
      raise UserError(f"task.threshold={self.threshold} must be at least 0 and below 1.")

  @property
  def classes(self) -> tuple[str, ...]:
    return self.labels

  def objective(self) -> Classification:
    return Classification(labels=len(self.labels))

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    numbers = {label: number for number, label in enumerate(self.labels)}
    for item in items:
      if item.target is not None and item.target not in numbers:
        raise UserError(
          f"the example {item.name} has the label {item.target!r}, which training never saw: it "
          f"knows {', '.join(self.labels[:20])}; correct the label or leave the example out."
        )
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["label"] = np.array([numbers[item.target] for item in items], np.int32)
    return Examples(items, encoded(items, tokenizer), targets)

  def rows(self, examples: Examples, config: Model, tokenizer: Tokenizer) -> EncodedRows:
    rows = framed_rows(examples.ids, config, tokenizer, self.length)
    return dataclasses.replace(rows, values=rows.values | examples.targets)

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"label", "score", "scores"}: the most probable label, its probability, and that of each."""
    rows = self.rows(examples, trained.config, trained.tokenizer)
    logits_NC = outputs(trained, rows, class_logits)
    logits_NC = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    p_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    return [self._prediction(best, p_C) for best, p_C in zip(logits_NC.argmax(axis=1), p_NC)]

  def _prediction(self, best: int, p_C: np.ndarray) -> Prediction:
    label = self.labels[best] if p_C[best] >= self.threshold else NONE
    scores = {name: round(float(p), 6) for name, p in zip(self.labels, p_C, strict=True)}
    return {"label": label, "score": round(float(p_C[best]), 6), "scores": scores}

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """Also Matthews' correlation, and the calibration error of predictions with a score."""
    targets = [item.target for item in examples.items]
    labels = [prediction["label"] for prediction in predictions]
    scores = metrics.classification(targets, labels, self.labels)
    if all("score" in prediction for prediction in predictions):
      confidence = np.array([prediction["score"] for prediction in predictions])
      correct = np.array(targets) == np.array(labels)
      scores["ece"] = metrics.expected_calibration_error(correct, confidence)
    return scores

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    targets = [item.target for item in examples.items]
    return metrics.confusion(targets, [p["label"] for p in predictions], self.labels)

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return 0.0 if prediction["label"] == example.target else prediction["score"]

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    known = splits.train.targets["label"]
    best = np.full(len(splits.test), np.bincount(known).argmax())
    if name == "words" and len(np.unique(known)) > 1:
      best = best_bag_of_words(splits).predictions
    return [{"label": self.labels[number]} for number in best]
