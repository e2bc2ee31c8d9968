"""Adafactor (Shazeer and Stern 2018), in T5's variant.

Source: google-research/mesh, mesh_tensorflow optimize.py `AdafactorOptimizer`. `optax.adafactor`
has the same mathematics, but factors the two largest axes of an array and takes one root mean
square over all of it. Here a kernel is a matrix [inputs, outputs], with heads merged, and each
layer of a stack is separate, because the original has a variable for each.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plm_jax.errors import UserError
from plm_jax.models.parameters import Role, map_roles, stacked_axes, with_roles

_SMALLEST_SCALE = 1e-3  # for tensors whose entries are nearly 0
_EPSILON = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
  """Adafactor without first moments.

      r, c = means over columns and over rows of g^2, each averaged with b = 1 - t^-decay_rate
      u = g / sqrt(r c / mean(r))             or g / sqrt(v) where an axis is below `factored`
      u = u / max(1, rms(u) / clip)           w = w - lr max(0.001, rms(w)) u

  peak: highest learning rate, relative to the size of the weights. warmup: steps of linear increase
  from 0. schedule: `inverse_sqrt` is the peak for `hold` steps, then peak sqrt(hold / step); the
  defaults give 1 / sqrt(max(step, 10,000)), T5's for pretraining. `constant` is T5's for
  fine-tuning.
  """

  peak: float = 1e-2
  warmup: int = 0
  hold: int = 10_000
  schedule: Literal["inverse_sqrt", "constant"] = "inverse_sqrt"
  decay_rate: float = 0.8
  clip: float = 1.0
  factored: int = 128

  def __post_init__(self):
    if not (0 < self.peak < math.inf and self.warmup >= 0 and self.clip > 0):
      raise UserError("optim.peak and optim.clip must be above 0, and optim.warmup at least 0")
    least = self.warmup if self.schedule == "inverse_sqrt" else 1  # a constant rate has no hold
    if self.hold < max(least, 1) or self.factored < 1 or not 0 < self.decay_rate <= 1:
      raise UserError(
        f"optim.hold={self.hold} must be at least 1 and optim.warmup, optim.factored at least 1, "
        "and optim.decay_rate above 0 and at most 1"
      )

  def constants(self, steps: int) -> dict[str, np.float32]:
    """As `AdamW.constants`; the schedule does not depend on the run's length."""
    del steps
    numbers = {"peak": self.peak, "per_warmup": 1 / np.float32(max(self.warmup, 1))}
    return {name: np.float32(number) for name, number in (numbers | {"hold": self.hold}).items()}

  def learning_rate(self, steps: int) -> optax.Schedule:
    """Update number (0 for the first) -> learning rate."""
    return self.schedule_of(self.constants(steps))

  def schedule_of(self, constants: Mapping[str, Any]) -> optax.Schedule:
    """As `learning_rate`, from a run's `constants`."""

    def schedule(update):
      step = jnp.asarray(update, jnp.float32) + 1
      rising = jnp.minimum(1, step * constants["per_warmup"])
      falling = jnp.sqrt(constants["hold"] / jnp.maximum(step, constants["hold"]))
      return constants["peak"] * rising * (falling if self.schedule == "inverse_sqrt" else 1.0)

    return schedule

  def transform(self, steps: int) -> optax.GradientTransformation:
    return self.transform_at(self.learning_rate(steps))

  def transform_at(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
      scale_by_factored_rms(self.decay_rate, self.factored),
      scale_by_sizes(self.clip),
      optax.scale_by_learning_rate(learning_rate),
    )


class FactoredState(NamedTuple):
  """Means of squared gradients: `v_row` [.., I] and `v_col` [.., O] of a factored matrix
  [.., I, O], `v` of any other parameter; the rest is None."""

  count: jax.Array
  v_row: Any
  v_col: Any
  v: Any


def scale_by_factored_rms(decay_rate: float, factored: int) -> optax.GradientTransformation:
  """g / sqrt(the factored or the full mean of g^2)."""

  def init(params):
    def zeros(path, role, leaf, part):
      shape = matrix_shape(path, role, leaf.shape)
      if shape is None or min(shape[-2:]) < factored:
        return jnp.zeros_like(leaf) if part == "v" else None
      sizes = {"v_row": shape[:-1], "v_col": (*shape[:-2], shape[-1])}
      return None if part == "v" else jnp.zeros(sizes[part], leaf.dtype)

    names = ("v_row", "v_col", "v")
    parts = (map_roles(functools.partial(zeros, part=name), params) for name in names)
    return FactoredState(jnp.zeros((), jnp.int32), *parts)

  def update(grads, state, params=None):
    del params
    old = 1 - jnp.asarray(state.count + 1, jnp.float32) ** -decay_rate
    mean = lambda v, new: old * v + (1 - old) * new  # noqa: E731
    tree = jax.tree.structure(grads)
    before = [tree.flatten_up_to(part) for part in (state.v_row, state.v_col, state.v)]
    updates, after = [], []
    for (path, role, g), row, col, v in zip(with_roles(grads), *before, strict=True):
      if row is None:
        v = mean(v, jnp.square(g) + _EPSILON)
        u = g * jax.lax.rsqrt(v)
      else:
        matrix = g.reshape(matrix_shape(path, role, g.shape))
        square = jnp.square(matrix) + _EPSILON
        row, col = mean(row, square.mean(axis=-1)), mean(col, square.mean(axis=-2))
        by_row = jax.lax.rsqrt(row / row.mean(axis=-1, keepdims=True))
        u = matrix * by_row[..., None] * jax.lax.rsqrt(col)[..., None, :]
        u = u.reshape(g.shape)
      updates.append(u)
      after.append((row, col, v))
    parts = (jax.tree.unflatten(tree, part) for part in zip(*after, strict=True))
    return jax.tree.unflatten(tree, updates), FactoredState(state.count + 1, *parts)

  return optax.GradientTransformation(init, update)


def scale_by_sizes(clip: float) -> optax.GradientTransformation:
  """u max(0.001, rms(w)) / max(1, rms(u) / clip), for each layer of a stack separately."""

  def update(updates, state, params):
    def scaled(path, role, u, w):
      axes = tuple(range(stacked_axes(path, role, u.ndim), u.ndim))
      rms = lambda x: jnp.sqrt(jnp.square(x).mean(axes, keepdims=True))  # noqa: E731
      return u / jnp.maximum(1, rms(u) / clip) * jnp.maximum(_SMALLEST_SCALE, rms(w))

    return map_roles(scaled, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def matrix_shape(path: str, role: Role, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """[inputs, outputs] of a kernel or table, after its layer axes; None for biases and gains."""
  if not role.is_weight:
    return None
  layers = shape[: stacked_axes(path, role, len(shape))]
  axes = shape[len(layers) :]
  return (*layers, math.prod(axes[: role.inputs]), math.prod(axes[role.inputs :]))
