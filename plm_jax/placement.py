"""The axes of the mesh of devices, and the rows of activations on it.

The step sets the mesh (`jax.set_mesh`) while it is traced; models and objectives call `split_rows`
alone and know nothing of it.
"""

from __future__ import annotations

from math import prod

import jax
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
  if x.shape[0] % prod(mesh.shape[axis] for axis in ROW_AXES):
    return x
  others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES, *others))
