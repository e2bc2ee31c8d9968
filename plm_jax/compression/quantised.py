"""Linear maps and tables whose weights are stored as integers.

A weight is `scale * q`, with q an integer and one scale for each output of a linear map, for each
row of a table, or for a group of inputs (int4). Rounding is to the nearest, symmetric around 0
(Jacob et al. 2018, arXiv:1712.05877, without zero points). `kernel` and `table` are the weights in
float32, so that code which reads them works with these modules too.

Shapes: K inputs, F outputs, R rows, G groups of inputs. Inputs and outputs of several axes are
flattened; stacked layers have a leading axis.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.models.layers import Embedding, Linear
from plm_jax.models.parameters import Role
from plm_jax.peft.adapted import Sizes, matrix

GROUP = 64  # inputs of a group of int4 weights (Dettmers and Zettlemoyer 2023, section 3)
INT8, INT4 = 127, 7  # the largest integers

# Of the kind `gain`, because all other weights are cast to the dtype of the computation. Queries
# are scaled by their scales.
_WEIGHTS = Role(("features", "features"), "gain", "layer")
_SCALE = Role(("features",), "gain", "layer")
ROLES: dict[str, Role] = {
  "int8": _WEIGHTS,
  "int8_scale": _SCALE,
  "query/int8_scale": _SCALE._replace(query=True),
  "input_scale": Role((), "gain", "layer"),
  "int4": _WEIGHTS,
  "int4_scale": _WEIGHTS,
  "query/int4_scale": _WEIGHTS._replace(query=True),
  "table_int8": Role(("features", "features"), "gain", "embedding"),
  "table_scale": Role(("features",), "gain", "embedding"),
}


def rounded(weights: jax.Array, axis: int, largest: int) -> tuple[jax.Array, jax.Array]:
  """(q, scale): `weights ~ scale * q` with |q| at most `largest`, one scale along `axis`.

  q: int8 of the shape of the weights; scale: float32 without the axis, 0 if all weights are 0.
  """
  scale = jnp.max(jnp.abs(weights), axis, keepdims=True).astype(jnp.float32) / largest
  q = jnp.round(weights / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
  return q, jnp.squeeze(scale, axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightOnlyInt8:
  """A linear map with int8 weights, multiplied in the dtype of its input."""

  ROLES: ClassVar[dict[str, Role]] = ROLES

  int8: jax.Array  # [*layers, K, F]
  int8_scale: jax.Array  # float32 [*layers, F]
  bias: jax.Array | None
  inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, linear: Linear, sizes: Sizes):
    """A `Linear`, of one layer or of a stack, in this form."""
    return cls(*rounded(matrix(linear, sizes), -2, INT8), *_frame(linear, sizes))

  @property
  def kernel(self) -> jax.Array:
    """float32 `[*layers, *inputs, *outputs]`."""
    weights = self.int8.astype(jnp.float32) * self.int8_scale[..., None, :]
    return weights.reshape(*self.int8.shape[:-2], *self.inputs, *self.outputs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., *inputs] -> [..., *outputs]` in the dtype of `x`."""
    x_RK = x.reshape(-1, math.prod(self.inputs))
    return _finished(self, x, self.product(x_RK))

  def product(self, x_RK: jax.Array) -> jax.Array:
    y_RF = jnp.dot(x_RK, self.int8.astype(x_RK.dtype), preferred_element_type=jnp.float32)
    return y_RF * self.int8_scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicInt8(WeightOnlyInt8):
  """A linear map with int8 weights and an int8 input, which is rounded when it is computed: a scale
  for each token, sums in int32."""

  def product(self, x_RK: jax.Array) -> jax.Array:
    q_RK, scale_R = rounded(x_RK.astype(jnp.float32), -1, INT8)
    sums_RF = int8_product(q_RK, self.int8)
    return sums_RF.astype(jnp.float32) * scale_R[:, None] * self.int8_scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticInt8(WeightOnlyInt8):
  """A linear map with int8 weights and an int8 input with one scale, which was measured before
  (calibrated.py). Inputs beyond 127 times the scale are clipped."""

  input_scale: jax.Array  # float32 [*layers]

  @classmethod
  def of(cls, linear: Linear, sizes: Sizes):
    """With a scale of 1, for `calibrated` to replace."""
    weights = rounded(matrix(linear, sizes), -2, INT8)
    return cls(*weights, *_frame(linear, sizes), jnp.ones(sizes.layers, jnp.float32))

  def product(self, x_RK: jax.Array) -> jax.Array:
    q_RK = jnp.round(jnp.clip(x_RK.astype(jnp.float32) / self.input_scale, -INT8, INT8))
    sums_RF = int8_product(q_RK.astype(jnp.int8), self.int8)
    return sums_RF.astype(jnp.float32) * (self.input_scale * self.int8_scale)


