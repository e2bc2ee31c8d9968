"""Classification of rows: loss, predictions, accuracy and macro-F1.

Source: google-research/bert run_classifier.py. The state of [CLS] is pooled, dropped out and mapped
to one score per class; the loss is the mean cross-entropy of the rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.sharding import to_global


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


def predict(params, batches: Iterable[dict], compute: Compute, mesh) -> np.ndarray:
  """The most probable class of every row with row_weight above 0, int32 [N], in row order."""
  best = _best(compute, mesh)
  outputs = [best(params, to_global(batch, mesh)) for batch in batches]
  rows = [(np.asarray(classes), np.asarray(weight) > 0) for classes, weight in outputs]
  return np.concatenate([classes[counts] for classes, counts in rows])


@functools.lru_cache(maxsize=8)
def _best(compute: Compute, mesh):
  """Compiled once per shape: every seed of every arm predicts with the same program."""

  def best(model, batch):
    logits_BC = model.class_logits(model(batch, compute, None), batch, None)
    return jnp.argmax(logits_BC, axis=-1).astype(jnp.int32), batch["row_weight"]

  return jax.jit(best, out_shardings=NamedSharding(mesh, PartitionSpec()))


def score(targets: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
  """Accuracy, and macro-F1: the unweighted mean over all classes of 2 P R / (P + R).

  A class without a correct prediction has F1 0.
  """
  from sklearn.metrics import accuracy_score, f1_score

  return {
    "accuracy": float(accuracy_score(targets, predictions)),
    "macro_f1": float(
      f1_score(targets, predictions, labels=range(classes), average="macro", zero_division=0)
    ),
  }
