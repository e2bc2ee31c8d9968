"""The n-grams of a row for fastText's classifier (Joulin et al. 2017, arXiv:1607.01759)."""

from __future__ import annotations

from typing import Any

import numpy as np

from plm_jax.data.subwords import fnv1a, word_ngram_buckets
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.objectives.word2vec import row_ngrams


class WordNgrams:
  """The n-grams of words and of characters of the rows of a model with `config.buckets`."""

  def __init__(self, config: Any, tokenizer: Tokenizer):
    self._vocab, self._longest, self._buckets = tokenizer.vocab, config.word_ngrams, config.buckets
    self._hashes = fnv1a(list(tokenizer.pieces)) if config.word_ngrams > 1 else None

  def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`bag` int32 `[B, F]`, rows of the table of n-grams, -1 where there is none. F depends on the
    width of the rows alone."""
    ids_BT, length_B = batch["input_ids"], batch["length"]
    rows, words = ids_BT.shape
    parts = []
    if characters := row_ngrams(ids_BT, length_B, self._vocab):
      parts.append(np.where(characters["ngram_word"] < words, characters["ngrams"], -1))
    if self._hashes is not None:
      made = word_ngram_buckets(self._hashes[ids_BT], self._longest, self._buckets)
      ends = np.arange(words)[:, None] + np.arange(1, self._longest)
      parts.append(np.where(ends < length_B[:, None, None], made, -1).reshape(rows, -1))
    return {"bag": np.concatenate(parts, axis=1).astype(np.int32)} if parts else {}


def ngrams_of(config: Any, tokenizer: Tokenizer) -> WordNgrams | None:
  """None for a model without a table of n-grams."""
  return WordNgrams(config, tokenizer) if getattr(config, "word_ngrams", 0) else None
