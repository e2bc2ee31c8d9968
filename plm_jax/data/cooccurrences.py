"""How often two words occur near each other, counted for GloVe (Pennington et al. 2014, section 3;
stanfordnlp/GloVe 52f7dbc, cooccur.c and shuffle.c).

A pair of words at distance d <= window in a document adds 1/d. The text is read in parts. Each part
gives a sorted run of pairs on disk, in shards by a hash of the pair; then the runs of one shard at
a time are added up and shuffled. So memory holds one part or one shard, and entries that follow
each other are of unrelated words. Pairs of frequent words are added in a dense table first.
"""

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from plm_jax.data.draws import scalar_key
from plm_jax.data.segments import Rows, single_segment
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

PART = 1 << 18  # tokens that are counted at once
SHARD = 1 << 22  # entries of the runs that are added up at once: about 150 MB with their copies
_FREQUENT = 1024  # a table of this many words squared takes 8 MB
_ENTRY = np.dtype([("key", np.int64), ("count", np.float64)])


@dataclass(frozen=True, kw_only=True)
class Cooccurrences:
  """Rows of `data.length` entries of the matrix, in random order.

  window: the largest distance. symmetric: words on both sides; else those to the left alone.
  distance: weigh a pair by 1/d; else by 1.
  """

  window: int = 15
  symmetric: bool = True
  distance: bool = True

  drawn = False

  def __post_init__(self):
    if self.window < 1:
      raise UserError(f"Cooccurrences.window is {self.window}; it must be at least 1.")

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """Rows of `length` entries: fields `word`, `context` int32 [L], `count` float32 [L]. The last
    entries, fewer than a row, are left out unless there is no other row; then a count of 0 fills
    it."""
    kind = np.dtype(
      [("word", np.int32, length), ("context", np.int32, length), ("count", np.float32, length)]
    )
    with tempfile.TemporaryDirectory(dir=store.directory, prefix="counting-") as folder:
      total = sum(map(len, self._shards(store, Path(folder))))
      rows = np.memmap(Path(folder) / "rows", kind, "w+", shape=max(total // length, 1))
      done, rest = 0, np.empty(0, _ENTRY)
      for path in sorted(Path(folder).glob("shard-*")):
        entries = np.concatenate([rest, np.fromfile(path, _ENTRY)])
        full = len(entries) // length
        _fill(rows[done : done + full], entries[: full * length], store.vocab_size)
        done, rest = done + full, entries[full * length :]
      if not done:
        rest = np.concatenate([rest, np.zeros(length - len(rest), _ENTRY)])
        _fill(rows, rest, store.vocab_size)
      return rows  # the file is deleted, and its pages live as long as the array

  def _shards(self, store: TokenStore, folder: Path):
    """Writes the entries of every shard, and yields them."""
    runs, bounds = self._runs(store, folder)
    total = sum(int(b[-1]) for b in bounds)
    # Every run has the same fine shards; neighbouring ones are added up together.
    fine = len(bounds[0]) - 1 if bounds else 0
    groups = max(1, -(-total // SHARD))
    edges = np.linspace(0, fine, min(groups, fine) + 1, dtype=int)
    for number, (first, last) in enumerate(pairwise(edges)):
      parts = [run[b[first] : b[last]] for run, b in zip(runs, bounds, strict=True)]
      entries = summed(np.concatenate(parts)) if parts else np.empty(0, _ENTRY)
      order = np.random.default_rng(number).permutation(len(entries))
      entries = entries[order]
      entries.tofile(folder / f"shard-{number:06d}")
      yield entries

  def _runs(self, store: TokenStore, folder: Path) -> tuple[list, list]:
    """The sorted entries of every part of the text, on disk, and the bounds of their shards."""
    tokens = np.asarray(store.tokens)
    starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
    frequent = np.argsort(-np.asarray(store.counts), kind="stable")[:_FREQUENT]
    rank = np.full(store.vocab_size, -1, np.int64)
    rank[frequent] = np.arange(len(frequent))
    dense = np.zeros(len(frequent) ** 2)
    runs, bounds = [], []
    for number, first in enumerate(range(0, len(tokens), PART)):
      last = min(first + PART, len(tokens))
      entries = self._entries(tokens, starts, first, last, rank, dense)
      _write_run(entries, folder / f"run-{number}", runs, bounds)
    cells = np.flatnonzero(dense)
    pairs = np.empty(len(cells), _ENTRY)
    a, b = frequent[cells // len(frequent)], frequent[cells % len(frequent)]
    pairs["key"], pairs["count"] = a * store.vocab_size + b, dense[cells]
    _write_run(pairs, folder / "run-dense", runs, bounds)
    return runs, bounds

  def _entries(self, tokens, starts, first: int, last: int, rank, dense) -> np.ndarray:
    """The summed entries of pairs whose later word is in [first, last); pairs of two frequent words
    are added to `dense`."""
    begin = max(first - self.window, 0)
    ids = tokens[begin:last].astype(np.int64)
    document = np.searchsorted(starts, np.arange(begin, last), side="right")
    later, earlier, weights = [], [], []
    for d in range(1, self.window + 1):
      at = np.arange(max(first - begin, d), len(ids))
      at = at[document[at] == document[at - d]]
      later.append(ids[at])
      earlier.append(ids[at - d])
      weights.append(np.full(len(at), 1 / d if self.distance else 1.0))
    word, context, weight = map(np.concatenate, (later, earlier, weights))
    if self.symmetric:
      word, context = np.concatenate([word, context]), np.concatenate([context, word])
      weight = np.concatenate([weight, weight])
    both = (rank[word] >= 0) & (rank[context] >= 0)
    cells = rank[word[both]] * int(len(dense) ** 0.5) + rank[context[both]]
    dense += np.bincount(cells, weight[both], minlength=len(dense))
    entries = np.empty(int((~both).sum()), _ENTRY)
    entries["key"] = word[~both] * len(rank) + context[~both]
    entries["count"] = weight[~both]
    return summed(entries)

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of entries of each row."""
    return (rows["count"] > 0).sum(axis=1)

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """Adds `context_ids` int32 `[B, T]` and `cooccurrences` float32 `[B, T]`, 0 for padding."""
    rows = single_segment(np.array(table_rows["word"]), self.tokens(table_rows).astype(np.int32))
    return rows | {
      "context_ids": np.array(table_rows["context"]),
      "cooccurrences": np.array(table_rows["count"]),
    }

  def example(self, rows: int, length: int) -> Rows:
    """The further arrays of a batch."""
    shape = rows, length
    return {"context_ids": np.zeros(shape, np.int32), "cooccurrences": np.ones(shape, np.float32)}


def summed(entries: np.ndarray) -> np.ndarray:
  """Entries with every key once, sorted, and their counts added."""
  if not len(entries):
    return entries
  order = np.argsort(entries["key"], kind="stable")
  keys = entries["key"][order]
  first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
  result = np.empty(len(first), _ENTRY)
  result["key"] = keys[first]
  result["count"] = np.add.reduceat(entries["count"][order], first)
  return result


_SHARDS = 256
_MULTIPLIER = np.uint64(scalar_key(1) | 1)


def _write_run(entries: np.ndarray, path: Path, runs: list, bounds: list) -> None:
  """Writes entries in the order of their shards."""
  shard = (entries["key"].astype(np.uint64) * _MULTIPLIER >> np.uint64(56)).astype(np.int64)
  entries[np.argsort(shard, kind="stable")].tofile(path)
  bounds.append(np.append(0, np.cumsum(np.bincount(shard, minlength=_SHARDS))))
  runs.append(np.memmap(path, _ENTRY, "r") if len(entries) else entries)


def _fill(rows: np.ndarray, entries: np.ndarray, vocab_size: int) -> None:
  shape = rows["word"].shape
  rows["word"] = (entries["key"] // vocab_size).reshape(shape)
  rows["context"] = (entries["key"] % vocab_size).reshape(shape)
  rows["count"] = entries["count"].reshape(shape)
