"""The axes of the mesh of devices, and the rows of activations on it.

The step sets the mesh (`jax.set_mesh`) while it is traced; models and objectives call `split_rows`
alone and know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # the axes that split the rows of a batch


def split_rows(x: jax.Array) -> jax.Array:
  """`x` `[B, ...]` with its rows split over `ROW_AXES`; the compiler places the other dimensions.

  Without this the compiler may split activations by width instead, as `fsdp` splits the kernels:
  then every device keeps all rows. Does nothing without a mesh, on one device, and for rows that
  the devices do not divide.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or not set(ROW_AXES) <= set(mesh.axis_names):
    return x
  if not splits_rows(x.shape[0]):
    return x
  others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, *others))


def on_all_devices(x: jax.Array) -> jax.Array:
  """`x` on every device of the mesh. Does nothing without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.size <= 1 else jax.lax.with_sharding_constraint(x, PartitionSpec())


def split_heads(
  function: Callable,
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  by_row: Any,
  seed: Any,
  by_head: Any = None,
) -> jax.Array:
  """`function(first head, queries, keys, values, by_row, seed, by_head)` `[B, T, N, H]` on every
  device for its rows and heads, for kernels that the compiler cannot split.

  first head: int32 `[]`, number of the device's first head in `[B, N]`. by_row: a tree of arrays
  `[B, ...]`; by_head: of arrays `[N, ...]`. Heads are split over `tensor` where it divides the key
  heads. Rows must be divisible (`splits_rows`).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:
    return function(jnp.zeros((), jnp.int32), q_BTNH, k_BSKH, v_BSKH, by_row, seed, by_head)
  N = q_BTNH.shape[2]
  heads = "tensor" if heads_are_split_by(k_BSKH.shape[2]) > 1 else None

  def local(q_BTNH, k_BSKH, v_BSKH, by_row, seed, by_head):
    row = jax.lax.axis_index(ROW_AXES) * q_BTNH.shape[0]
    head = jax.lax.axis_index("tensor") * q_BTNH.shape[2] if heads else 0
    return function(row * N + head, q_BTNH, k_BSKH, v_BSKH, by_row, seed, by_head)

  split, rows = PartitionSpec(ROW_AXES, None, heads), PartitionSpec(ROW_AXES)
  specs = (split, split, split, rows, PartitionSpec(), PartitionSpec(heads))
  # `check_vma` is off because a kernel's results do not say which axes they differ along.
  kernel = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
  return kernel(q_BTNH, k_BSKH, v_BSKH, by_row, seed, by_head)


def heads_are_split_by(key_heads: int) -> int:
  """The number of parts into which `split_heads` splits the heads; 1 without a mesh."""
  tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
  return tensor if key_heads % tensor == 0 else 1


def rows_are_split_by() -> int:
  """The number of parts into which the mesh splits the rows of a batch; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return prod(mesh.shape.get(axis, 1) for axis in ROW_AXES)


def splits_rows(rows: int) -> bool:
  """Whether every device has the same number of `rows`."""
  return rows % rows_are_split_by() == 0
