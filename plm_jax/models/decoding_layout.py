"""Weight layouts for generation, where every token of one or a few rows reads all weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.compute import Compute
from plm_jax.models.layer_loop import unstack
from plm_jax.models.layers import Linear
from plm_jax.models.parameters import map_roles
from plm_jax.models.products import einsum_float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransposedLinear:
  """A `Linear` with a transposed kernel `[F, K]` as the left operand of its product. On a CPU that
  takes half the time for two or more rows, and for one row if K > F (docs/speed.md)."""

  kernel_FK: jax.Array
  bias: jax.Array | None
  inputs: int = dataclasses.field(metadata={"static": True})  # axes of x
  outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  @classmethod
  def from_linear(cls, linear: Linear) -> TransposedLinear:
    kernel, axes = linear.kernel[...], linear.axes
    contracted = math.prod(kernel.shape[:axes])
    bias = None if linear.bias is None else linear.bias[...]
    return cls(kernel.reshape(contracted, -1).T, bias, axes, kernel.shape[axes:])

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., *inputs] -> [..., *outputs]` in the dtype of `x`."""
    rows_RK = x.reshape(-1, self.kernel_FK.shape[1])
    y_FR = jnp.einsum("FK,RK->FR", self.kernel_FK.astype(x.dtype), rows_RK)
    # The barrier keeps XLA from swapping the operands again.
    y_RF = jax.lax.optimization_barrier(y_FR).T
    y = y_RF.reshape(*x.shape[: x.ndim - self.inputs], *self.outputs)
    return y if self.bias is None else y + self.bias.astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
  """The scores of the next token. table: `[V, D]` if it is the left operand, else `[D, V]`."""

  table: jax.Array
  is_left: bool = dataclasses.field(metadata={"static": True})

  def __call__(self, x_BD: jax.Array) -> jax.Array:
    """float32 `[B, V]`."""
    if self.is_left:
      logits_VB = einsum_float32("VD,BD->VB", self.table, x_BD)
      return jax.lax.optimization_barrier(logits_VB).T
    return einsum_float32("BD,DV->BV", x_BD, self.table)


def decoding_layout(
  blocks: nnx.Module, layers: int, table_VD: jax.Array, compute: Compute, rows: int
) -> tuple[Any, Output]:
  """The layers (a list if they are unrolled) and the output's table, in the activations' dtype and
  in the layout that `rows` rows read fastest."""
  dtype, cpu = compute.activation_dtype, jax.default_backend() == "cpu"
  is_left, table = cpu and rows > 1, table_VD.astype(dtype)
  output = Output(table if is_left else table.T, is_left)
  blocks = in_dtype(blocks, dtype)
  if not compute.unrolls(layers):
    return blocks, output
  single = unstack(blocks, layers)
  return [_transposed(block, rows) for block in single] if cpu else single, output


def _transposed(block: nnx.Module, rows: int) -> nnx.Module:
  """The block with a `TransposedLinear` for each `Linear`, if that is faster: for one row only if
  the kernel has more inputs than outputs."""

  def transpose(node):
    if not is_linear(node):
      return node
    contracted = math.prod(node.kernel.shape[: node.axes])
    is_faster = rows > 1 or contracted**2 > node.kernel.size
    return TransposedLinear.from_linear(node) if is_faster else node

  is_linear = lambda node: isinstance(node, Linear)  # noqa: E731
  return jax.tree.map(transpose, block, is_leaf=is_linear)


def in_dtype(module: nnx.Module, dtype) -> nnx.Module:
  """The module with kernels cast to the dtype of the computation."""

  def cast(path, role, leaf):
    return leaf.astype(dtype) if role.kind == "kernel" else leaf

  return map_roles(cast, module)
