"""RoBERTa's other input formats (Liu et al. 2019, section 4.2), as spans of a store.

    FullSentences   <s> sentences of a document </s> and of the next </s>   FULL-SENTENCES
    DocSentences    <s> sentences of one document </s>                      DOC-SENTENCES
    SentencePair    <s> a sentence </s></s> a sentence </s>                 SENTENCE-PAIR+NSP

SEGMENT-PAIR+NSP is `SegmentPair(short=0, separators=2)`. Sources: the paper; for the packing
fairseq (3d262bb) data/token_block_utils_fast.pyx, break modes `complete` and `complete_doc`.

Rows of DocSentences end with their document, and pairs of sentences are short. The paper enlarges
the batch "dynamically" to keep the tokens per update. Here shapes are static: choose the batch of
an experiment once, from the share of positions that are not padding (`Batches.fill`, which a run
prints at its start), so that formats to be compared have equal global_batch * data.length * fill.
For pairs of sentences a shorter data.length saves the padding.

Deviations: fairseq ends every line with </s>; here </s> only separates documents, as in the paper.
A sentence longer than a row is cut to pieces; fairseq makes a row that is too long.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plm_jax.data.draws import Draws
from plm_jax.data.pairing import SPANS
from plm_jax.data.segments import Rows, read_pairs, single_segment, windows
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

PACKED = np.dtype(
  [
    ("start", np.int64),  # offset into the stored tokens
    ("document", np.int64),  # of the first token
    ("length", np.int32),  # stored tokens
    ("separators", np.int32),  # documents that begin in the row, after its first token
  ]
)
_BLOCK = 1 << 20  # sentences processed at once
_COIN, _DOCUMENT, _SENTENCE = 8, 9, 10  # streams of draws


class _Packed:
  """Rows of as many whole sentences as fit, in text order; every token is in one row.

  All seeds and passes have the same rows: only their order and their masks differ.
  """

  drawn = False
  crosses: bool  # whether a row may continue with the next document, after a separator

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """PACKED [N]: the rows of the store."""
    return np.concatenate(list(self.blocks(store, length, seed, pass_)))

  def blocks(self, store: TokenStore, length: int, seed: int, pass_: int) -> Iterator[np.ndarray]:
    """The rows of the table, in parts PACKED [n]."""
    begin, sentences = 0, _BLOCK
    yield np.empty(0, PACKED)
    while begin < store.sentence_starts[-1]:
      rows, stop = self._rows(store, begin, sentences, length - 2)
      # A block shorter than one row completes no row; a larger block does.
      sentences = _BLOCK if stop > begin else 2 * sentences
      yield rows
      begin = stop

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["length"] + rows["separators"] + 2

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of PACKED [B]."""
    cls, sep = vocab.frame()
    input_ids = windows(store.tokens, table_rows["start"] - 1, length).astype(np.int32)
    crossing = np.flatnonzero(table_rows["separators"])
    if crossing.size:
      input_ids[crossing] = _across(store, table_rows[crossing], length, sep)
    last_sep = self.tokens(table_rows) - 1
    np.copyto(input_ids, vocab.pad, where=np.arange(length) > last_sep[:, None])
    input_ids[:, 0] = cls
    input_ids[np.arange(len(table_rows)), last_sep] = sep
    return single_segment(input_ids, last_sep + 1)

  def _rows(self, store: TokenStore, begin: int, count: int, room: int) -> tuple[np.ndarray, int]:
    """The rows from token `begin` on within the next `count` sentences, and the next token."""
    first = int(np.searchsorted(store.sentence_starts, begin, side="right")) - 1
    bounds = np.asarray(store.sentence_starts[first : first + count + 1])
    is_end = first + count >= len(store.sentence_starts) - 1
    sentence = np.flatnonzero(np.diff(bounds))
    starts = np.maximum(bounds[sentence], begin)
    document = np.searchsorted(store.document_starts, sentence + first, side="right") - 1
    # A sentence longer than a row is cut into pieces of one row each and a remainder.
    sizes = bounds[sentence + 1] - starts
    pieces = -(-sizes // room)
    within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(starts, pieces) + room * within
    document = np.repeat(document, pieces)
    ends = np.append(starts[1:], bounds[-1])
    # With a separator before every document, a piece begins at starts + document.
    until = np.searchsorted(ends + document, starts + document + room, side="right")
    if not self.crosses:
      until = np.minimum(until, np.searchsorted(document, document, side="right"))
    row = _chain(until, len(starts))
    after = until[row]
    if not is_end and after[-1] == len(starts):  # the next block may have more for this row
      row, after = row[:-1], after[:-1]
    rows = np.empty(len(row), PACKED)
    rows["start"], rows["document"] = starts[row], document[row]
    rows["length"] = ends[after - 1] - starts[row]
    rows["separators"] = document[after - 1] - document[row]
    return rows, int(ends[after[-1] - 1]) if len(row) else begin


@dataclass(frozen=True, kw_only=True)
class FullSentences(_Packed):
  """FULL-SENTENCES: rows continue across documents, with a separator between two documents."""

  crosses = True


@dataclass(frozen=True, kw_only=True)
class DocSentences(_Packed):
  """DOC-SENTENCES: a row ends at the latest with its document."""

  crosses = False


@dataclass(frozen=True, kw_only=True)
class SentencePair:
  """SENTENCE-PAIR+NSP: A is one sentence; a coin makes B the next one (label 0) or one of another
  document (label 1). The last sentence of a document gets a random B, as in `SegmentPair`.

  After a random B, the next pair starts right after A. Of a long pair the longer sentence is cut.

  separators: tokens between A and B.
  """

  separators: int = 2

  next = "random"
  drawn = True

  def __post_init__(self):
    if self.separators not in (1, 2):
      raise UserError(f"SentencePair.separators is {self.separators}; it must be 1 or 2.")

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """SPANS [N]: the rows of one pass over the store, in the order of its sentences."""
    return np.concatenate(list(self.blocks(store, length, seed, pass_)))

  def blocks(self, store: TokenStore, length: int, seed: int, pass_: int) -> Iterator[np.ndarray]:
    """The rows of the table, in parts SPANS [n]."""
    bounds = np.asarray(store.document_starts)
    readable = np.flatnonzero(np.diff(bounds))
    yield np.empty(0, SPANS)
    first = 0
    while first < bounds[-1]:
      document = np.searchsorted(bounds, first + _BLOCK, side="right") - 1
      last = max(bounds[document], bounds[np.searchsorted(bounds, first, side="right")])
      rows = self._rows(store, np.arange(first, last), readable, seed, pass_)
      yield _shortened(rows, length - 2 - self.separators)
      first = last

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["a_length"] + rows["b_length"] + 2 + self.separators

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of SPANS [B], as `read_pairs` lays them out."""
    return read_pairs(store, table_rows, length, vocab, self.separators)

  def _rows(self, store: TokenStore, sentence, readable, seed: int, pass_: int) -> np.ndarray:
    """The pairs of whole documents with the sentences int [S], before they are shortened."""
    starts = np.asarray(store.sentence_starts[sentence[0] : sentence[-1] + 2])
    sentence = sentence[np.diff(starts) > 0]
    bounds = np.asarray(store.document_starts)
    document = np.searchsorted(bounds, sentence, side="right") - 1
    draws = Draws(seed, pass_, sentence)
    is_last = np.diff(document, append=-1) != 0
    is_random = is_last | (draws.bits(_COIN, 1)[:, 0] < np.uint32(1 << 31))
    # The next pair begins after A, or after B if that follows A. So a pair begins after a sentence
    # with a random B, and from there on with every other sentence.
    number = np.arange(len(sentence))
    begun = np.maximum.accumulate(np.where(is_random, number + 1, 0))
    a = np.flatnonzero((number - np.append(0, begun[:-1])[: len(number)]) % 2 == 0)
    # B's document: drawn from the documents other than A's, if there are any.
    own = np.searchsorted(readable, document)
    drawn = _below(draws, _DOCUMENT, max(len(readable) - 1, 1))
    drawn = readable[drawn + (drawn >= own) * (len(readable) > 1)]
    random_b = bounds[drawn] + _below(draws, _SENTENCE, bounds[drawn + 1] - bounds[drawn])
    b = np.where(is_random, random_b, np.append(sentence[1:], 0))[a]
    a, label = sentence[a], is_random[a]
    rows = np.empty(len(a), SPANS)
    for name, picked in (("a", a), ("b", b)):
      rows[f"{name}_start"] = store.sentence_starts[picked]
      rows[f"{name}_length"] = store.sentence_starts[picked + 1] - store.sentence_starts[picked]
    rows["label"] = label
    return rows[rows["b_length"] > 0]


def _below(draws: Draws, stream: int, size) -> np.ndarray:
  """int64 [B]: an integer in [0, size) for each row of `draws`."""
  bits = draws.bits(stream, 1)[:, 0].astype(np.uint64)
  return (bits * np.asarray(size, np.uint64) >> np.uint64(32)).astype(np.int64)


def _chain(until: np.ndarray, size: int) -> np.ndarray:
  """0, until[0], until[until[0]], ... below `size`."""
  until, at, visited = until.tolist(), 0, []
  while at < size:
    visited.append(at)
    at = until[at]
  return np.array(visited, np.int64)


def _shortened(rows: np.ndarray, room: int) -> np.ndarray:
  """SPANS [N] with the longer of A and B (B when equal) cut at its end, token by token."""
  a, b = rows["a_length"], rows["b_length"]
  excess = np.maximum(a + b - room, 0)
  longer = np.minimum(excess, np.abs(a - b))
  from_a = (excess - longer) // 2 + longer * (a > b)
  rows["a_length"], rows["b_length"] = a - from_a, b - (excess - from_a)
  return rows


def _across(store: TokenStore, rows: np.ndarray, length: int, sep: int) -> np.ndarray:
  """int32 [B, T]: windows of rows that cross documents, with a separator before each new one."""
  row = np.repeat(np.arange(len(rows)), rows["separators"])
  number = np.arange(len(row)) - np.searchsorted(row, row)
  begins = store.sentence_starts[store.document_starts[rows["document"][row] + 1 + number]]
  is_sep = np.zeros((len(rows), length), bool)
  is_sep[row, 1 + begins - rows["start"][row] + number] = True
  columns = np.arange(length) - np.cumsum(is_sep, axis=1)
  offsets = rows["start"][:, None] - 1 + columns
  tokens = np.take(np.asarray(store.tokens), offsets, mode="clip").astype(np.int32)
  np.copyto(tokens, sep, where=is_sep)
  return tokens
