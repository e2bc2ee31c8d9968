"""Rows of running text from which frequent words are left out at random (Mikolov et al. 2013b,
section 2.3).

A word of frequency f is kept with the probability of the published code (tmikolov/word2vec 20c129a,
word2vec.c; fastText has the same)

    p = sqrt(t / f) + t / f

and not sqrt(t / f), as the paper has it. A window then reaches across the words that were left out.
"""

from dataclasses import dataclass

import numpy as np

from plm_jax.data.draws import Draws
from plm_jax.data.segments import Rows, single_segment
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

_STREAM = 80
_CHUNK = 1 << 20  # tokens that are drawn for at once
KEPT = np.dtype(
  [
    ("start", np.int64),  # offset into the stored tokens
    ("length", np.int64),  # stored tokens
    ("kept", np.int32),
    ("seed", np.int64),
    ("pass", np.int32),
  ]
)


def keep_probability(counts: np.ndarray, sample: float) -> np.ndarray:
  """float64 [V]: the probability that a word is kept; 1 for all if `sample` is 0."""
  frequency = np.maximum(counts, 1) / max(counts.sum(), 1)
  ratio = sample / frequency if sample else np.ones(len(counts))
  return np.minimum(1.0, np.sqrt(ratio) + ratio)


@dataclass(frozen=True, kw_only=True)
class KeptWords:
  """Rows of `data.length` kept words; they cross documents, and `document_ids` tells them apart.

  sample: the threshold t (word2vec.c 1e-3, fastText 1e-4); 0 keeps all words.
  """

  sample: float = 1e-3

  drawn = True
  separate = True  # rows have `document_ids`

  def __post_init__(self):
    if self.sample < 0:
      raise UserError(f"KeptWords.sample is {self.sample}; it must be at least 0.")

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """KEPT [N]: the stretches of stored tokens with `length` kept ones each; a rest is left out
    unless it is the only row."""
    total, kept, places = len(store.tokens), 0, []
    for first in range(0, total, _CHUNK):
      at = np.flatnonzero(
        self._kept(store, np.arange(first, min(first + _CHUNK, total)), seed, pass_)
      )
      # The kept words number 0, length, 2 length, ... begin a row.
      places.append(first + at[-kept % length :: length])
      kept += len(at)
    starts = np.concatenate(places)
    ends = np.append(starts[1:], total)
    rows = np.zeros(len(starts), KEPT)
    rows["start"], rows["length"], rows["seed"], rows["pass"] = starts, ends - starts, seed, pass_
    rows["kept"] = np.minimum(length, kept)
    return rows[: max(kept // length, min(len(rows), 1))]

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["kept"]

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The kept words of KEPT [B], and their document_ids int32 [B, T], -1 for padding."""
    sizes = np.asarray(table_rows["length"])
    row = np.repeat(np.arange(len(sizes)), sizes)
    begins = np.cumsum(sizes) - sizes
    place = np.arange(len(row)) + np.repeat(table_rows["start"] - begins, sizes)
    keep = self._kept(store, place, table_rows["seed"][row], table_rows["pass"][row])
    row, place = row[keep], place[keep]
    counts = np.bincount(row, minlength=len(sizes))
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, place, column = (x[column < length] for x in (row, place, column))
    input_ids = np.full((len(sizes), length), vocab.filler, np.int32)
    input_ids[row, column] = store.tokens[place]
    documents = np.searchsorted(_document_starts(store), place, side="right")
    document_ids = np.full((len(sizes), length), -1, np.int64)
    document_ids[row, column] = documents
    first = document_ids[:, :1]
    document_ids = np.where(document_ids >= 0, document_ids - first, -1).astype(np.int32)
    rows = single_segment(input_ids, np.minimum(counts, length).astype(np.int32))
    return rows | {"document_ids": document_ids}

  def _kept(self, store: TokenStore, place: np.ndarray, seed, pass_) -> np.ndarray:
    """bool [N]: whether the tokens at these places are kept in a pass. seed, pass_: int, or [N]."""
    probability = keep_probability(store.counts, self.sample)[store.tokens[place]]
    # The place is hashed with the pass: the draws of a pass differ from those of every other.
    draws = Draws(0, np.asarray(pass_) * 1_000_003 + seed, place)
    return draws.uniform(_STREAM, 1)[:, 0] < probability


def _document_starts(store: TokenStore) -> np.ndarray:
  return np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
