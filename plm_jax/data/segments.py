"""BERT's and ALBERT's rows "[CLS] A [SEP] B [SEP]": two runs of sentences, consecutive or not.

Sources: google-research/bert (eedf571) and google-research/albert (b772393),
create_pretraining_data.py, `create_instances_from_document` and `truncate_seq_pair`. Here segments
are spans into the stored tokens, not copied text: a truncated segment is still one contiguous span.
Each document draws from a separate generator, keyed by (seed, pass, document).

The share of label 1 is above one half: a chunk of one sentence always gets a random B.
"""

import hashlib
import os
import threading
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from plm_jax.data.draws import Sequence
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""Arrays of a batch: input_ids and segment_ids int32 [B, T]; length and pair_label int32 [B]."""

SPANS = np.dtype(
  [
    ("a_start", np.int64),  # offset into the stored tokens
    ("b_start", np.int64),
    ("a_length", np.int32),
    ("b_length", np.int32),
    ("label", np.int32),  # 1: B is random, or A and B are swapped
  ]
)
STRETCH = np.dtype([("start", np.int64), ("length", np.int32)])
_TABLE_FORMAT = 1  # increase it when the rules change, so that stored tables are not reused
_TRIES = 10  # attempts to draw another document for B


@dataclass(frozen=True, kw_only=True)
class SegmentPair:
  """Pairs of segments for next-sentence and sentence-order prediction.

  next: "random" is BERT: a coin decides whether B follows A or comes from another document (label
    1). "swapped" is ALBERT: a coin decides whether A and B, which follows it, are swapped (label
    1). With both, a chunk of one sentence gets a B from another document (label 1), as in both
    sources. "none" keeps the layout: B always follows A (label 0), and a chunk of one sentence
    becomes "[CLS] A [SEP]".
  short: share of document passes with a target length drawn from [2, length - 3].
  separators: tokens between A and B, one in BERT, two in RoBERTa ("<s> A </s></s> B </s>").
  """

  next: Literal["random", "swapped", "none"] = "random"
  short: float = 0.1
  separators: int = 1

  drawn = True  # whether the rows depend on the seed and the pass

  def __post_init__(self):
    if self.next not in ("random", "swapped", "none"):
      raise UserError(f"SegmentPair.next is {self.next!r}; expected random, swapped or none.")
    if not 0 <= self.short <= 1:
      raise UserError(f"SegmentPair.short is {self.short}; it is a share and must be in [0, 1].")
    if self.separators not in (1, 2):
      raise UserError(f"SegmentPair.separators is {self.separators}; it must be 1 or 2.")

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """SPANS [N]: the rows of one pass over the store, in the order of its documents."""
    pairing = _Pairing(self, store, length - 2 - self.separators)
    rows, blocks = [], [np.empty(0, SPANS)]
    for document in range(len(store.document_starts) - 1):
      rows += pairing.document(document, Sequence(seed, pass_, document))
      if len(rows) > 100_000:  # tuples take 8 times the memory of the array
        blocks.append(np.array(rows, SPANS))
        rows = []
    return np.concatenate([*blocks, np.array(rows, SPANS)])

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["a_length"] + rows["b_length"] + 2 + self.separators * (rows["b_length"] > 0)

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of SPANS [B], as `read_pairs` lays them out."""
    return read_pairs(store, table_rows, length, vocab, self.separators)


def read_pairs(
  store: TokenStore, spans: np.ndarray, length: int, vocab: Vocab, separators: int
) -> Rows:
  """The tokens of SPANS [B]. A span without B becomes "[CLS] A [SEP]"."""
  cls, sep = vocab.frame()
  first_sep = spans["a_length"] + 1
  second_sep = first_sep + (separators - 1) * (spans["b_length"] > 0)
  last_sep = second_sep + (spans["b_length"] + 1) * (spans["b_length"] > 0)
  # 16-bit columns: comparing them over [B, T] costs half.
  column = np.arange(length, dtype=np.int16)
  after_a = column > second_sep.astype(np.int16)[:, None]
  padding = column > last_sep.astype(np.int16)[:, None]
  # Windows in which column 1 is the first token of A, and column second_sep + 1 the first of B.
  input_ids = windows(store.tokens, spans["a_start"] - 1, length)
  b_window = windows(store.tokens, spans["b_start"] - second_sep - 1, length)
  np.copyto(input_ids, b_window, where=after_a)
  input_ids = input_ids.astype(np.int32)
  np.copyto(input_ids, vocab.pad, where=padding)
  row = np.arange(len(spans))
  input_ids[:, 0] = cls
  for sep_column in (first_sep, second_sep, last_sep):
    input_ids[row, sep_column] = sep
  return {
    "input_ids": input_ids,
    "segment_ids": (after_a & ~padding).astype(np.int32),
    "length": (last_sep + 1).astype(np.int32),
    "pair_label": spans["label"].astype(np.int32),
  }


def beginning(vocab: Vocab) -> list[int]:
  """The tokens before the first text of a row; none where the vocabulary has none."""
  return vocab.begin


def single_segment(input_ids: np.ndarray, length: np.ndarray) -> Rows:
  """Rows of one segment and no pair: segment_ids and pair_label are 0."""
  return {
    "input_ids": input_ids,
    "segment_ids": np.zeros_like(input_ids),
    "length": length.astype(np.int32),
    "pair_label": np.zeros(len(input_ids), np.int32),
  }


