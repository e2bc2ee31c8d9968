"""Random numbers that are a function of (seed, epoch, row, stream, column), for many rows at once.

A `default_rng` per row costs more than the masking itself. A hash of a counter needs no state, so
a row gets the same numbers in any batch, on any worker and on any host.

Sources: SplitMix64 (Steele, Lea, Flood 2014) mixes the identity of a row into a 64-bit key; the
32-bit finaliser with multipliers 0x21f0aaad, 0xd35a2d97 (github.com/skeeto/hash-prospector) turns
key and column into bits; half of the key enters before the first multiplication, half after it.

Streams are small integers, one for each purpose: objectives/masking.py has 0 to 3,
data/packing.py 8 to 10, objectives/rtd.py 16 to 18, objectives/rare_mlm.py 32,
objectives/span_corruption.py 40 to 45, objectives/denoising.py 48 to 55, data/kept_words.py 80,
objectives/word2vec.py 81 and 82, objectives/sampled_softmax.py 84.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Self

import numpy as np

_U64 = (1 << 64) - 1
_GOLDEN64 = 0x9E3779B97F4A7C15
_GOLDEN32 = np.uint32(0x9E3779B9)
_MIX64 = [np.uint64(x) for x in (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31)]


@dataclass(frozen=True)
class Draws:
  """Draws for a block of rows; `rows` int [B] are indices within the epoch, not within the batch.

  `epoch` is an int, or int [B] where a batch crosses the end of an epoch.
  """

  seed: int
  epoch: int | np.ndarray
  rows: np.ndarray

  def bits(self, stream: int, columns: int) -> np.ndarray:
    """uint32 [B, columns], uniform."""
    return self.bits_at(stream, np.arange(columns, dtype=np.uint32)[None])

  def uniform(self, stream: int, columns: int) -> np.ndarray:
    """float32 [B, columns] in [0, 1): multiples of 2^-24, so never 1."""
    return (self.bits(stream, columns) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)

  def bits_at(self, stream: int, columns: np.ndarray) -> np.ndarray:
    """uint32 [B, P]: the values of `bits` at `columns` (uint32 [B, P] or [1, P]) only."""
    key = _mix64(self._row_keys + np.uint64((stream + 1) * _GOLDEN64 & _U64))
    early, late = key.astype(np.uint32)[:, None], (key >> np.uint64(32)).astype(np.uint32)[:, None]
    return _mix32(columns * _GOLDEN32 + early, late)

  def repeat(self, copies: int) -> Self:
    """The draws of static corruption, which repeat every `copies` epochs."""
    return replace(self, epoch=self.epoch % copies)

  @cached_property
  def _row_keys(self) -> np.ndarray:
    epoch_key = _mix64(scalar_key(self.seed) + np.atleast_1d(self.epoch).astype(np.uint64))
    return _mix64(epoch_key + np.asarray(self.rows).astype(np.uint64))


def scalar_key(*parts: int) -> int:
  """A 64-bit key of a few integers of any sign."""
  key = 0
  for part in parts:
    key = splitmix(key + (part & _U64) + _GOLDEN64)
  return key


def splitmix(x: int) -> int:
  """SplitMix64's finaliser on a Python integer, for code that draws one number at a time."""
  x &= _U64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _U64
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _U64
  return x ^ (x >> 31)


class Sequence:
  """The sequential SplitMix64 generator, seeded by a key."""

  def __init__(self, *key: int):
    self._state = scalar_key(*key)

  @classmethod
  def at(cls, state: int) -> Self:
    """The generator of `Sequences` with this state."""
    sequence = cls()
    sequence._state = state
    return sequence

  def bits(self) -> int:
    """64 uniform bits."""
    self._state = (self._state + _GOLDEN64) & _U64
    return splitmix(self._state)

  def below(self, size: int) -> int:
    """An integer in [0, size)."""
    return self.bits() * size >> 64

  def chance(self, probability: float) -> bool:
    """True with this probability."""
    return self.bits() < probability * 2.0**64


class Sequences:
  """Many generators, `Sequence(*key, number)` for each of `numbers` int [N]. `which` int [M] below
  are the indices of those that draw, each at most once. state: uint64 [N]."""

  def __init__(self, numbers: np.ndarray, *key: int):
    self.state = _mix64(numbers.astype(np.uint64) + np.uint64(scalar_key(*key) + _GOLDEN64 & _U64))

  def bits(self, which: np.ndarray) -> np.ndarray:
    """uint64 [M]: as `Sequence.bits`."""
    state = self.state[which] + np.uint64(_GOLDEN64)
    self.state[which] = state
    return _mix64(state)

  def below(self, which: np.ndarray, size: int | np.ndarray) -> np.ndarray:
    """int64 [M]: as `Sequence.below`. size: below 2^32, one for all or int [M]."""
    bits, size = self.bits(which), np.asarray(size, np.uint64)
    high, low = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
    return ((high * size + (low * size >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)

  def chance(self, which: np.ndarray, probability: float) -> np.ndarray:
    """bool [M]: as `Sequence.chance`."""
    limit = math.ceil(probability * 2.0**64)
    bits = self.bits(which)
    return bits < np.uint64(limit) if limit < 1 << 64 else np.ones(len(bits), bool)


_ROUNDS = 6


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
  """The places int64 of `index` (in [0, size)) in a pseudo-random permutation of `size`.

  A Feistel network over the smallest near-square a x b that holds `size` (Black and Rogaway 2002),
  repeated until the place is below `size`; one time in sqrt(size) it is not. It shuffles a whole
  batch at once: 256 calls of `grain.experimental.index_shuffle` take 1.5 ms (100 ms for corpora of
  some hundred rows), longer than all other work on the batch.
  """
  rows = math.isqrt(size - 1) + 1
  height, width = np.uint64(rows), np.uint64(-(-size // rows))
  keys = _round_keys(key)

  def shuffled(x: np.ndarray) -> np.ndarray:
    row, column = np.divmod(x, width)
    for row_key, column_key in zip(keys[::2], keys[1::2], strict=True):
      row = (row + (_mix64(column + row_key) >> np.uint64(2))) % height
      column = (column + (_mix64(row + column_key) >> np.uint64(2))) % width
    return row * width + column

  places = shuffled(np.asarray(index).astype(np.uint64))
  outside = np.flatnonzero(places >= size)
  while outside.size:
    places[outside] = shuffled(places[outside])
    outside = outside[places[outside] >= size]
  return places.astype(np.int64)


@lru_cache(maxsize=64)
def _round_keys(key: tuple[int, ...]) -> list[np.uint64]:
  return [np.uint64(scalar_key(*key, round_)) for round_ in range(_ROUNDS)]


def _mix64(x: np.ndarray) -> np.ndarray:
  """SplitMix64's finaliser. Prebuilt constants save a quarter of the time for some hundred rows."""
  shift_1, factor_1, shift_2, factor_2, shift_3 = _MIX64
  x = (x ^ (x >> shift_1)) * factor_1
  x = (x ^ (x >> shift_2)) * factor_2
  return x ^ (x >> shift_3)


def _mix32(x: np.ndarray, late_key: np.ndarray) -> np.ndarray:
  """The 32-bit finaliser. It overwrites `x`: 0.3 ns per element and operation."""
  shifted = x >> np.uint32(16)
  x ^= shifted
  x *= np.uint32(0x21F0AAAD)
  np.right_shift(x, np.uint32(15), out=shifted)
  x ^= shifted
  x += late_key
  x *= np.uint32(0xD35A2D97)
  np.right_shift(x, np.uint32(15), out=shifted)
  x ^= shifted
  return x
