"""Tasks with one label for each example: loss, predictions, scores and baselines.

Source: google-research/bert run_classifier.py. The state of [CLS] is pooled, dropped out and mapped
to one score per class; the loss is the mean cross-entropy of the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.tasks import metrics
from plm_jax.tasks.bag_of_words import best_bag_of_words
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits, encoded
from plm_jax.tasks.predicting import outputs
from plm_jax.tasks.task import Task, Trained
from plm_jax.tasks.task_objective import TaskObjective

TEACHER = "teacher"  # in a batch: the teacher's logits, float32 [B, classes]
NONE = "(none)"  # the label of a prediction below the threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(TaskObjective):
  """Mean of `-log p(label | row)` over rows; an objective like any other, so `fit` trains it.

  labels: the number of classes.
  label_smoothing: e of `(1 - e) loss + e mean_c(-log p_c)` (Szegedy et al. 2016, section 7).
  class_weights: the weight of a row in the mean, by its class; empty is 1. balanced: fills them in,
    so that all classes weigh alike.
  soft: with a teacher, the share of its loss, `T^2 KL(teacher || model)` of both at temperature T,
    beside that of the labels (Hinton et al. 2015, section 2).
  """

  labels: int
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] = ()
  balanced: bool = False
  soft: float = 0.5
  temperature: float = 2.0
  name = "class"

  def __post_init__(self):
    if self.labels < 2:
      raise UserError(f"a classification needs at least 2 classes, and class.labels={self.labels}")
    if not (0 <= self.label_smoothing < 1 and 0 <= self.soft <= 1 and self.temperature > 0):
      raise UserError(
        "class.label_smoothing must be at least 0 and below 1, class.soft from 0 to 1, and "
        "class.temperature above 0"
      )
    weights = self.class_weights
    if weights and (len(weights) != self.labels or min(weights) < 0 or not sum(weights)):
      raise UserError(
        f"class.class_weights has {len(weights)} numbers; expected one for each of the "
        f"{self.labels} classes, at least 0, and not all 0"
      )

  def balancing(self, labels: np.ndarray) -> Self:
    """With weights by which all classes of these labels weigh alike, if `balanced`."""
    if not self.balanced:
      return self
    counts = np.bincount(labels, minlength=self.labels)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return dataclasses.replace(self, class_weights=tuple(map(float, weights)))

  @property
  def heads(self) -> dict[str, int]:
    return {"classes": self.labels}

  def weights(self, batch) -> jax.Array:
    if not self.class_weights:
      return batch["row_weight"]
    return batch["row_weight"] * jnp.asarray(self.class_weights, jnp.float32)[batch["label"]]

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_BC = model.class_logits(hidden, batch, noise)
    terms = cross_entropy(logits_BC, batch["label"], batch["row_weight"])
    teaches = TEACHER in batch and self.soft > 0
    if not (self.class_weights or self.label_smoothing or teaches):
      return terms
    weights_B, log_p_BC = self.weights(batch), jax.nn.log_softmax(logits_BC)
    losses_B = -jnp.take_along_axis(log_p_BC, batch["label"][:, None], axis=1)[:, 0]
    e = self.label_smoothing
    losses_B = (1 - e) * losses_B - e * log_p_BC.mean(axis=1)
    if teaches:
      losses_B = (1 - self.soft) * losses_B + self.soft * self._divergence(logits_BC, batch)
    return terms | {"loss": ((losses_B * weights_B).sum(), weights_B.sum())}

  def _divergence(self, logits_BC: jax.Array, batch) -> jax.Array:
    """float32 [B]: `T^2 KL(teacher || model)`."""
    teacher_BC = jax.nn.log_softmax(batch[TEACHER] / self.temperature)
    model_BC = jax.nn.log_softmax(logits_BC / self.temperature)
    kl_B = (jnp.exp(teacher_BC) * (teacher_BC - model_BC)).sum(axis=1)
    return self.temperature**2 * kl_B

  def baseline(self, counts, batches, scores) -> Baseline:
    return majority(batches, "label")


def unknown_label(item: Example, label: str, known: Sequence[str]) -> UserError:
  return UserError(
    f"the example {item.name} has the label {label!r}, which training never saw: it knows "
    f"{', '.join(known[:20])}; correct the label or leave the example out."
  )


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
  one_answer: ClassVar[bool] = True
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
        raise unknown_label(item, item.target, self.labels)
    targets: dict[str, Any] = {}
    if all(item.target is not None for item in items):
      targets["label"] = np.array([numbers[item.target] for item in items], np.int32)
    return Examples(items, encoded(items, tokenizer), targets)

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

  def teacher_logits(self, task: Task, teacher: Trained, items: Sequence[Example]) -> np.ndarray:
    """float32 [N, classes]: those of a fine-tuned model, in the order of this task's classes.
    Errors: `UserError` for a teacher with other classes."""
    if set(task.classes) != set(self.labels):
      raise UserError(
        f"the teacher knows the classes {', '.join(task.classes[:9]) or '(none)'} and the data has "
        f"{', '.join(self.labels[:9])}; expected the same."
      )
    examples = task.encode(items, teacher.tokenizer)
    rows = task.rows(examples, teacher.config, teacher.tokenizer)
    order = [task.classes.index(label) for label in self.labels]
    return outputs(teacher, rows, class_logits)[:, order]

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    targets = [item.target for item in examples.items]
    return metrics.confusion(targets, [p["label"] for p in predictions], self.labels)

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return 0.0 if prediction["label"] == example.target else prediction["score"]

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    known = splits.train.targets["label"]
    best = np.full(len(splits.test), np.bincount(known).argmax())
    return self.from_targets(best_bag_of_words(splits).predictions if name == "words" else best)

  def from_targets(self, numbers: Iterable[int]) -> list[Prediction]:
    """The predictions of a linear model."""
    return [{"label": self.labels[number]} for number in numbers]
