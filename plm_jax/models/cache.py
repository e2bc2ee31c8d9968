"""The cache of generation: keys and values of the tokens read so far.

A cache is a value: a step takes one and returns the next. In a loop within one `jax.jit` XLA
changes it in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plm_jax.models.compute import Compute


class KeyValues(NamedTuple):
  """Keys and values of S positions, with K heads each; N / K query heads share one."""

  keys_BSKH: jax.Array
  values_BSKH: jax.Array


class KVStore(NamedTuple):
  """Keys and values that are read many times: R = B K, a row for every head of every text.

  A product reads this layout in place. XLA would make a transposed copy of `[B, S, K, H]` for every
  token, which costs six times as much as reading on a CPU (docs/speed.md).
  """

  keys_RSH: jax.Array
  values_RSH: jax.Array

  @classmethod
  def empty(cls, rows: int, positions: int, heads: int, head_width: int, dtype) -> KVStore:
    """A store of zeros; attention must mask the positions that are not written yet."""
    zeros_RSH = jnp.zeros((rows * heads, positions, head_width), dtype)
    return cls(zeros_RSH, zeros_RSH)

  @classmethod
  def from_key_values(cls, new: KeyValues) -> KVStore:
    return cls(*(x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in new))

  def extended(self, new: KeyValues, at: jax.Array) -> KVStore:
    """This with the T positions of `new` written to columns `at`, ..., `at + T - 1`."""
    write = jax.lax.dynamic_update_slice_in_dim
    pairs = zip(self, KVStore.from_key_values(new), strict=True)
    return KVStore(*(write(old, x.astype(old.dtype), at, axis=1) for old, x in pairs))


class LayerCache(NamedTuple):
  """Keys and values of one layer. own: of the columns written so far. source: of the source,
  computed once."""

  own: KVStore
  source: KVStore | None = None


def empty_cache(make: Callable[[], LayerCache], layers: int, compute: Compute) -> Any:
  """The empty cache of `extend_blocks`: a list of the layers' caches if layers are unrolled, one
  cache with a leading layer axis if they are scanned. In a loop both are changed in place."""
  if compute.unrolls(layers):
    return [make() for _ in range(layers)]
  return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), jax.eval_shape(make))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionCache:
  """The cache of a stack for B rows that are padded on the left: all write the same column at once.

  layers: as `empty_cache` makes it. pad_B: number of padding columns at a row's beginning.
  at: columns written so far, int32 `[]`. source_mask: bool `[B, 1, 1, S]` of cross-attention, or
  None.
  """

  layers: Any
  pad_B: jax.Array
  at: jax.Array
  source_mask: jax.Array | None = None

  def take(
    self,
    rows: jax.Array | None = None,
    *,
    same_prompts: bool = False,
    capacity: int | None = None,
  ) -> AttentionCache:
    """See `plm_jax.decode.generator.Cache`. With same_prompts only the layers' own keys and values
    move, since the beams of a prompt share padding and source."""
    cache = self
    if rows is not None and same_prompts:
      cache = cache._with_own(lambda x: self._of_rows(x, rows))
    elif rows is not None:
      mask = None if self.source_mask is None else self.source_mask[rows]
      layers = jax.tree.map(lambda x: self._of_rows(x, rows), self.layers)
      cache = AttentionCache(layers, self.pad_B[rows], self.at, mask)
    if capacity is not None:
      empty = [(0, 0), (0, capacity - self.columns), (0, 0)]
      cache = cache._with_own(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 3) + empty))
    return cache

  def joined(self, row: AttentionCache, slot: jax.Array) -> AttentionCache:
    """This with the one row of another cache, whose columns are all written, in place of row
    `slot`. The row's columns end at `at`, which must be at least their number."""

    def put(x, y, column):
      begin = [0] * (x.ndim - 3) + [slot * y.shape[-3], column, 0]
      return jax.lax.dynamic_update_slice(x, y.astype(x.dtype), begin)

    def joined(layer: LayerCache, new: LayerCache) -> LayerCache:
      own = jax.tree.map(lambda x, y: put(x, y, self.at - row.columns), layer.own, new.own)
      source = jax.tree.map(lambda x, y: put(x, y, 0), layer.source, new.source)
      return LayerCache(own, source)

    is_layer = lambda node: isinstance(node, LayerCache)  # noqa: E731
    layers = jax.tree.map(joined, self.layers, row.layers, is_leaf=is_layer)
    pad_B = self.pad_B.at[slot].set(self.at - row.columns + row.pad_B[0])
    mask = self.source_mask
    if mask is not None and row.source_mask is not None:
      width = mask.shape[-1] - row.source_mask.shape[-1]
      mask = mask.at[slot].set(jnp.pad(row.source_mask[0], [(0, 0), (0, 0), (0, width)]))
    return AttentionCache(layers, pad_B, self.at, mask)

  def shifted(self, columns: jax.Array) -> AttentionCache:
    """All columns moved to the right, or to the left if `columns` is negative. The columns that
    come in at the other end must be masked: padding, or not written yet."""
    cache = self._with_own(lambda x: jnp.roll(x, columns, axis=-2))
    return dataclasses.replace(cache, pad_B=self.pad_B + columns, at=self.at + columns)

  def _with_own(self, change: Callable[[jax.Array], jax.Array]) -> AttentionCache:
    """The cache with `change` applied to every layer's own keys and values."""

    def changed(layer: LayerCache) -> LayerCache:
      return layer._replace(own=jax.tree.map(change, layer.own))

    is_layer = lambda node: isinstance(node, LayerCache)  # noqa: E731
    layers = jax.tree.map(changed, self.layers, is_leaf=is_layer)
    return dataclasses.replace(self, layers=layers)

  def _of_rows(self, x_RSH: jax.Array, rows: jax.Array) -> jax.Array:
    """The heads of the given rows; x may have a leading layer axis."""
    heads = x_RSH.shape[-3] // len(self.pad_B)
    chosen_R = (rows[:, None] * heads + jnp.arange(heads)).reshape(-1)
    return jnp.take(x_RSH, chosen_R, axis=x_RSH.ndim - 3)

  @property
  def columns(self) -> int:
    """The number of columns, written or not."""
    return jax.tree.leaves(self.layers)[0].shape[-2]

  def mask(self, targets: int) -> jax.Array:
    """bool `[B, 1, T, S]` over the cache's S columns, for the next T columns."""
    return cache_mask(self.pad_B, self.at, targets, self.columns)

  def position_ids(self, targets: int) -> jax.Array:
    """int `[B, T]`: the positions of the next T columns, 0 for padding and a row's first token."""
    column = self.at + jnp.arange(targets)
    return jnp.maximum(column - self.pad_B[:, None], 0)


def cache_mask(pad_B: jax.Array, at: jax.Array, targets: int, positions: int) -> jax.Array:
  """bool `[B, 1, T, S]` over the S columns of a cache, for the T columns from `at` on: True where
  the source is not after the target and not padding (the row's first `pad_B` columns)."""
  source = jnp.arange(positions)
  causal_TS = source <= at + jnp.arange(targets)[:, None]
  return causal_TS[None, None] & (source >= pad_B[:, None])[:, None, None, :]
