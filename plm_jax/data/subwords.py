"""Hashed character n-grams of words (Bojanowski et al. 2017; facebookresearch/fastText 1142dc4,
dictionary.cc `computeSubwords` and `hash`).

The n-grams of "<where>" with 3 to 6 characters are "<wh", "<whe", ..., "re>": 14. Each is hashed
by 32-bit FNV-1a into a number of buckets. The original xors bytes as signed characters: a byte
from 128 on also flips the upper 24 bits, and pretrained vectors depend on it.
"""

from typing import NamedTuple

import numpy as np

_OFFSET, _PRIME = np.uint32(2166136261), np.uint32(16777619)
_NGRAM_PRIME = np.uint64(116049371)


class Subwords(NamedTuple):
  """Lengths of n-grams in characters, and the number of buckets."""

  shortest: int = 3
  longest: int = 6
  buckets: int = 2_000_000


def ngrams_of(word: str, shortest: int, longest: int) -> list[str]:
  """The n-grams of "<word>" in the original's order; a bracket alone is none."""
  text = f"<{word}>"
  size = len(text)
  return [
    text[i : i + n]
    for i in range(size)
    for n in range(max(shortest, 1), min(longest, size - i) + 1)
    if not (n == 1 and i in (0, size - 1))
  ]


def fnv1a(texts: list[str]) -> np.ndarray:
  """uint32 [N]: the hash of the UTF-8 bytes of each text."""
  encoded = [text.encode() for text in texts]
  lengths = np.array([len(b) for b in encoded], np.int64)
  width = int(lengths.max(initial=0))
  joined = np.frombuffer(b"".join(b.ljust(width, b"\0") for b in encoded), np.int8)
  signed = joined.reshape(len(encoded), width).astype(np.int32).view(np.uint32)
  hashed = np.full(len(encoded), _OFFSET)
  for column in range(width):
    after = (hashed ^ signed[:, column]) * _PRIME
    hashed = np.where(column < lengths, after, hashed)
  return hashed


def buckets_of(word: str, subwords: Subwords) -> np.ndarray:
  """int64 [G]: the buckets of a word's n-grams."""
  hashed = fnv1a(ngrams_of(word, subwords.shortest, subwords.longest))
  return hashed.astype(np.int64) % subwords.buckets


def word_ngram_buckets(hashes_BT: np.ndarray, longest: int, buckets: int) -> np.ndarray:
  """int64 `[B, T, longest - 1]`: the buckets of the n-grams of words that begin at each word, of 2
  to `longest` words (fastText, dictionary.cc `addWordNgrams`). Those that go beyond the row wrap.

  hashes_BT: uint32, the hash of every word. The original keeps it as a signed number.
  """
  signed = hashes_BT.view(np.int32).astype(np.int64).view(np.uint64)
  hashed, made = signed.copy(), []
  for ahead in range(1, longest):
    hashed = hashed * _NGRAM_PRIME + np.roll(signed, -ahead, axis=1)
    made.append((hashed % np.uint64(buckets)).astype(np.int64))
  return np.stack(made, axis=-1)


def ragged_ngrams(words: list[str], subwords: Subwords) -> tuple[np.ndarray, np.ndarray]:
  """The buckets of the n-grams of all words, flat int32 [N], and their bounds int64 [V + 1]. An
  empty word has none."""
  rows = [ngrams_of(w, subwords.shortest, subwords.longest) if w else [] for w in words]
  bounds = np.append(0, np.cumsum([len(row) for row in rows], dtype=np.int64))
  hashed = fnv1a([ngram for row in rows for ngram in row])
  return (hashed.astype(np.int64) % subwords.buckets).astype(np.int32), bounds


def mean_rows(
  rows: np.ndarray, ngrams: np.ndarray, flat: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
  """float32 [V, D]: the mean of every word's row and those of its n-grams. rows [V, D], ngrams
  [buckets, D]; flat, bounds: of `ragged_ngrams`."""
  counts, vectors = np.diff(bounds), np.array(rows, np.float32)
  has = np.flatnonzero(counts)
  for words in np.array_split(has, len(has) // 4096 + 1):  # all n-grams at once are gigabytes
    if len(words):
      first, last = bounds[words[0]], bounds[words[-1] + 1]
      vectors[words] += np.add.reduceat(ngrams[flat[first:last]], bounds[words] - first)
  vectors[: len(counts)] /= (counts + 1)[:, None]
  return vectors
