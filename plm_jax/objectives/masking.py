"""Choosing the positions to predict and replacing their tokens, for whole blocks of rows at once.

Sources: google-research/bert (eedf571) create_pretraining_data.py, `create_masked_lm_predictions`;
for unit="ngram", google-research/albert (b772393), the same function; for rules="fairseq", fairseq
(3d262bb) data/mask_tokens_dataset.py.
Deviation: in unigram vocabularies words start at "▁" alone; ALBERT's code starts one at punctuation
and at pieces with other than English letters too.

    predictions(length, rate, max_predictions) -> P            static number of prediction slots
    candidates(input_ids, vocab) -> bool [B, T]                all but [PAD], [CLS], [SEP]
    real_tokens(input_ids, length) -> bool [B, T]              all but padding
    corrupt_tokens(input_ids, length, candidate_mask, draws, vocab, *, rate, mask, same, random,
                   max_predictions, unit, ...) -> Corrupted(input_ids, positions, targets, weights)

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
_ORDER, _FATE, _LENGTH, _COUNT = 0, 1, 2, 3  # streams of draws

Unit = Literal["token", "whole_word", "ngram"]
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
  unit: Unit = "token",
  max_ngram: int = 3,
  rules: Rules = "bert",
) -> Corrupted:
  """Selects positions and replaces the tokens there by [MASK], by a random token, or not at all.

  A row of `length` tokens (int [B], [CLS] and [SEP] counted, padding not) gets
  n = min(max_predictions, max(1, round(length * rate))) predictions, fewer where candidates run
  out. Each selected token draws its own fate: `mask`, `random` (uniform over the whole vocabulary,
  special tokens and the token itself included), else `same`; the three sum to 1.
  With rules="fairseq" n = int(length * rate + u), u uniform in [0, 1) and the row's own, and random
  tokens are never special.
  `candidate_mask` bool [B, T]; with unit="whole_word" all pieces of a word are selected or none,
  with "ngram" up to `max_ngram` words in a row at a time.
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
        f'unit="{unit}" needs a tokenizer that marks where words start; this one does not: take '
        'another tokenizer or unit="token".'
      )
    words = _words(candidate_mask, vocab.word_start.take(input_ids))
    if unit == "whole_word":
      chosen = _choose_words(words, budget, draws)
    else:
      chosen = _choose_ngrams(words, budget, draws, max_ngram)
    positions, valid = _positions(chosen, words, candidate_mask, slots)
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


def random_order(
  allowed: np.ndarray, draws: Draws, ranks: int, stream: int = _ORDER
) -> tuple[np.ndarray, np.ndarray]:
  """(column int32, allowed bool) [B, ranks]: the columns of each row in random order, the allowed
  ones first.

  Sorting values is 5 times as fast as sorting indices, so the column travels in the low bits of
  the key. What is left, 24 bits at 128 columns, makes ties (won by the left column) immaterial.
  """
  columns = allowed.shape[1]
  low = (1 << (columns - 1).bit_length()) - 1
  keys = draws.bits(stream, columns)
  keys &= np.uint32(0x7FFFFFFF & ~low)
  keys |= np.arange(columns, dtype=np.uint32)
  keys |= (~allowed).astype(np.uint32) << np.uint32(31)
  keys.sort(axis=1)
  keys = keys[:, :ranks]
  return (keys & np.uint32(low)).astype(np.int32), keys < np.uint32(0x80000000)


def _choose_tokens(allowed, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P], ascending, and valid bool [B, P]."""
  columns = allowed.shape[1]
  order, chosen = random_order(allowed, draws, slots)
  chosen &= np.arange(slots, dtype=np.int32) < budget[:, None]
  order[~chosen] = columns
  order.sort(axis=1)
  valid = order < columns
  order *= valid
  return order, valid


class _Words(NamedTuple):
  """The words of a block of rows, W of them, numbered through the block."""

  starts: np.ndarray  # bool [B, T]
  number: np.ndarray  # int32 [B * T]; what is no candidate belongs to none
  sizes: np.ndarray  # int32 [W], in tokens


def _words(allowed: np.ndarray, word_start: np.ndarray) -> _Words:
  """A piece that does not start a word joins the candidate before it, even over a [SEP] in between
  (front truncation can put a "##" piece first), as in the original."""
  starts = allowed & word_start
  everyone, leftmost = np.arange(len(allowed)), allowed.argmax(axis=1)
  starts[everyone, leftmost] = allowed[everyone, leftmost]
  number = np.cumsum(starts.ravel(), dtype=np.int32) - 1
  count_up_to = np.cumsum(allowed.ravel(), dtype=np.int32)
  sizes = np.diff(count_up_to[starts.ravel()], append=count_up_to[-1:] + 1)
  return _Words(starts, number, sizes)


def _positions(chosen, words: _Words, allowed, slots) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P] of the tokens of chosen words, and valid bool [B, P]."""
  rows, columns = allowed.shape
  row, column = np.divmod(np.flatnonzero(chosen.take(words.number) & allowed.ravel()), columns)
  count = np.bincount(row, minlength=rows)
  positions = np.zeros((rows, slots), np.int32)
  positions[row, np.arange(row.size) - (np.cumsum(count) - count)[row]] = column
  return positions, np.arange(slots) < count[:, None]


