"""BERT's and ALBERT's rows "[CLS] A [SEP] B [SEP]": two runs of sentences, consecutive or not.

Sources: google-research/bert (eedf571) and google-research/albert (b772393),
create_pretraining_data.py, `create_instances_from_document` and `truncate_seq_pair`. Here segments
are spans into the stored tokens, not copied text: a truncated segment is still one contiguous span.
Each document draws from a separate generator, keyed by (seed, pass, document).

The share of label 1 is above one half: a chunk of one sentence always gets a random B.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from plm_jax.data.pairing import Pairing
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""Arrays of a batch: input_ids and segment_ids int32 [B, T]; length and pair_label int32 [B]."""

STRETCH = np.dtype([("start", np.int64), ("length", np.int32)])


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
    return np.concatenate(list(self.blocks(store, length, seed, pass_)))

  def blocks(self, store: TokenStore, length: int, seed: int, pass_: int) -> Iterator[np.ndarray]:
    """The rows of the table, in parts SPANS [n]."""
    pairing = Pairing(self.next, self.short, store, length - 2 - self.separators)
    return pairing.blocks(seed, pass_)

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
