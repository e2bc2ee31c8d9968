"""Choosing the positions to predict and replacing their tokens, for whole blocks of rows at once.

Sources: google-research/bert (eedf571) create_pretraining_data.py, `create_masked_lm_predictions`;
for rules="fairseq", fairseq (3d262bb) data/mask_tokens_dataset.py.

    predictions(length, rate, max_predictions) -> P            static number of prediction slots
    candidates(input_ids, vocab) -> bool [B, T]                all but [PAD], [CLS], [SEP]
    real_tokens(input_ids, length) -> bool [B, T]              all but padding
    corrupt_tokens(input_ids, length, candidate_mask, draws, vocab, *, rate, mask, same, random,
                   max_predictions, unit) -> Corrupted(input_ids, positions, targets, weights)

Static masking is the same function with draws of `epoch % copies`: `draws.repeat(copies)`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.tokenizers import Vocab

_RANKS = 16  # of words that are weighed at once
_ORDER, _FATE, _COUNT = 0, 1, 3  # streams of draws

Rules = Literal["bert", "fairseq"]


class Corrupted(NamedTuple):
  """Rows after corruption; slots beyond a row's own number have position 0, target 0, weight 0."""

  input_ids: np.ndarray  # int32 [B, T], a new array
  positions: np.ndarray  # int32 [B, P], ascending within a row
  targets: np.ndarray  # int32 [B, P], the tokens before corruption
  weights: np.ndarray  # float32 [B, P], 1 for a prediction, 0 for padding


def predictions(
  length: int, rate: float, max_predictions: int | None = None, rules: Rules = "bert"
) -> int:
  """P, the static number of slots for rows of `length` tokens: 19 at 128, 77 at 512 (rate .15);
  20 and 77 by fairseq's rules, which sometimes round up."""
  budget = max(1, round(length * rate) if rules == "bert" else math.ceil(length * rate))
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


def real_tokens(input_ids: np.ndarray, length: np.ndarray) -> np.ndarray:
  """bool [B, T]: positions that may be predicted by fairseq's rules; all but padding."""
  return np.arange(input_ids.shape[1]) < length[:, None]


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
  rules: Rules = "bert",
) -> Corrupted:
  """Selects positions and replaces the tokens there by [MASK], by a random token, or not at all.

  A row of `length` tokens (int [B], [CLS] and [SEP] counted, padding not) gets
  n = min(max_predictions, max(1, round(length * rate))) predictions, fewer where candidates run
  out. Each selected token draws its own fate: `mask`, `random` (uniform over the whole vocabulary,
  special tokens and the token itself included), else `same`; the three sum to 1.
  With rules="fairseq" n = int(length * rate + u), u uniform in [0, 1) and the row's own, and random
  tokens are never special.
  `candidate_mask` bool [B, T]; with unit="whole_word" all pieces of a word are selected or none.
  """
  del same  # what the other two leave
  columns = input_ids.shape[1]
  slots = predictions(columns, rate, max_predictions, rules)
  if rules == "bert":
    budget = _budget(length, rate, slots)
  else:
    budget = _probabilistic_budget(length, rate, slots, draws)
  if unit == "token":
    positions, valid = _choose_tokens(candidate_mask, budget, slots, draws)
  else:
    if vocab.word_start is None:
      raise UserError(
        'unit="whole_word" needs a tokenizer that marks where words start; this one does not: take '
        'another tokenizer or unit="token".'
      )
    starts = vocab.word_start.take(input_ids)
    positions, valid = _choose_words(candidate_mask, starts, budget, slots, draws)
  # One spare element at the end takes what the empty slots write, so that nothing is selected.
  flat = np.empty(input_ids.size + 1, np.int32)
  flat[:-1] = input_ids.ravel()
  flat[-1] = 0
  first = np.arange(0, input_ids.size, columns)[:, None]
  slot = np.where(valid, positions + first, input_ids.size)
  targets = flat.take(slot)
  ordinary = np.flatnonzero(~vocab.special) if rules == "fairseq" else None
  positions_32 = positions.astype(np.uint32)
  flat[slot] = _replacements(targets, positions_32, draws, vocab, mask, random, ordinary)
  corrupted = flat[:-1].reshape(input_ids.shape)
  return Corrupted(corrupted, positions, targets, valid.astype(np.float32))


