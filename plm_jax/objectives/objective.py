"""What an objective is, and the cross-entropy that all of them share.

An objective has two halves. `corrupt` runs on the host: a pure numpy function over a block of rows
whose random numbers depend on (seed, epoch, row) alone. `loss` runs on the device: it reads what
one forward pass left and returns sums and counts, so that the mean is taken once, over all devices
and micro-batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.tokenizers import Vocab
  from plm_jax.models.dropout import Noise
  from plm_jax.objectives.baselines import Baseline

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Metric name -> (sum, count), both float32 scalars. "loss" is what training minimises."""


class Objective(Protocol):
  """One term of the training loss."""

  name: str  # the prefix of its metrics: "mlm/loss"
  weight: float  # its factor in the sum of the objectives' means
  # pairs: only where it reads `pair_label`: the SegmentPair.next that makes its labels.

  @property
  def heads(self) -> dict[str, int]:
    """The heads that the model must have for it, with their output sizes (0: the model knows)."""

  def corrupt(self, batch: dict[str, np.ndarray], draws: Draws, vocab: Vocab) -> dict:
    """The rows with this objective's inputs and targets, `[B, ...]`. Host, numpy, pure."""

  def count(self, batch: dict) -> jax.Array:
    """How many predictions the loss of this batch is the mean of: a function of the batch alone, so
    that gradients of micro-batches can be summed."""

  def loss(self, model, hidden: jax.Array, batch: dict, noise: Noise | None) -> Terms:
    """Sums and counts of "loss" and of this objective's metrics."""

  def baseline(self, counts: np.ndarray, batches: list[dict], scores: dict) -> Baseline:
    """What a model that looks at nothing scores on these held-out batches; its metrics are what a
    report shows of this objective, beside the loss. counts: int `[V]`, tokens of the training text.
    scores: the trained model's, `{"mlm/loss": ...}`, where labels come from the model itself."""


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Terms:
  """Weighted sum of `-log softmax(logits)[target]` in nats, and of correct predictions.

  logits float32 `[..., V]`, targets int `[...]`, weights float32 `[...]`. A prediction counts as
  correct when no class scores higher. `log_softmax` would write a second array of the logits' size.
  """
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  highest = jax.lax.stop_gradient(logits.max(axis=-1))
  losses = jnp.log(jnp.exp(logits - highest[..., None]).sum(axis=-1)) + highest - target_logits
  count = weights.sum()
  return {
    "loss": ((losses * weights).sum(), count),
    "accuracy": (((target_logits >= highest) * weights).sum(), count),
  }


def real_positions(batch: dict) -> jax.Array:
  """float32 `[B, T]`: 1 where a token is no padding, in rows that count."""
  real_BT = jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
  return real_BT * batch["row_weight"][:, None]
