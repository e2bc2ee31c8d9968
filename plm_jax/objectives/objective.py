"""The interface of an objective, and the cross-entropy that all objectives share.

An objective has two halves. `corrupt` runs on the host. It is a pure numpy function over a block of
rows, and its random numbers depend on (seed, epoch, row) alone. `loss` runs on the device. It reads
one forward pass and returns sums and counts; the mean is taken over all devices and micro-batches.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.placement import rows_are_split_by

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.vocab import Vocab
  from plm_jax.models.dropout import Noise
  from plm_jax.objectives.baselines import Baseline

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Metric name -> (sum, count), both float32 scalars. "loss" is what training minimises."""


class Objective(Protocol):
  """One term of the training loss."""

  name: str  # the prefix of its metrics: "mlm/loss"
  weight: float  # its factor in the sum of the objectives' means
  # pairs: only for objectives that read `pair_label`: the SegmentPair.next that makes the labels.

  @property
  def heads(self) -> dict[str, int]:
    """The heads that the model must have, with their output sizes (0: the model knows)."""

  def corrupt(self, batch: dict[str, np.ndarray], draws: Draws, vocab: Vocab) -> dict:
    """The rows with this objective's inputs and targets, `[B, ...]`."""

  def count(self, batch: dict) -> jax.Array:
    """The number of predictions, by the batch alone: gradients of micro-batches can be summed."""

  def loss(self, model, hidden: Any, batch: dict, noise: Noise | None) -> Terms:
    """Sums and counts of "loss" and of this objective's metrics.

    hidden: the result of the model's forward pass, `[B, T, D]` or, for a composite model, a tuple.
    """

  def baseline(self, counts: np.ndarray, batches: list[dict], scores: dict) -> Baseline:
    """A trivial baseline on these held-out batches. A report shows its metrics beside the loss.

    counts: int `[V]`, how often each token is in the training text. scores: the trained model's,
    `{"mlm/loss": ...}`, for objectives whose labels come from the model itself.
    """


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Terms:
  """Weighted sum of `-log softmax(logits)[target]` in nats, and of correct predictions.

  logits float32 `[..., V]`, targets int `[...]`, weights float32 `[...]`. A prediction counts as
  correct when no class scores higher. `log_softmax` would write a second array of the logits' size.
  """
  losses, correct = losses_of(logits, targets)
  count = weights.sum()
  return {"loss": ((losses * weights).sum(), count), "accuracy": ((correct * weights).sum(), count)}


