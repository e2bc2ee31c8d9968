"""Counts of n-grams as sorted arrays of integers, without a loop over tokens.

An n-gram of order k is a number: that of its first k - 1 tokens among those of order k - 1, and its
last token. Numbers follow the sorted order, so that all n-grams of one context are neighbours:

    order 2: the contexts are tokens       keys   <a b> <a c> <b a>   ->   n-grams 0, 1, 2
    order 3: the contexts are 0, 1, 2      keys   <0 c> <2 b>         ->   "a b c", "b a b"

The text is read in parts, one for each range of first tokens. A part needs about 60 bytes for each
of its positions; parts are sorted apart, and in their order they are the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

PART = 1 << 22  # positions that are sorted at once, unless a single token has more
_LAST = np.uint64(0xFFFFFFFF)


class Grams(NamedTuple):
  """The n-grams of one order, sorted. keys uint64 [N]: context * 2^32 + last token. counts int64
  [N]: how often each is in the text."""

  keys: np.ndarray
  counts: np.ndarray

  @property
  def words(self) -> np.ndarray:
    """int32 [N]: the last token of each."""
    return (self.keys & _LAST).astype(np.int32)

  @property
  def contexts(self) -> np.ndarray:
    """int64 [N]: the number of each one's first k - 1 tokens, in the order below."""
    return (self.keys >> np.uint64(32)).astype(np.int64)


def count(
  ids: np.ndarray, room: np.ndarray, order: int, vocabulary: int, part: int = PART
) -> list[Grams]:
  """The n-grams of orders 1 to `order`. Order 1 has all `vocabulary` tokens, seen or not.

  ids int [N]: the text. room int [N]: the tokens from each on to the end of its document, itself
  included, or `order` if there are more: no n-gram crosses an end.
  """
  frequency = np.bincount(ids, minlength=vocabulary)
  found: list[list[Grams]] = [[] for _ in range(order - 1)]
  sizes = [0] * order
  for first, last in _parts(frequency, part):
    at = np.flatnonzero((ids >= first) & (ids < last))
    context = ids[at].astype(np.uint64)
    for k in range(2, order + 1):
      kept = room[at] >= k
      at, context = at[kept], context[kept]
      keys = (context << np.uint64(32)) | ids[at + (k - 1)].astype(np.uint64)
      keys, number, counts = np.unique(keys, return_inverse=True, return_counts=True)
      found[k - 2].append(Grams(keys, counts))
      context = number.astype(np.uint64) + np.uint64(sizes[k - 1])
      sizes[k - 1] += len(keys)
  tokens = Grams(np.arange(vocabulary, dtype=np.uint64), frequency.astype(np.int64))
  return [tokens, *(Grams(*map(np.concatenate, zip(*parts, strict=True))) for parts in found)]


def _parts(frequency: np.ndarray, part: int) -> Iterator[tuple[int, int]]:
  """Ranges of tokens that together occur at most `part` times, or are one token."""
  ends, first = np.cumsum(frequency), 0
  while first < len(frequency):
    before = ends[first - 1] if first else 0
    last = max(first + 1, int(np.searchsorted(ends, before + part, side="right")))
    yield first, last
    first = last


def suffixes(grams: list[Grams]) -> list[np.ndarray]:
  """For each order from 2, the number int64 [N] of every n-gram's last k - 1 tokens."""
  found = [grams[1].words.astype(np.int64)] if len(grams) > 1 else []
  for below, these in itertools.pairwise(grams[1:]):
    keys = (found[-1][these.contexts].astype(np.uint64) << np.uint64(32)) | (these.keys & _LAST)
    found.append(np.searchsorted(below.keys, keys))
  return found


def first_children(contexts: np.ndarray, size: int) -> np.ndarray:
  """int32 [size + 1]: where the n-grams of every context begin, and the end of the last."""
  return np.searchsorted(contexts, np.arange(size + 1)).astype(np.int32)


def documents_room(document: np.ndarray, order: int) -> np.ndarray:
  """uint8 [N]: `room` of `count`, from the number of every token's document."""
  ends = np.append(np.flatnonzero(np.diff(document)) + 1, len(document))
  lengths = np.diff(ends, prepend=0)
  return np.minimum(np.repeat(ends, lengths) - np.arange(len(document)), order).astype(np.uint8)
