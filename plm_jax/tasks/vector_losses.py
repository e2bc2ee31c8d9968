"""Losses on the vectors of texts that are read alone.

Reimers and Gurevych 2019, section 3 (classes, cosines and triplets); Henderson et al. 2017,
arXiv:1705.00652, section 4.4 (the other texts of a batch as negatives). In a batch the rows of an
example's texts are consecutive. `Ranking` compares the texts of a whole batch, with micro-batches
too.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy
from plm_jax.tasks.task_objective import TaskObjective
from plm_jax.tasks.vectors import Pooled

_NEVER = -1e9  # the score of a text that is no negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorLoss(TaskObjective):
  """together: the texts of an example. pooling: of their states."""

  together: int
  pooling: str = "mean"
  name = "similar"
  heads = {}  # noqa: RUF012  read only

  def weights(self, batch) -> jax.Array:
    return self._grouped(batch["row_weight"])[:, 0]

  def vectors(self, model, hidden, batch, noise=None) -> jax.Array:
    """float32 `[examples, texts, D]`."""
    vectors_BD = Pooled(self.pooling)(model, hidden, batch, noise)
    return vectors_BD.reshape(-1, self.together, vectors_BD.shape[-1])

  def mean(self, losses_G: jax.Array, batch) -> Terms:
    return {"loss": ((losses_G * self.weights(batch)).sum(), self.count(batch))}

  def targets(self, batch, name: str) -> jax.Array:
    """Of each example."""
    return self._grouped(batch[name])[:, 0]

  def _grouped(self, values_B: jax.Array) -> jax.Array:
    return values_B.reshape(-1, self.together)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(VectorLoss):
  """Mean of `(cos(u, v) - similarity)^2`."""

  def loss(self, model, hidden, batch, noise) -> Terms:
    u_GD, v_GD = jnp.moveaxis(unit(self.vectors(model, hidden, batch, noise)), 1, 0)[:2]
    errors_G = (u_GD * v_GD).sum(axis=-1) - self.targets(batch, "similarity")
    return self.mean(jnp.square(errors_G), batch)

  def baseline(self, counts, batches, scores) -> Baseline:
    values = self.values(batches, "similarity")
    return Baseline("mean", {"loss": float(np.var(values))}, unit="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairClasses(VectorLoss):
  """Mean of `-log softmax(W [u, v, |u - v|])[class]`; W is the head `pair_classes`."""

  labels: int

  @property
  def heads(self) -> dict[str, int]:  # pyrefly: ignore[bad-override]
    return {"pair_classes": self.labels}

  def logits(self, model, hidden, batch, noise=None) -> jax.Array:
    """float32 `[examples, classes]`."""
    u_GD, v_GD = jnp.moveaxis(self.vectors(model, hidden, batch, noise), 1, 0)[:2]
    features = jnp.concatenate([u_GD, v_GD, jnp.abs(u_GD - v_GD)], axis=-1)
    return model.pair_classes(features).astype(jnp.float32)

  def probabilities(self, model, hidden, batch) -> jax.Array:
    """float32 `[B, classes]`, those of an example in each of its rows."""
    return jnp.repeat(jax.nn.softmax(self.logits(model, hidden, batch)), self.together, axis=0)

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_GC = self.logits(model, hidden, batch, noise)
    return cross_entropy(logits_GC, self.targets(batch, "label"), self.weights(batch))

  def baseline(self, counts, batches, scores) -> Baseline:
    return majority(batches, "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(VectorLoss):
  """Mean of `-log softmax_j(scale cos(u, v_j))[own v]` over the second texts of the batch, and the
  third ones. `text` numbers the texts: one that is equal to the own second text is no negative."""

  scale: float = 20.0
  by_batch = True  # the loss depends on the number of examples in a batch

  def loss(self, model, hidden, batch, noise) -> Terms:
    vectors_GKD = unit(self.vectors(model, hidden, batch, noise))
    count, weights_G = len(vectors_GKD), self.weights(batch)
    others = lambda x_GK: jnp.moveaxis(x_GK[:, 1:], 1, 0).reshape(-1, *x_GK.shape[2:])  # noqa: E731
    scores_GM = self.scale * vectors_GKD[:, 0] @ others(vectors_GKD).T
    text_GK = self._grouped(batch["text"])
    equal_GM = text_GK[:, 1:2] == others(text_GK)
    own_GM = jnp.eye(count, scores_GM.shape[1], dtype=bool)
    fills_M = jnp.tile(weights_G == 0, self.together - 1)
    scores_GM = jnp.where((equal_GM & ~own_GM) | fills_M, _NEVER, scores_GM)
    return cross_entropy(scores_GM, jnp.arange(count), weights_G)

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("one of the batch", {"loss": float(np.log(self._candidates(batches[0])))})

  def _candidates(self, batch) -> int:
    return len(batch["row_weight"]) // self.together * (self.together - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triplet(VectorLoss):
  """Mean of `max(|u - v| - |u - w| + margin, 0)` with Euclidean distances."""

  margin: float = 1.0

  def loss(self, model, hidden, batch, noise) -> Terms:
    u_GD, v_GD, w_GD = jnp.moveaxis(self.vectors(model, hidden, batch, noise), 1, 0)
    near_G, far_G = (distance(u_GD, other_GD) for other_GD in (v_GD, w_GD))
    return self.mean(jnp.maximum(near_G - far_G + self.margin, 0), batch)

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("equal vectors", {"loss": self.margin}, unit="")


def unit(x: jax.Array) -> jax.Array:
  """Vectors of length 1; the gradient at 0 is finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
  """Euclidean; the gradient at 0 is finite."""
  return jnp.sqrt(jnp.maximum(jnp.square(a - b).sum(axis=-1), 1e-24))