@jax.custom_vjp
def losses_of(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`-log softmax(logits)[target]`, float32, and whether no class scores higher, both `[...]`.

  Its gradient is one pass over the logits. JAX's own would scatter the targets' part into an array
  of their size.
  """
  return _losses_forward(logits, targets)[0]


def _losses_forward(logits, targets):
  target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  highest, log_sum = _maximum_and_log_sum(logits)
  return (log_sum - target_logits, target_logits >= highest), (logits, targets, log_sum)


@jax.custom_jvp
def _maximum_and_log_sum(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The largest logit, and the logarithm of the sum of exponentials, float32 `[...]`. A GPU reads
  the logits once (Milakov and Gimelshein 2018, arXiv:1805.02867); otherwise twice."""
  logits = at_least_float32(logits)
  if jax.default_backend() != "gpu":
    highest = logits.max(axis=-1)
    return highest, jnp.log(jnp.exp(logits - highest[..., None]).sum(axis=-1)) + highest

  def joined(a, b):
    (a_highest, a_sum), (b_highest, b_sum) = a, b
    shrink = jnp.exp(-jnp.abs(a_highest - b_highest))
    first = a_highest >= b_highest
    total = jnp.where(first, a_sum + b_sum * shrink, a_sum * shrink + b_sum)
    return jnp.where(first, a_highest, b_highest), total

  start = jnp.finfo(logits.dtype).min, jnp.zeros((), logits.dtype)
  axes = (logits.ndim - 1,)
  highest, total = jax.lax.reduce((logits, jnp.ones_like(logits)), start, joined, axes)
  return highest, jnp.log(total) + highest


@_maximum_and_log_sum.defjvp
def _(logits, tangents):
  """For second derivatives, without a gradient of the maximum."""
  highest, log_sum = _maximum_and_log_sum(*logits)
  p = jnp.exp(logits[0] - log_sum[..., None])
  return (highest, log_sum), (jnp.zeros_like(highest), (p * tangents[0]).sum(axis=-1))


def _losses_backward(kept, gradients):
  logits, targets, log_sum = kept
  classes = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  p = jnp.exp(logits - log_sum[..., None])
  return (p - (classes == targets[..., None])) * gradients[0][..., None], None


losses_of.defvjp(_losses_forward, _losses_backward)


LOGITS = 1 << 25  # the most that are computed at a time on a CPU, for all positions: 128 MB
SHARE_OF_LOGITS = 8  # of an accelerator's memory: one part in so many


def most_logits() -> int:
  """The most logits that are computed at a time on all devices together."""
  device = jax.local_devices()[0]
  memory = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
  if memory is None:
    return LOGITS
  return memory // SHARE_OF_LOGITS // 4 * rows_are_split_by()


def token_terms(
  model,
  hidden_BTD: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> Terms:
  """`cross_entropy` of every position's token, by the model's `token_logits`.

  With label smoothing e the loss is `(1 - e) nll + e mean_v(-log p_v)`, and `nll` is beside it;
  z_loss is the factor of an added `log(Z)^2` (google-research/mesh, mesh_tensorflow layers.py).

  The logits of all positions of a large vocabulary are the largest array of a step by far (GPT-2's
  50,257 tokens: 65 times the hidden states). Above `most_logits`, positions are taken in equal
  parts, one after the other, and gradients are computed with each part's loss, while its logits are
  there: only "loss" has a gradient.
  """

  def terms_of(part) -> Terms:
    hidden, targets, weights = part
    return _terms(model.token_logits(hidden), targets, weights, label_smoothing, z_loss)

  whole = hidden_BTD, targets_BT, weights_BT
  parts = in_parts(model, whole)
  if len(parts[1]) == 1:
    return terms_of(whole)
  first = jax.tree.map(lambda x: x[0], parts)
  pure, head = jax.closure_convert(terms_of, first)
  return _sum_of_parts(pure, tuple(head), parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_parts(terms_of, head: tuple, parts) -> Terms:
  """The sum of `terms_of(part, *head)`. head: the arrays that make logits of hidden states. parts:
  hidden states `[parts, B, W, D]`, targets and weights `[parts, B, W]`."""
  return _scan_sum(lambda part: (terms_of(part, *head), ()), parts)[0]


def _sum_forward(terms_of, head, parts):
  def terms_and_gradients(part):
    def loss_of(hidden, head):
      terms = terms_of((hidden, *part[1:]), *head)
      return terms["loss"][0], terms

    (_, terms), (of_hidden, of_head) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
      part[0], head
    )
    return (terms, jax.tree.map(at_least_float32, of_head)), of_hidden

  (terms, of_head), of_hidden = _scan_sum(terms_and_gradients, parts)
  of_head = jax.tree.map(lambda x, like: x.astype(like.dtype), of_head, head)
  return terms, (of_head, of_hidden, parts[1:])


def _sum_backward(terms_of, kept, gradients):
  of_head, of_hidden, (targets, weights) = kept
  scaled = jax.tree.map(lambda x: (x * gradients["loss"][0]).astype(x.dtype), (of_head, of_hidden))
  return scaled[0], (scaled[1], np.zeros(targets.shape, jax.dtypes.float0), jnp.zeros_like(weights))


_sum_of_parts.defvjp(_sum_forward, _sum_backward)


def at_least_float32(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scan_sum(function, parts):
  """`function(part)` is (added up, stacked): the sums and the stacks over all parts."""
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))[0]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    summed, stacked = function(part)
    return jax.tree.map(jnp.add, total, summed), stacked

  return jax.lax.scan(add, zeros, parts)


def token_log_p(model, hidden_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
  """float32 `[B, T]`: log p of every position's target; never more than `most_logits` at a time."""

  def log_p_of(part):
    hidden, targets = part
    log_p = jax.nn.log_softmax(model.token_logits(hidden))
    return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

  log_p_PBW = jax.lax.map(log_p_of, in_parts(model, (hidden_BTD, targets_BT)))
  rows = log_p_PBW.swapaxes(0, 1).reshape(len(targets_BT), -1)
  return rows[:, : targets_BT.shape[1]]


def in_parts(model, arrays: tuple) -> tuple:
  """Arrays `[B, T, ...]`, hidden states first, as `[parts, B, T / parts, ...]`, padded with zeros:
  as many parts as keep each one's logits within `most_logits`."""
  hidden_BTD = arrays[0]
  batch, positions = hidden_BTD.shape[:2]
  vocabulary = jax.eval_shape(model.token_logits, hidden_BTD[:, :1]).shape[-1]
  most = min(positions, max(1, most_logits() // (batch * vocabulary)))
  width = -(-positions // -(-positions // most))  # even parts
  parts = -(-positions // width)

  def part(x):
    x = jnp.pad(x, [(0, 0), (0, parts * width - positions), *[(0, 0)] * (x.ndim - 2)])
    return x.reshape(batch, parts, width, *x.shape[2:]).swapaxes(0, 1)

  return jax.tree.map(part, arrays)


def _terms(logits, targets, weights, label_smoothing: float, z_loss: float) -> Terms:
  terms = cross_entropy(logits, targets, weights)
  if not (label_smoothing or z_loss):
    return terms
  nll, count = terms["loss"]
  log_z = jax.nn.logsumexp(logits, axis=-1)
  even = ((log_z - logits.mean(axis=-1)) * weights).sum()
  extra = z_loss * (jnp.square(log_z) * weights).sum()
  loss = (1 - label_smoothing) * nll + label_smoothing * even + extra
  return terms | {"loss": (loss, count), "nll": (nll, count)}


def real_positions(batch: dict) -> jax.Array:
  """float32 `[B, T]`: 1 where a token is no padding, in rows that count."""
  real_BT = jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
  return real_BT * batch["row_weight"][:, None]
