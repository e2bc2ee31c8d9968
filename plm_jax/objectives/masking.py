"""Choosing the positions to predict and replacing their tokens, for whole blocks of rows at once.

Source: google-research/bert (eedf571) create_pretraining_data.py, `create_masked_lm_predictions`.

    predictions(length, rate, max_predictions) -> P            static number of prediction slots
    candidates(input_ids, vocab) -> bool [B, T]                all but [PAD], [CLS], [SEP]
    corrupt_tokens(input_ids, length, candidate_mask, draws, vocab, *, rate, mask, same, random,
                   max_predictions, unit) -> Corrupted(input_ids, positions, targets, weights)

Static masking is the same function with draws of `epoch % copies`: `draws.repeat(copies)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from plm_jax.data.draws import integers, unit_interval

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.tokenizers import Vocab

_ORDER, _FATE, _TOKEN = 0, 1, 2  # streams of draws


class Corrupted(NamedTuple):
  """Rows after corruption; slots beyond a row's own number have position 0, target 0, weight 0."""

  input_ids: np.ndarray  # int32 [B, T], a new array
  positions: np.ndarray  # int32 [B, P], ascending within a row
  targets: np.ndarray  # int32 [B, P], the tokens before corruption
  weights: np.ndarray  # float32 [B, P], 1 for a prediction, 0 for padding


def predictions(length: int, rate: float, max_predictions: int | None = None) -> int:
  """P, the static number of slots for rows of `length` tokens: 19 at 128, 77 at 512 (rate .15)."""
  budget = max(1, round(length * rate))
  return budget if max_predictions is None else min(max_predictions, budget)


def candidates(input_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
  """bool [B, T]: positions that may be predicted; all but padding, [CLS], [SEP] and their like.

  [UNK] is a candidate, as in the original.
  """
  never = {vocab.pad, vocab.cls, vocab.sep, vocab.bos, vocab.eos} - {None}
  allowed = np.ones(input_ids.shape, bool)
  for token in never:
    allowed &= input_ids != token
  return allowed


def corrupt_tokens(
  input_ids: np.ndarray,
  length: np.ndarray,
  candidate_mask: np.ndarray,
  draws: Draws,
  vocab: Vocab,
  *,
  rate: float = 0.15,
  mask: float = 0.8,
  same: float = 0.1,
  random: float = 0.1,
  max_predictions: int | None = None,
  unit: Literal["token", "whole_word"] = "token",
) -> Corrupted:
  """Selects positions and replaces the tokens there by [MASK], by a random token, or not at all.

  A row of `length` tokens (int [B], [CLS] and [SEP] counted, padding not) gets
  n = min(max_predictions, max(1, round(length * rate))) predictions, fewer where candidates run
  out. Each selected token draws its own fate: `mask`, `random` (uniform over the whole vocabulary,
  special tokens and the token itself included), else `same`; the three sum to 1.
  `candidate_mask` bool [B, T]; with unit="whole_word" all pieces of a word are selected or none.
  """
  del same  # what the other two leave
  slots = predictions(input_ids.shape[1], rate, max_predictions)
  budget = _budget(length, rate, slots)
  if unit == "token":
    positions, valid = _choose_tokens(candidate_mask, budget, slots, draws)
  else:
    starts = vocab.word_start[input_ids]
    positions, valid = _choose_words(candidate_mask, starts, budget, slots, draws)
  targets = np.take_along_axis(input_ids, positions, axis=1)
  fate = unit_interval(draws.bits_at(_FATE, positions.astype(np.uint32)))
  anything = integers(draws.bits_at(_TOKEN, positions.astype(np.uint32)), vocab.size)
  replaced = np.where(fate < mask + random, anything, targets)
  np.copyto(replaced, vocab.mask, where=fate < mask)

  corrupted = input_ids.copy()
  row, slot = np.nonzero(valid)
  corrupted[row, positions[row, slot]] = replaced[row, slot]
  return Corrupted(corrupted, positions, targets * valid, valid.astype(np.float32))


def _budget(length: np.ndarray, rate: float, slots: int) -> np.ndarray:
  # rint and Python's round agree: halves go to the even neighbour.
  return np.clip(np.rint(length * rate), 1, slots).astype(np.int32)


def _random_order(allowed: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
  """(column, allowed) [B, T]: the columns of each row in random order, the allowed ones first.

  Sorting values is 5 times as fast as sorting indices, so the column travels in the low bits of
  the key. What is left, 24 bits at 128 columns, makes ties (won by the left column) immaterial.
  """
  columns = allowed.shape[1]
  low = (1 << (columns - 1).bit_length()) - 1
  keys = draws.bits(_ORDER, columns)
  keys &= np.uint32(0x7FFFFFFF & ~low)
  keys |= np.arange(columns, dtype=np.uint32)
  np.bitwise_or(keys, np.uint32(0x80000000), out=keys, where=~allowed)
  keys.sort(axis=1)
  return (keys & np.uint32(low)).astype(np.int32), keys < np.uint32(0x80000000)


def _choose_tokens(allowed, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P], ascending, and valid bool [B, P]."""
  columns = allowed.shape[1]
  order, is_allowed = _random_order(allowed, draws)
  chosen = is_allowed[:, :slots] & (np.arange(slots) < budget[:, None])
  positions = np.where(chosen, order[:, :slots], columns)
  positions.sort(axis=1)
  valid = positions < columns
  return positions * valid, valid


def _choose_words(allowed, word_start, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """As `_choose_tokens`, by words: the greedy rule of the original, one random rank at a time.

  A piece that does not start a word joins the candidate before it, even over a [SEP] in between
  (front truncation can put a "##" piece first), as in the original.
  """
  rows, columns = allowed.shape
  starts = allowed & word_start
  everyone, first = np.arange(rows), allowed.argmax(axis=1)
  starts[everyone, first] = allowed[everyone, first]
  # The word of a candidate is named by the flat index of its first piece.
  word = np.where(starts, np.arange(columns, dtype=np.int32), 0)
  np.maximum.accumulate(word, axis=1, out=word)
  word += (everyone * columns).astype(np.int32)[:, None]
  sizes = np.bincount(word[allowed], minlength=rows * columns)

  order, is_word = _random_order(starts, draws)
  flat = (order + (everyone * columns)[:, None])[:, : is_word.sum(axis=1).max(initial=0)]
  size_by_rank = np.where(is_word[:, : flat.shape[1]], sizes[flat], columns + 1).T.copy()
  taken_by_rank = np.empty(size_by_rank.shape, bool)
  left = budget.copy()
  for size, taken in zip(size_by_rank, taken_by_rank, strict=True):
    np.less_equal(size, left, out=taken)
    left -= size * taken

  selected = np.zeros(rows * columns, bool)
  selected[flat[taken_by_rank.T]] = True
  row, column = np.nonzero(selected[word] & allowed)
  count = np.bincount(row, minlength=rows)
  positions = np.zeros((rows, slots), np.int32)
  positions[row, np.arange(row.size) - (np.cumsum(count) - count)[row]] = column
  return positions, np.arange(slots) < count[:, None]
