"""Nearest neighbours of tokens in the token table of a model.

Rows are compared by their cosine, after the mean row is subtracted: all rows share a direction that
says nothing about the token (Mu and Viswanath 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from plm_jax.data.subwords import mean_rows
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import named

WORDS = 600  # the most frequent words, whose rows were trained often
_SHORTEST = 3  # letters of a word in a group


class Neighbour(NamedTuple):
  token: str
  cosine: float


def with_word_vectors(params: Parameters, tokenizer: Tokenizer) -> Parameters:
  """The parameters with the final vectors in the token table. Only static vectors differ: GloVe's
  are sums of two tables, and fastText's means with n-grams."""
  if not hasattr(params, "word_rows"):
    return params
  rows, ngrams = params.word_rows()
  if ngrams is not None and tokenizer.vocab.ngrams is not None:
    rows = mean_rows(rows, ngrams, *tokenizer.vocab.ngrams)
  return params.with_token_table(rows)


def token_table(params: Parameters) -> jax.Array | None:
  """float32 [V, D]; None for a model without one, such as an n-gram model."""
  leaves = named(params.encoder())
  return next((x for path, x in leaves if path.endswith("token/table")), None)


def unit_rows(params: Parameters, ids: np.ndarray) -> np.ndarray:
  """float32 [tokens, D]: the rows of `ids` in the token table, centred, of length 1."""
  rows = np.asarray(token_table(params), np.float32)[ids]
  rows = rows - rows.mean(axis=0)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def neighbours(
  params: Parameters, tokenizer: Tokenizer, ids: Sequence[int], best: int = 8
) -> list[list[Neighbour]]:
  """For every id, the `best` nearest other tokens, nearest first."""
  params = with_word_vectors(params, tokenizer)
  rows = unit_rows(params, np.arange(tokenizer.vocab.size))
  found = []
  for token in ids:
    cosines = rows @ rows[token]
    cosines[token] = -np.inf
    order = np.argsort(-cosines, kind="stable")[:best]
    names = tokenizer.tokens(order)
    found.append([Neighbour(bare(n), float(cosines[i])) for n, i in zip(names, order)])
  return found


def groups(
  params: Parameters, tokenizer: Tokenizer, counts: np.ndarray, number: int = 4, size: int = 5
) -> list[list[str]]:
  """Groups of words whose rows are alike: a word with its nearest ones, closest group first. Of the
  most frequent words by `counts`, int [V]; no word is in two groups."""
  ids = frequent_words(tokenizer, counts)
  if len(ids) <= size or token_table(params) is None:
    return []
  rows = unit_rows(with_word_vectors(params, tokenizer), ids)
  cosines = rows @ rows.T
  near = np.argsort(-cosines, axis=1, kind="stable")[:, :size]  # the word itself is the first
  closeness = np.take_along_axis(cosines, near, axis=1)[:, 1:].mean(axis=1)
  chosen: list[list[str]] = []
  used: set[int] = set()
  for word in np.argsort(-closeness, kind="stable"):
    if len(chosen) < number and not used & set(near[word]):
      used |= set(near[word])
      chosen.append([bare(name) for name in tokenizer.tokens(ids[near[word]])])
  return chosen


def frequent_words(tokenizer: Tokenizer, counts: np.ndarray) -> np.ndarray:
  """The ids of the most frequent whole words of letters, at most `WORDS`."""
  vocab: Vocab = tokenizer.vocab
  order = np.argsort(-np.asarray(counts)[: vocab.size], kind="stable")[: 4 * WORDS]
  names = [bare(name) for name in tokenizer.tokens(order)]
  starts = np.ones(vocab.size, bool) if vocab.word_start is None else vocab.word_start
  is_word = [
    bool(starts[i]) and name.isalpha() and len(name) >= _SHORTEST and counts[i] > 0
    for i, name in zip(order, names)
  ]
  return order[is_word][:WORDS]


def bare(token: str) -> str:
  """A token without the mark of a word's start."""
  return token.lstrip("▁Ġ")
