"""Dropout (Srivastava et al. 2014) with masks from threefry or from a counter hash.

Threefry is JAX's reference generator; on a CPU it costs more than the layer that it regularises.
The hash of an element is the product modulo 2**32 of two odd keys, one of its row (all axes but the
last) and one of its column (Dietzfelbinger 1996, multiplicative hashing). A key mixes (seed, index)
by two multiply-xorshift rounds. So an element costs one multiplication, its bits look independent
(tests/models/test_dropout.py checks rate, correlation and streams), and kernels of attention draw
the same. `Compute.dropout` chooses.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

MaskGenerator = Literal["hash", "threefry"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
  """A source of random bits for one forward pass; `fold` gives every use a separate stream."""

  seed: jax.Array  # a typed key (threefry) or one uint32 (hash)
  generator: MaskGenerator = dataclasses.field(metadata={"static": True}, default="hash")

  @classmethod
  def create(cls, key: jax.Array, generator: MaskGenerator) -> Noise:
    return cls(key if generator == "threefry" else jax.random.bits(key), generator)

  def fold(self, stream: int | jax.Array) -> Noise:
    """An independent source for the use numbered `stream`."""
    if self.generator == "threefry":
      return Noise(jax.random.fold_in(self.seed, stream), self.generator)
    return Noise(mix(self.seed + jnp.uint32(0x9E3779B9) * (_u32(stream) + 1)), self.generator)

  def keep(self, shape: tuple[int, ...], rate: float, part: Part | None = None) -> jax.Array:
    """bool `shape`, True with probability `1 - rate`. part: the place of this mask in the mask of a
    larger array; None is the whole mask."""
    whole, begin = part or Part(shape, (0,) * len(shape))
    if self.generator == "threefry":
      mask = jax.random.bernoulli(self.seed, 1.0 - rate, whole)
      return jax.lax.slice(mask, begin, [b + s for b, s in zip(begin, shape, strict=True)])
    rows, columns = _rows(shape[:-1], whole[:-1], begin[:-1]), jnp.arange(shape[-1])
    keys = row_keys(self.seed, rows), column_keys(self.seed, columns + begin[-1])
    rows, columns = jax.lax.optimization_barrier(keys)  # a key is mixed once, not for each element
    return kept(rows[..., None], columns, rate)


def row_keys(seed: jax.Array, rows: jax.Array) -> jax.Array:
  """uint32: odd keys of rows, by their numbers in the whole array modulo 2**32."""
  return mix(rows.astype(jnp.uint32) ^ seed) | 1


def column_keys(seed: jax.Array, columns: jax.Array) -> jax.Array:
  """uint32: odd keys of columns. Their hashes are of other numbers than those of rows."""
  return mix(columns.astype(jnp.uint32) ^ ~seed) | 1


def kept(rows: jax.Array, columns: jax.Array, rate: float) -> jax.Array:
  """bool: the elements that dropout keeps. rows, columns: their keys, which broadcast."""
  return rows * columns >= jnp.uint32(keep_threshold(rate))


def keep_threshold(rate: float) -> int:
  """The least hash of an element that dropout keeps."""
  return min(round(rate * 2**32), 2**32 - 1)


class Part(NamedTuple):
  """The place of an array in a larger one."""

  whole: tuple[int, ...]  # shape of the larger array
  begin: tuple[int, ...]  # index of the part's first element


def dropout(x: jax.Array, rate: float, noise: Noise | None, part: Part | None = None) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest; the identity without noise.
  part: as of `Noise.keep`."""
  if noise is None or rate == 0.0:
    return x
  return jnp.where(noise.keep(x.shape, rate, part), x * (1.0 / (1.0 - rate)), 0).astype(x.dtype)


def streams(noise: Noise | None, count: int) -> list[Noise | None]:
  """`count` independent sources of noise, or as many Nones."""
  return [None if noise is None else noise.fold(i) for i in range(count)]


def mix(x: jax.Array) -> jax.Array:
  """A bijective hash of uint32 with low bias (C. Wellons, "lowbias32", hash-prospector, 2018)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def _rows(shape: tuple[int, ...], whole: tuple[int, ...], begin: tuple[int, ...]) -> jax.Array:
  """uint32 `shape`: the row-major indices of a part's elements in the whole, modulo 2**32."""
  strides = [math.prod(whole[axis + 1 :]) for axis in range(len(shape))]
  iotas = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
  first = sum(b * s for b, s in zip(begin, strides, strict=True)) % 2**32
  return sum(
    (i * jnp.uint32(s % 2**32) for i, s in zip(iotas, strides)),
    jnp.full(shape, first, jnp.uint32),
  )


def _u32(value: int | jax.Array) -> jax.Array:
  return jnp.asarray(value).astype(jnp.uint32)