def int8_product(x_RK: jax.Array, w_KF: jax.Array) -> jax.Array:
  """int32 `[R, F]` of int8 arrays, exact for K below 2^17."""
  dimensions = (((1,), (0,)), ((), ()))
  return jax.lax.dot_general(x_RK, w_KF, dimensions, preferred_element_type=jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightOnlyInt4:
  """A linear map with int4 weights, two to a byte, multiplied in the dtype of its input."""

  ROLES: ClassVar[dict[str, Role]] = ROLES

  int4: jax.Array  # uint8 [*layers, K / 2, F]
  int4_scale: jax.Array  # float32 [*layers, G, F]
  bias: jax.Array | None
  inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  @classmethod
  def of(cls, linear: Linear, sizes: Sizes) -> WeightOnlyInt4:
    """Errors: `UserError` for an odd number of inputs."""
    weights, layers = matrix(linear, sizes), sizes.layers
    group = group_of(sizes.inputs)
    grouped = weights.reshape(*layers, sizes.inputs // group, group, sizes.outputs)
    q, scale = rounded(grouped, -2, INT4)
    return cls(packed(q.reshape(weights.shape)), scale, *_frame(linear, sizes))

  @property
  def kernel(self) -> jax.Array:
    """float32 `[*layers, *inputs, *outputs]`."""
    return self._weights().reshape(*self.int4.shape[:-2], *self.inputs, *self.outputs)

  def _weights(self) -> jax.Array:
    q, groups = unpacked(self.int4), self.int4_scale.shape[-2]
    grouped = q.reshape(*q.shape[:-2], groups, -1, q.shape[-1]).astype(jnp.float32)
    return (grouped * self.int4_scale[..., None, :]).reshape(q.shape)

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., *inputs] -> [..., *outputs]` in the dtype of `x`."""
    x_RK, weights_KF = x.reshape(-1, math.prod(self.inputs)), self._weights().astype(x.dtype)
    return _finished(self, x, jnp.dot(x_RK, weights_KF, preferred_element_type=jnp.float32))


def group_of(inputs: int) -> int:
  """The inputs that share a scale: the largest divisor up to `GROUP`, and all if it is below 8.
  Errors: `UserError` for an odd number, whose last weight would have half a byte alone."""
  if inputs % 2:
    raise UserError(
      f"w4 stores two weights in a byte, and a linear map of the model has {inputs} inputs, an odd "
      "number; use w8"
    )
  return next((g for g in range(GROUP, 7, -1) if inputs % g == 0), inputs)


def packed(q: jax.Array) -> jax.Array:
  """int8 `[..., K, F]` from -8 to 7 -> uint8 `[..., K / 2, F]`: input 2i in the low half of byte i,
  input 2i + 1 in the high half."""
  pairs = (q + 8).astype(jnp.uint8).reshape(*q.shape[:-2], -1, 2, q.shape[-1])
  return pairs[..., 0, :] | (pairs[..., 1, :] << 4)


def unpacked(q: jax.Array) -> jax.Array:
  """The inverse of `packed`."""
  pairs = jnp.stack([q & 15, q >> 4], axis=-2).astype(jnp.int8) - 8
  return pairs.reshape(*q.shape[:-2], -1, q.shape[-1])


def _frame(linear: Linear, sizes: Sizes):
  """The bias, and the axes of inputs and outputs."""
  first = len(sizes.layers)
  axes = linear.kernel.shape[first:]
  bias = None if linear.bias is None else linear.bias[...]
  return bias, axes[: linear.axes], axes[linear.axes :]


def _finished(linear, x: jax.Array, y_RF: jax.Array) -> jax.Array:
  """A product in the shape and the dtype of the output, with the bias."""
  y = y_RF.reshape(*x.shape[: x.ndim - len(linear.inputs)], *linear.outputs).astype(x.dtype)
  return y if linear.bias is None else y + linear.bias.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Embedding:
  """A table of vectors in int8, with a scale for each row."""

  ROLES: ClassVar[dict[str, Role]] = ROLES

  table_int8: jax.Array  # [V, D]
  table_scale: jax.Array  # float32 [V]

  @classmethod
  def of(cls, embedding: Embedding) -> Int8Embedding:
    return cls(*rounded(embedding.table[...], -1, INT8))

  @property
  def table(self) -> jax.Array:
    """float32 `[V, D]`."""
    return self.table_int8.astype(jnp.float32) * self.table_scale[:, None]

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int `[...] -> dtype [..., D]`."""
    rows = self.table_int8[ids].astype(jnp.float32) * self.table_scale[ids][..., None]
    return rows.astype(dtype)