def _choose_words(words: _Words, budget, draws) -> np.ndarray:
  """Which words are chosen, bool [W + 1]: the greedy rule of the original, one random rank at a
  time. The last is none: there may be no word at all."""
  rows, columns = words.starts.shape
  chosen = np.zeros(words.sizes.size + 1, bool)
  most_words = words.starts.sum(axis=1).max(initial=0)
  order, is_word = random_order(words.starts, draws, most_words)
  order += (np.arange(rows) * columns).astype(np.int32)[:, None]
  left = budget.copy()
  for rank in range(0, most_words, _RANKS):
    if not left.any():
      break
    word = words.number.take(order[:, rank : rank + _RANKS].T)
    size = words.sizes.take(word) + columns * ~is_word[:, rank : rank + _RANKS].T
    chosen[word[_fitting(size, left)]] = True
  return chosen


def _fitting(sizes: np.ndarray, left: np.ndarray) -> np.ndarray:
  """Which words are taken, bool [R, B], one rank after the other; subtracts them from `left` [B].

  A word that does not fit is passed over, and a later, shorter one may still fit.
  """
  taken = np.empty(sizes.shape, bool)
  for size, take in zip(sizes, taken, strict=True):
    np.less_equal(size, left, out=take)
    left -= size * take
  return taken


def _choose_ngrams(words: _Words, budget, draws, longest: int) -> np.ndarray:
  """As `_choose_words`, by runs of n words, n drawn for the word that a run begins with.

  A run that is too long for what is left of the budget loses words from its end until it fits; one
  that then meets a chosen word is passed over. It may reach over a [SEP], and ends with the row.
  """
  columns, nothing = words.starts.shape[1], words.sizes.size
  chosen = np.zeros(nothing + 1, bool)
  before = np.append(0, np.cumsum(words.sizes)).astype(np.int32)  # tokens before each word
  row_end = np.cumsum(words.starts.sum(axis=1)).astype(np.int32)
  most_words = words.starts.sum(axis=1).max(initial=0)
  order, is_word = random_order(words.starts, draws, most_words)
  left = budget.copy()
  for rank in range(0, most_words, _RANKS):
    live = np.flatnonzero(left)
    if not live.size:
      break
    some = slice(rank, rank + _RANKS)
    drawn = ngram_lengths(draws, order[:, some], longest)[live].T
    word = words.number.take(order[live, some] + (live * columns)[:, None]).T
    end = row_end[live]
    sizes, members = [], []  # by n: tokens of a run of n words, and its n-th word
    for n in range(1, longest + 1):
      size = before.take(np.minimum(word + n, end)) - before.take(word)
      # Not `+ columns`: what is no word has a number of another row or none, and any size.
      sizes.append(np.where(is_word[live, some].T & (n <= drawn), size, columns + 1))
      members.append(np.where(word + n - 1 < end, word + n - 1, nothing))
    room = left[live]
    for size, member in zip(np.stack(sizes, 1), np.stack(members, 1), strict=True):
      fits = size <= room
      fits &= ~(chosen.take(member) & fits).any(axis=0)
      chosen[member[fits]] = True
      chosen[nothing] = False
      room -= (size * fits).max(axis=0)
    left[live] = room
  return chosen


def ngram_lengths(draws: Draws, columns: np.ndarray, longest: int) -> np.ndarray:
  """n int [B, R] for the words that begin at `columns` int [B, R]: p(n) is proportional to 1 / n
  for n up to `longest` (Lan et al. 2020, equation 1)."""
  shares = 1 / np.arange(1, longest + 1)
  u = draws.bits_at(_LENGTH, columns.astype(np.uint32)) * 2.0**-32
  n = np.ones(u.shape, np.int8)
  for bound in np.cumsum(shares / shares.sum())[:-1]:
    n += u >= bound
  return n
