"""T5's relative positions: a learned bias of the scores for every head and distance (Raffel et al.
2020, section 2.1; google-research/mesh, mesh_tensorflow transformer_layers.py
`_relative_position_bucket`). All layers of a stack share one table."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plm_jax.models.layers import Embedding


def buckets_of(distances: int, buckets: int, furthest: int) -> np.ndarray:
  """int32 `[distances]`: the buckets of the distances from 0 on, with `buckets` buckets in one
  direction. Half of them hold one distance each, the others grow logarithmically up to `furthest`.

  Computed in float32, as in the original: 32 buckets up to 128 in one direction begin at 0, 1, ..,
  15, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113.
  """
  exact = buckets // 2
  distance = np.arange(distances)
  share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(max(exact, 1)))
  share = share / np.float32(math.log(furthest / max(exact, 1)))
  growing = exact + (share * np.float32(buckets - exact)).astype(np.int32)
  return np.where(distance < exact, distance, np.minimum(growing, buckets - 1)).astype(np.int32)


class RelativeBias(nnx.Module):
  """`bias[n, t, s] = table[bucket(s - t), n]`.

  bidirectional: half of the buckets are for sources after the target; otherwise such sources have
  bucket 0 and must be masked.
  """

  def __init__(self, key, buckets: int, furthest: int, heads: int, bidirectional: bool):
    self.relative = Embedding(key, buckets, heads)
    self.buckets, self.furthest, self.bidirectional = buckets, furthest, bidirectional

  def bucket(self, relative: jax.Array) -> jax.Array:
    """int like `relative`, which is source position minus target position."""
    one_way = self.buckets // 2 if self.bidirectional else self.buckets
    table = jnp.asarray(buckets_of(self.furthest + 1, one_way, self.furthest))
    before = jnp.abs(relative) if self.bidirectional else jnp.maximum(-relative, 0)
    after = one_way * (relative > 0) if self.bidirectional else 0
    return table[jnp.minimum(before, self.furthest)] + after

  def __call__(self, targets: int, sources: int) -> jax.Array:
    """float32 `[1, N, T, S]` for targets and sources that begin at position 0.

    The biases of all T + S - 1 distances are looked up once, and each target's row is a window of
    them by a reshape. Its gradient is a sum; that of T * S look-ups would be a scatter.
    """
    T, S = targets, sources
    if not isinstance(T, int):  # an exported function, whose sizes are symbols
      return self.at(0, T, S)
    by_distance_LN = self.relative.table[...][self.bucket(jnp.arange(1 - T, S))]
    flat = jnp.broadcast_to(jnp.pad(by_distance_LN, ((0, 1), (0, 0))), (T, T + S, self.heads))
    flat = flat.reshape(-1, self.heads)[: T * (T + S - 1)]
    return flat.reshape(T, T + S - 1, -1)[:, T - 1 :].transpose(2, 0, 1)[None]

  def at(self, begin: jax.Array, targets: int, sources: int) -> jax.Array:
    """float32 `[1, N, T, S]` for targets from column `begin` on, as in a cache."""
    relative_TS = jnp.arange(sources) - (begin + jnp.arange(targets))[:, None]
    return self.relative.table[...][self.bucket(relative_TS)].transpose(2, 0, 1)[None]

  @property
  def heads(self) -> int:
    return self.relative.table.shape[-1]
