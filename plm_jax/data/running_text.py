"""Rows of running text without special tokens, for objectives that build their own rows.

Source: google-research/text-to-text-transfer-transformer (e081111) t5/data/preprocessors.py,
`reduce_concat_tokens` and `split_tokens`: documents are joined without separators and cut into
pieces of one length. T5's rows are longer than its inputs, because a span of several tokens becomes
one sentinel: `objectives/span_corruption.py` computes the number of tokens that fill an input.
"""

from dataclasses import dataclass

import numpy as np

from plm_jax.data.segments import Rows, single_segment, stretches, windows
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

_SHORTEST = 2  # tokens: one to corrupt and one to keep


@dataclass(frozen=True, kw_only=True)
class RunningText:
  """Pieces of `data.length` tokens; the last one may be shorter.

  All seeds and passes have the same rows: only their order and their corruption differ.
  """

  drawn = False

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """STRETCH [N]: the rows of the store."""
    return stretches(len(store.tokens), length, _SHORTEST)

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["length"]

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of STRETCH [B]."""
    if vocab.pad is None:
      raise UserError("rows need a tokenizer with a padding token, and this one has none.")
    input_ids = windows(store.tokens, table_rows["start"], length).astype(np.int32)
    np.copyto(input_ids, vocab.pad, where=np.arange(length) >= table_rows["length"][:, None])
    return single_segment(input_ids, table_rows["length"])
