"""Rows of text pairs, such as a sentence and its translation, from documents of two sentences each,
the documents of a `.tsv` file (`data/corpora.py`)."""

from dataclasses import dataclass, replace

import numpy as np

from plm_jax.data.pairing import SPANS
from plm_jax.data.segments import Rows, read_pairs
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceTarget:
  """Rows "[CLS] source [SEP] target [SEP]". Each text is cut to `data.length // 2 - 2` tokens.
  All seeds and passes have the same rows."""

  drawn = False

  def table(self, store: TokenStore, length: int, seed: int, pass_: int) -> np.ndarray:
    """SPANS [N]: a row for every document of two sentences. Errors: `UserError` without any."""
    documents = np.asarray(store.document_starts)
    first = documents[:-1][np.diff(documents) == 2]
    if not len(first):
      raise UserError(
        "data.segments=SourceTarget needs documents of two sentences, a source and its target, and "
        "this text has none: give a .tsv file"
      )
    starts = np.asarray(store.sentence_starts)
    rows = np.zeros(len(first), SPANS)
    for name, sentence in (("a", first), ("b", first + 1)):
      rows[f"{name}_start"] = starts[sentence]
      rows[f"{name}_length"] = np.minimum(starts[sentence + 1] - starts[sentence], length // 2 - 2)
    return rows

  def tokens(self, rows: np.ndarray) -> np.ndarray:
    """int [N]: the number of positions of each row that are not padding."""
    return rows["a_length"] + rows["b_length"] + 3

  def read(self, store: TokenStore, table_rows: np.ndarray, length: int, vocab: Vocab) -> Rows:
    """The tokens of SPANS [B], as `read_pairs` lays them out. A vocabulary without a token that
    begins a text (T5) uses its padding token instead."""
    if not vocab.begin:
      vocab = replace(vocab, cls=vocab.pad)
    return read_pairs(store, table_rows, length, vocab, 1)
