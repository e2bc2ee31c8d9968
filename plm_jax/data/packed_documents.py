"""Rows for causal language models: whole documents end to end, cut into rows.

    <s> text of a document </s><s> text of the nex | t document </s><s> ...

GPT-2 and its successors train on such rows. GPT-2 uses one token, <|endoftext|>, for both <s> and
</s>: two of them separate documents, so that with `separate` every document has its own at both
ends. GPT-1's published vocabulary has no such token: `framed=False` leaves it out.
"""

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.data.segments import Rows, single_segment, stretches
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError


class _Bounds(NamedTuple):
  """The bounds of documents that have tokens, in the order of reading. begins int64 [D + 1]: the
  first position of each, <s> and </s> counted if framed, and the end of the last; first int64 [D]:
  its first stored token."""

  begins: np.ndarray
  first: np.ndarray


_BLOCK = 1 << 20  # tokens that are laid out at once
_DOCUMENTS = 3  # salt for the order of the documents
_bounds_of: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # per store: O(D) to compute


@dataclass(frozen=True, kw_only=True)
class PackedDocuments:
  """All rows but the last are full; every token is in one row.

  separate: rows have `document_ids`: a token attends to its own document only, positions restart
    with each document, and a document's first token is not predicted from the previous one. Without
    it a row is read as one text, as in GPT-2 and GPT-3. A document that is cut continues in the
    next row as if it began there. All seeds and passes have the same rows.
  framed: whether <s> and </s> surround a document; else a row has only the documents' tokens.
  ordered: every row continues the same row of the previous batch, for models that carry a state.
    With `separate`, the documents are shuffled: those of one source are often alike, and a batch
    would have rows of a few sources only. The order is the same for all seeds.
  """

  separate: bool = True
  framed: bool = True
  ordered: bool = False

  drawn = False

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """STRETCH [N]: the rows of the store; `start` counts <s> and </s>."""
    total = int(self._bounds(store).begins[-1])
    return stretches(total, length, shortest=2)  # a row of one token predicts nothing

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["length"]

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of STRETCH [B]. `separate` adds document_ids int32 [B, T], 0 for a row's first
    document, -1 for padding. `ordered` adds begins bool [B], whether the row begins a separate
    document, and next_ids int32 [B], the token that continues the row, -1 where there is none."""
    place = table_rows["start"][:, None] + np.arange(length)
    padding = np.arange(length) >= table_rows["length"][:, None]
    input_ids, document = self._tokens(store, place, vocab)
    np.copyto(input_ids, vocab.filler, where=padding)
    rows = single_segment(input_ids, table_rows["length"])
    if self.separate:
      document_ids = (document - document[:, :1]).astype(np.int32)
      rows["document_ids"] = np.where(padding, np.int32(-1), document_ids)
    if self.ordered:
      begins = self._bounds(store).begins
      after = (table_rows["start"] + table_rows["length"])[:, None]
      next_ids, next_document = (x[:, 0] for x in self._tokens(store, after, vocab))
      last = np.take_along_axis(document, table_rows["length"][:, None] - 1, axis=1)[:, 0]
      ends = (after[:, 0] == begins[-1]) | (self.separate & (next_document != last))
      rows["next_ids"] = np.where(ends, np.int32(-1), next_ids)
      rows["begins"] = self.separate & (place[:, 0] == begins[document[:, 0]])
    return rows

  def running(self, store: TokenStore, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """The whole text as its rows continue each other: ids [N] in the store's dtype, and the number
    int32 [N] of every token's document, or zeros without `separate`."""
    total = int(self._bounds(store).begins[-1])
    ids = np.empty(total, store.tokens.dtype)
    document = np.zeros(total, np.int32)
    for first in range(0, total, _BLOCK):
      place = np.arange(first, min(first + _BLOCK, total))
      block = slice(first, first + len(place))
      ids[block], number = self._tokens(store, place, vocab)
      if self.separate:
        document[block] = number
    return ids, document

  def _tokens(
    self, store: TokenStore, place: np.ndarray, vocab: Vocab
  ) -> tuple[np.ndarray, np.ndarray]:
    """The tokens int32 at places of the whole text, <s> and </s> counted, and the number of each
    token's document. Tokens of places after the text's end are arbitrary."""
    bounds = self._bounds(store)
    document = np.searchsorted(bounds.begins, place, side="right") - 1
    document = np.minimum(document, len(bounds.first) - 1)
    within = place - bounds.begins[document]
    stored = bounds.first[document] + within - self.framed
    ids = np.take(np.asarray(store.tokens), stored, mode="clip").astype(np.int32)
    if self.framed:
      first, last = self._frame(vocab)
      np.copyto(ids, first, where=within == 0)
      np.copyto(ids, last, where=place == bounds.begins[document + 1] - 1)
    return ids, document

  def _bounds(self, store: TokenStore) -> _Bounds:
    key = self.framed, self.ordered and self.separate
    bounds = _bounds_of.setdefault(store, {})
    if key not in bounds:
      bounds[key] = _made_bounds(store, *key)
    return bounds[key]

  def _frame(self, vocab: Vocab) -> tuple[int, int]:
    if not (vocab.begin and vocab.end):
      raise UserError(
        "the tokenizer has no tokens that begin and end a text; set data.segments.framed=false, or "
        "take another tokenizer"
      )
    return vocab.begin[0], vocab.end[0]


def _made_bounds(store: TokenStore, framed: bool, shuffled: bool) -> _Bounds:
  starts = np.asarray(store.sentence_starts)[np.asarray(store.document_starts)]
  sizes, first = np.diff(starts), starts[:-1].astype(np.int64)
  kept = np.flatnonzero(sizes)
  if shuffled and len(kept):
    kept = kept[np.argsort(permute(np.arange(len(kept)), len(kept), _DOCUMENTS))]
  begins = np.concatenate([[0], np.cumsum(sizes[kept] + 2 * framed)])
  return _Bounds(begins, first[kept])
