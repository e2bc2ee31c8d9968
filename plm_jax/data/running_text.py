"""Rows of running text without special tokens, for objectives that build their own rows.

Source: google-research/text-to-text-transfer-transformer (e081111) t5/data/preprocessors.py,
`reduce_concat_tokens` and `split_tokens`: documents are joined without separators and cut into
pieces of one length. T5's rows are longer than its inputs, because a span of several tokens becomes
one sentinel: `objectives/span_corruption.py` computes the number of tokens that fill an input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from plm_jax.data.segments import windows
from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.store import TokenStore
  from plm_jax.data.vocab import Vocab

STRETCH = np.dtype([("start", np.int64), ("length", np.int32)])
_SHORTEST = 2  # tokens: one to corrupt and one to keep


@dataclass(frozen=True, kw_only=True)
class RunningText:
  """Pieces of `data.length` tokens; the last one may be shorter.

  All seeds and passes have the same rows: only their order and their corruption differ.
  """

  drawn = False

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """STRETCH [N]: the rows of the store."""
    total = len(store.tokens)
    starts = np.arange(0, total - _SHORTEST + 1, length)
    rows = np.empty(len(starts), STRETCH)
    rows["start"], rows["length"] = starts, np.minimum(length, total - starts)
    return rows

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["length"]

  def read(
    self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab
  ) -> dict[str, np.ndarray]:
    """The tokens of STRETCH [B]: input_ids and segment_ids int32 [B, T]; length and pair_label
    int32 [B]. segment_ids and pair_label are 0."""
    if vocab.pad is None:
      raise UserError("rows need a tokenizer with a padding token, and this one has none.")
    input_ids = windows(store.tokens, table_rows["start"], length).astype(np.int32)
    np.copyto(input_ids, vocab.pad, where=np.arange(length) >= table_rows["length"][:, None])
    return {
      "input_ids": input_ids,
      "segment_ids": np.zeros_like(input_ids),
      "length": table_rows["length"].astype(np.int32),
      "pair_label": np.zeros(len(table_rows), np.int32),
    }