def stretches(total: int, length: int, shortest: int) -> np.ndarray:
  """STRETCH [N]: `total` tokens, cut every `length`; a rest below `shortest` is left out."""
  starts = np.arange(0, total - shortest + 1, length)
  rows = np.empty(len(starts), STRETCH)
  rows["start"], rows["length"] = starts, np.minimum(length, total - starts)
  return rows


def windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
  """[B, length]: the tokens from `starts` on; positions outside the store repeat its nearest token.

  Indexing a strided view copies whole windows, 6 times as fast as an index per token.
  """
  tokens = np.asarray(tokens)
  last = len(tokens) - length
  if last < 0:
    return np.take(tokens, starts[:, None] + np.arange(length), mode="clip")
  step = tokens.strides[0]
  inside = np.clip(starts, 0, last)
  windows = as_strided(tokens, (last + 1, length), (step, step), writeable=False)[inside]
  crossing = np.flatnonzero(inside != starts)
  if crossing.size:
    offsets = starts[crossing, None] + np.arange(length)
    windows[crossing] = np.take(tokens, offsets, mode="clip")
  return windows


def pass_table(store: TokenStore, segments, length: int, seed: int, pass_: int) -> np.ndarray:
  """`segments.table(...)`, memory-mapped from a file beside the store if that is on disk.

  All processes of a run map one file. It is written under another name and then renamed, so that no
  process reads half of it. If the folder is read-only, the table stays in memory.
  """
  if not segments.drawn:
    seed = pass_ = 0
  folder = getattr(store, "directory", None)
  if folder is None:
    return segments.table(store, length, seed, pass_)
  identity = repr((_TABLE_FORMAT, segments, length, seed, pass_))
  digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
  path = Path(folder) / f"{store.split}.segments-{digest}.npy"
  if not path.exists():
    table = segments.table(store, length, seed, pass_)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
      with partial.open("wb") as file:
        np.save(file, table)
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)
      return table
  return np.load(path, mmap_mode="r")


class _Pairing:
  """The loop of the sources over one document; lengths are in tokens without special tokens."""

  def __init__(self, config: SegmentPair, store: TokenStore, room: int):
    self._config = config
    self._room = room
    self._sentence_starts = np.asarray(store.sentence_starts)  # a memmap is slow to index
    self._document_starts = np.asarray(store.document_starts)
    self._readable = np.flatnonzero(np.diff(self._document_starts)).tolist()

  def document(self, document: int, draw: Sequence) -> list[tuple[int, int, int, int, int]]:
    first, last = self._document_starts[document : document + 2].tolist()
    starts = self._sentence_starts[first : last + 1].tolist()
    sentences = last - first
    target = self._room
    if draw.chance(self._config.short):
      target = 2 + draw.below(self._room - 1)
    rows, begin = [], 0
    while begin < sentences:
      # Sentences until the target is reached, or else until the end of the document.
      end = bisect_left(starts, starts[begin] + target, begin + 1, sentences)
      a_end = begin + 1
      if end - begin > 1:
        a_end = begin + 1 + draw.below(end - begin - 1)
      a_start, b_start, b_stop, label = starts[begin], starts[a_end], starts[end], 0
      a_stop, kind = starts[a_end], self._config.next
      is_single = end - begin == 1 and kind != "none"
      if is_single or (kind == "random" and draw.chance(0.5)):
        b_start, b_stop = self._elsewhere(document, target - (a_stop - a_start), draw)
        label, end = 1, a_end  # the unused sentences are put back
      elif kind == "swapped" and draw.chance(0.5):
        a_start, a_stop, b_start, b_stop, label = b_start, b_stop, a_start, a_stop, 1
      row = self._truncated(a_start, a_stop, b_start, b_stop, label, draw)
      # Sentences without tokens make no pair.
      if row[2] and (row[3] or self._config.next == "none"):
        rows.append(row)
      begin = end
    return rows

  def _elsewhere(self, document: int, target: int, draw: Sequence) -> tuple[int, int]:
    """A span of another document, from a random sentence on, until `target` is reached."""
    for _ in range(_TRIES):
      source = self._readable[draw.below(len(self._readable))]
      if source != document:
        break
    first, last = self._document_starts[source : source + 2].tolist()
    begin = first + draw.below(last - first)
    start = int(self._sentence_starts[begin])
    end = bisect_left(self._sentence_starts, start + target, begin + 1, last)
    return start, int(self._sentence_starts[end])

  def _truncated(self, a_start, a_stop, b_start, b_stop, label, draw):
    """Shortens the longer of A and B (B when equal) token by token, each from a random end."""
    a_length, b_length = a_stop - a_start, b_stop - b_start
    excess = a_length + b_length - self._room
    if excess > 0:
      longer = min(excess, abs(a_length - b_length))
      rest = excess - longer
      from_a = rest // 2 + (longer if a_length > b_length else 0)
      from_b = excess - from_a
      a_start += _heads(from_a, draw)
      b_start += _heads(from_b, draw)
      a_length -= from_a
      b_length -= from_b
    return a_start, b_start, a_length, b_length, label


def _heads(tosses: int, draw: Sequence) -> int:
  """The number of heads in `tosses` fair tosses: the tokens to cut from the front."""
  heads = 0
  while tosses > 0:
    heads += (draw.bits() & ((1 << min(tosses, 64)) - 1)).bit_count()
    tosses -= 64
  return heads