def _replacements(targets, positions, draws, vocab, mask, random, ordinary) -> np.ndarray:
  """The tokens at the selected positions, int32 [B, P]; by arithmetic: a random `where` is slow.

  Random tokens are drawn from `ordinary`, int [N], or where that is None from all.
  """
  fate = draws.bits_at(_FATE, positions) * 2.0**-32
  is_mask, is_changed = fate < mask, fate < mask + random
  # Where in the interval of random tokens the draw fell says which token it is.
  size = vocab.size if ordinary is None else len(ordinary)
  token = (fate - mask) * (size / (random or 1))
  anything = np.clip(token, 0, size - 1).astype(np.int32)
  if ordinary is not None:
    anything = ordinary.astype(np.int32).take(anything)
  return targets + (anything - targets) * is_changed + (vocab.mask - anything) * is_mask


def _budget(length: np.ndarray, rate: float, slots: int) -> np.ndarray:
  # rint and Python's round agree: halves go to the even neighbour.
  return np.clip(np.rint(length * rate), 1, slots).astype(np.int32)


def _probabilistic_budget(length, rate, slots, draws) -> np.ndarray:
  """The integer on either side of `length * rate`, so drawn that its mean is that; 0 is possible
  for rows of less than 1 / rate tokens."""
  shifted = length * rate + draws.uniform(_COUNT, 1)[:, 0]
  return np.minimum(shifted.astype(np.int32), slots)


def _random_order(allowed: np.ndarray, draws: Draws, ranks: int) -> tuple[np.ndarray, np.ndarray]:
  """(column int32, allowed bool) [B, ranks]: the columns of each row in random order, the allowed
  ones first.

  Sorting values is 5 times as fast as sorting indices, so the column travels in the low bits of
  the key. What is left, 24 bits at 128 columns, makes ties (won by the left column) immaterial.
  """
  columns = allowed.shape[1]
  low = (1 << (columns - 1).bit_length()) - 1
  keys = draws.bits(_ORDER, columns)
  keys &= np.uint32(0x7FFFFFFF & ~low)
  keys |= np.arange(columns, dtype=np.uint32)
  keys |= (~allowed).astype(np.uint32) << np.uint32(31)
  keys.sort(axis=1)
  keys = keys[:, :ranks]
  return (keys & np.uint32(low)).astype(np.int32), keys < np.uint32(0x80000000)


def _choose_tokens(allowed, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P], ascending, and valid bool [B, P]."""
  columns = allowed.shape[1]
  order, chosen = _random_order(allowed, draws, slots)
  chosen &= np.arange(slots, dtype=np.int32) < budget[:, None]
  order[~chosen] = columns
  order.sort(axis=1)
  valid = order < columns
  order *= valid
  return order, valid


def _choose_words(allowed, word_start, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """As `_choose_tokens`, by words: the greedy rule of the original, one random rank at a time.

  A piece that does not start a word joins the candidate before it, even over a [SEP] in between
  (front truncation can put a "##" piece first), as in the original.
  """
  rows, columns = allowed.shape
  starts = allowed & word_start
  everyone, leftmost = np.arange(rows), allowed.argmax(axis=1)
  starts[everyone, leftmost] = allowed[everyone, leftmost]
  # Words are numbered through the block; what is no candidate belongs to none.
  number = np.cumsum(starts.ravel(), dtype=np.int32) - 1
  count_up_to = np.cumsum(allowed.ravel(), dtype=np.int32)
  sizes = np.diff(count_up_to[starts.ravel()], append=count_up_to[-1:] + 1)
  chosen = np.zeros(sizes.size + 1, bool)  # one more: there may be no word at all

  most_words = starts.sum(axis=1).max(initial=0)
  order, is_word = _random_order(starts, draws, most_words)
  order += (everyone * columns).astype(np.int32)[:, None]
  left = budget.copy()
  for rank in range(0, most_words, _RANKS):
    if not left.any():
      break
    word = number.take(order[:, rank : rank + _RANKS].T)
    size = sizes.take(word) + columns * ~is_word[:, rank : rank + _RANKS].T
    chosen[word[_fitting(size, left)]] = True
  row, column = np.divmod(np.flatnonzero(chosen.take(number) & allowed.ravel()), columns)
  count = np.bincount(row, minlength=rows)
  positions = np.zeros((rows, slots), np.int32)
  positions[row, np.arange(row.size) - (np.cumsum(count) - count)[row]] = column
  return positions, np.arange(slots) < count[:, None]


def _fitting(sizes: np.ndarray, left: np.ndarray) -> np.ndarray:
  """Which words are taken, bool [R, B], one rank after the other; subtracts them from `left` [B].

  A word that does not fit is passed over, and a later, shorter one may still fit.
  """
  taken = np.empty(sizes.shape, bool)
  for size, take in zip(sizes, taken, strict=True):
    np.less_equal(size, left, out=take)
    left -= size * take
  return taken
