"""What a model keeps between the steps of generation: keys and values of what it has read.

A cache is a value: a step takes one and returns the next. In a loop under one `jax.jit` XLA changes
it in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plm_jax.models.compute import Compute


class KeyValues(NamedTuple):
  """What attention reads: keys and values of S positions, K heads of each (K < N: N / K query heads
  share one)."""

  keys_BSKH: jax.Array
  values_BSKH: jax.Array

  @classmethod
  def empty(cls, rows: int, positions: int, heads: int, head_width: int, dtype) -> KeyValues:
    """A cache with nothing in it; what is not written yet must be masked."""
    zeros_BSKH = jnp.zeros((rows, positions, heads, head_width), dtype)
    return cls(zeros_BSKH, zeros_BSKH)

  def extended(self, new: KeyValues, at: jax.Array) -> KeyValues:
    """This cache with the T positions of `new` written to columns `at`, ..., `at + T - 1`."""
    write = jax.lax.dynamic_update_slice_in_dim
    return KeyValues(*(write(old, x.astype(old.dtype), at, axis=1) for old, x in zip(self, new)))


class LayerCache(NamedTuple):
  """What one layer keeps between the steps of generation. own: of the columns written so far.
  source: of the source, computed once."""

  own: KeyValues
  source: KeyValues | None = None


def empty_cache(make: Callable[[], LayerCache], layers: int, compute: Compute) -> Any:
  """What `run_blocks` keeps between steps: a list of the layers' caches where layers are unrolled,
  one cache with a leading layer axis where they are scanned. In a loop both are changed in place.
  """
  if compute.unrolls(layers):
    return [make() for _ in range(layers)]
  return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), jax.eval_shape(make))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """The cache of a whole stack, for B rows that are padded on the left, so that all of them write
  the same column at the same time.

  layers: as `empty_cache` makes it. pad_B: how many of a row's first columns are padding.
  at: columns written so far, int32 `[]`. source_mask: bool `[B, 1, 1, S]`, of what cross-attention
  reads; None where there is none.
  """

  layers: Any
  pad_B: jax.Array
  at: jax.Array
  source_mask: jax.Array | None = None

  def repeated(self, times: int) -> Cache:
    """Every row `times` times, one after the other."""

    def repeat(x, axis=0):
      return jnp.repeat(x, times, axis)

    mask = None if self.source_mask is None else repeat(self.source_mask)
    layers = jax.tree.map(lambda x: repeat(x, x.ndim - 4), self.layers)
    return Cache(layers, repeat(self.pad_B), self.at, mask)

  def reordered(self, rows_B: jax.Array) -> Cache:
    """Row i becomes what `rows_B[i]` was. Only among rows of the same source and padding, as the
    beams of one prompt are: what they have in common stays where it is."""

    def reorder(layer: LayerCache) -> LayerCache:
      own = jax.tree.map(lambda x: jnp.take(x, rows_B, axis=x.ndim - 4), layer.own)
      return layer._replace(own=own)

    is_layer = lambda node: isinstance(node, LayerCache)  # noqa: E731
    return dataclasses.replace(self, layers=jax.tree.map(reorder, self.layers, is_leaf=is_layer))

  def mask(self, targets: int) -> jax.Array:
    """bool `[B, 1, T, S]` over the columns of the cache, for the next T of them."""
    positions = jax.tree.leaves(self.layers)[0].shape[-3]
    return cache_mask(self.pad_B, self.at, targets, positions)

  def position_ids(self, targets: int) -> jax.Array:
    """int `[B, T]`: the positions of the next T columns, a row's first real token being 0; padding
    has 0 too."""
    column = self.at + jnp.arange(targets)
    return jnp.maximum(column - self.pad_B[:, None], 0)


def cache_mask(pad_B: jax.Array, at: jax.Array, targets: int, positions: int) -> jax.Array:
  """bool `[B, 1, T, S]` over the S columns of a cache, for the T columns from `at` on: True where
  the source is not after the target, and not among the row's first `pad_B` columns, its padding."""
  source = jnp.arange(positions)
  causal_TS = source <= at + jnp.arange(targets)[:, None]
  return causal_TS[None, None] & (source >= pad_B[:, None])[:, None, None, :]
