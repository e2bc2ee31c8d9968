"""Choosing the positions to predict and replacing their tokens, for whole blocks of rows at once.

Sources: google-research/bert (eedf571) create_pretraining_data.py, `create_masked_lm_predictions`;
for unit="ngram", google-research/albert (b772393), the same function; for rules="fairseq", fairseq
(3d262bb) data/mask_tokens_dataset.py.
Deviation: in unigram vocabularies words start at "▁" alone; ALBERT's code starts one at punctuation
and at pieces with other than English letters too.

Static masking is the same function with draws of `epoch % copies`: `draws.repeat(copies)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.vocab import Vocab

_BELOW = (np.uint64(1) << np.arange(64, dtype=np.uint64)) - np.uint64(1)  # the lowest n of 64 bits
_ORDER, _FATE, _LENGTH, _COUNT = 0, 1, 2, 3  # streams of draws

Unit = Literal["token", "whole_word", "ngram"]
MaskingRules = Literal["bert", "fairseq"]


class Corrupted(NamedTuple):
  """Rows after corruption; slots beyond a row's own number have position 0, target 0, weight 0."""

  input_ids: np.ndarray  # int32 [B, T], a new array
  positions: np.ndarray  # int32 [B, P], ascending within a row
  targets: np.ndarray  # int32 [B, P], the tokens before corruption
  weights: np.ndarray  # float32 [B, P], 1 for a prediction, 0 for padding


def predictions(
  length: int, rate: float, max_predictions: int | None = None, rules: MaskingRules = "bert"
) -> int:
  """P, the static number of slots for rows of `length` tokens: 19 at 128, 77 at 512 (rate .15);
  20 and 77 by fairseq's rules, which sometimes round up."""
  budget = max(1, round(length * rate) if rules == "bert" else math.ceil(length * rate))
  return budget if max_predictions is None else min(max_predictions, budget)


def candidates(input_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
  """bool [B, T]: positions that may be predicted; all but padding, [CLS], [SEP] and their like.

  [UNK] is a candidate, as in the original.
  """
  allowed = np.ones(input_ids.shape, bool)
  for token in vocab.frame_ids:
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
  random: float = 0.1,
  max_predictions: int | None = None,
  unit: Unit = "token",
  max_ngram: int = 3,
  rules: MaskingRules = "bert",
) -> Corrupted:
  """Selects positions and replaces the tokens there by [MASK], by a random token, or not at all.

  A row of `length` tokens (int [B], [CLS] and [SEP] counted, padding not) gets
  n = min(max_predictions, max(1, round(length * rate))) predictions, fewer where candidates run
  out. Each selected token draws its own fate: `mask`, `random` (uniform over the whole vocabulary,
  special tokens and the token itself included), else it stays the same.
  With rules="fairseq" n = int(length * rate + u), u uniform in [0, 1) and the row's own, and random
  tokens are never special.
  `candidate_mask` bool [B, T]; with unit="whole_word" all pieces of a word are selected or none,
  with "ngram" up to `max_ngram` words in a row at a time.
  """
  columns = input_ids.shape[1]
  slots = predictions(columns, rate, max_predictions, rules)
  if rules == "bert":
    number = budget(length, rate, slots)
  else:
    # Rounded at random, so that the mean is exact. Rows of fewer than 1 / rate tokens may get 0.
    shifted = length * rate + draws.uniform(_COUNT, 1)[:, 0]
    number = np.minimum(shifted.astype(np.int32), slots)
  if unit == "token":
    positions, valid = _choose_tokens(candidate_mask, number, slots, draws)
  else:
    if vocab.word_start is None:
      raise UserError(
        f'unit="{unit}" needs a tokenizer that marks where words start; this one does not: take '
        'another tokenizer or unit="token".'
      )
    words = _words(candidate_mask, vocab.word_start.take(input_ids))
    if unit == "whole_word":
      chosen, count = _choose_words(words, number, slots, draws)
    else:
      chosen, count = _choose_ngrams(words, number, slots, draws, max_ngram)
    positions, valid = _positions(chosen, count, words, slots)
  # One spare element at the end takes what the empty slots write, so that nothing is selected.
  flat = np.empty(input_ids.size + 1, np.int32)
  flat[:-1] = input_ids.ravel()
  flat[-1] = 0
  first = np.arange(0, input_ids.size, columns)[:, None]
  slot = positions + first
  slot[~valid] = input_ids.size
  targets = flat.take(slot)
  ordinary = np.flatnonzero(~vocab.special) if rules == "fairseq" else None
  flat[slot] = _replacements(targets, positions, draws, vocab, mask, random, ordinary)
  corrupted = flat[:-1].reshape(input_ids.shape)
  return Corrupted(corrupted, positions, targets, valid.astype(np.float32))


def _replacements(targets, positions, draws, vocab, mask, random, ordinary) -> np.ndarray:
  """The tokens at the selected positions, int32 [B, P]; by arithmetic: a random `where` is slow.

  Random tokens are drawn from `ordinary`, int [N], or where that is None from all.
  """
  fate = draws.bits_at(_FATE, positions.view(np.uint32)) * 2.0**-32
  is_mask, is_changed = fate < mask, fate < mask + random
  # Where in the interval of random tokens the draw fell says which token it is.
  size = vocab.size if ordinary is None else len(ordinary)
  token = (fate - mask) * (size / (random or 1))
  anything = np.minimum(np.maximum(token, 0), size - 1).astype(np.int32)
  if ordinary is not None:
    anything = ordinary.astype(np.int32).take(anything)
  return targets + (anything - targets) * is_changed + (vocab.mask - anything) * is_mask


def budget(length: np.ndarray, rate: float, slots: int) -> np.ndarray:
  """int32 [B]: the number of predictions in rows of `length` int [B] tokens, at most `slots`."""
  # rint and Python's round agree: halves go to the even neighbour.
  return np.minimum(np.maximum(np.rint(length * rate), 1), slots).astype(np.int32)


def random_order(
  allowed: np.ndarray, draws: Draws, ranks: int, stream: int = _ORDER
) -> tuple[np.ndarray, np.ndarray]:
  """(column int32, allowed bool) [B, ranks]: columns in random order, the allowed ones first.

  Sorting values is 5 times as fast as sorting indices, so the column travels in the low bits of
  the key. What is left, 24 bits at 128 columns, makes ties (won by the left column) immaterial.
  """
  columns = allowed.shape[1]
  low = (1 << (columns - 1).bit_length()) - 1
  last = (~allowed).astype(np.uint32)
  last <<= np.uint32(31)
  last |= np.arange(columns, dtype=np.uint32)
  keys = draws.bits(stream, columns)
  keys &= np.uint32(0x7FFFFFFF & ~low)
  keys |= last
  keys.sort(axis=1)
  keys = keys[:, :ranks]
  return (keys & np.uint32(low)).view(np.int32), keys < np.uint32(0x80000000)


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
  """The W words of a block of rows and their C tokens, both numbered through the block."""

  starts: np.ndarray  # bool [B, T]
  tokens: np.ndarray  # int64 [C], their places in the flat block
  first: np.ndarray  # int32 [W + 1], the first token of each word; and C
  end: np.ndarray  # int32 [W + 1], the first token after each word; and one out of reach
  bits: np.ndarray  # uint64 [N]: `starts`, 64 places in each
  before: np.ndarray  # int32 [N], how many words start before these places


def _words(allowed: np.ndarray, word_start: np.ndarray) -> _Words:
  """A piece that does not start a word joins the candidate before it, even over a [SEP] in between
  (front truncation can put a "##" piece first), as in the original."""
  starts = allowed & word_start
  everyone, leftmost = np.arange(len(allowed)), allowed.argmax(axis=1)
  starts[everyone, leftmost] = allowed[everyone, leftmost]
  tokens = np.flatnonzero(allowed)
  first = np.flatnonzero(np.append(starts.take(tokens), [True, True])).astype(np.int32)
  first[-1] += 2**30  # word W, which is none, has more tokens than any budget
  bits = np.zeros(starts.size // 64 + 1, np.uint64)
  packed = np.packbits(starts, bitorder="little")
  bits.view(np.uint8)[: packed.size] = packed
  count = np.bitwise_count(bits)
  before = np.cumsum(count, dtype=np.int32) - count
  return _Words(starts, tokens, first[:-1], first[1:], bits, before)


def _number(words: _Words, place: np.ndarray) -> np.ndarray:
  """int32, of the shape of `place` int64: how many words start before a place in the flat block."""
  at = place >> 6
  return words.before.take(at) + np.bitwise_count(words.bits.take(at) & _BELOW.take(place & 63))


def _positions(chosen, count, words: _Words, slots) -> tuple[np.ndarray, np.ndarray]:
  """Positions int32 [B, P] of the tokens of chosen words, `count` [B], and valid bool [B, P]."""
  rows, columns = words.starts.shape
  word = np.flatnonzero(chosen)
  first = words.first.take(word)
  size = words.end.take(word) - first
  token = np.repeat(first - (np.cumsum(size) - size), size)
  token += np.arange(token.size)
  valid = np.arange(slots, dtype=np.int32) < count[:, None]
  positions = np.zeros((rows, slots), np.int32)
  begin = np.arange(0, rows * columns, columns)
  positions[valid] = words.tokens.take(token) - np.repeat(begin, count)
  return positions, valid


def _in_random_order(words: _Words, left, draws, ranks: int) -> Iterator[tuple]:
  """Some ranks after the others, for the rows that have more words and, in `left` int [B], room.

  (live, columns, word): these rows, L of them; the columns where words start, int32 [B, R], of all
  rows; and the numbers of their words, int32 [R, L], W beyond a row's last. With `ranks` such that
  few rows need more, arrays are no larger than they must be.
  """
  rows, columns = words.starts.shape
  order, is_word = random_order(words.starts, draws, columns)
  begin = np.arange(0, rows * columns, columns)
  live = slice(None)
  for rank in range(0, columns, ranks):
    some = slice(rank, rank + ranks)
    word = _number(words, np.add(order[live, some].T, begin[live], order="C"))
    word[~is_word[live, some].T] = words.first.size - 1
    yield live, order[:, some], word
    live = np.flatnonzero(is_word[:, some][:, -1] & (left > 0))
    if not live.size:
      return


def _choose_words(words: _Words, budget, slots, draws) -> tuple[np.ndarray, np.ndarray]:
  """Which words are chosen, bool [W + 1], and their tokens, int32 [B]: the greedy rule of the
  original, one random rank at a time. A word that does not fit is passed over, and a later, shorter
  one may still fit. The last word is none."""
  chosen = np.zeros(words.first.size, bool)
  left = budget.astype(np.uint32)
  for live, _, word in _in_random_order(words, left, draws, slots + 2):
    sizes = (words.end.take(word) - words.first.take(word)).view(np.uint32)
    room = np.empty((len(sizes) + 1, sizes.shape[1]), np.uint32)
    room[0] = left[live]
    for size, before, after in zip(sizes, room[:-1], room[1:], strict=True):
      np.subtract(before, size, out=after)  # what does not fit wraps around to more than before
      np.minimum(before, after, out=after)
    chosen[word[room[1:] < room[:-1]]] = True
    left[live] = room[-1]
  return chosen, budget - left.view(np.int32)


def _choose_ngrams(words: _Words, budget, slots, draws, longest: int):
  """As `_choose_words`, by runs of n words, n drawn for the word that a run begins with.

  A run that is too long for what is left of the budget loses words from its end until it fits; one
  that then meets a chosen word is passed over. It may reach over a [SEP], and ends with the row.
  """
  rows, columns = words.starts.shape
  chosen = np.zeros(words.first.size, bool)
  row_end = _number(words, np.arange(columns, rows * columns + 1, columns))
  left = budget.copy()
  for live, order, word in _in_random_order(words, left, draws, slots * 2 // 3 + 7):
    end = np.minimum(word + ngram_lengths(draws, order, longest)[live].T, row_end[live])
    last = np.maximum(end - 1, word)
    first = words.first.take(word)
    # By n: the n-th word of a run, or its last if it is shorter, and the tokens up to there.
    members = np.empty((len(word), longest, word.shape[1]), np.int64)
    sizes = np.empty(members.shape, np.int32)
    for n in range(longest):
      members[:, n] = member = np.minimum(word + np.int32(n), last)
      np.subtract(words.end.take(member), first, out=sizes[:, n])
    room = left[live]
    for size, member in zip(sizes, members, strict=True):
      fits = size <= room
      met = chosen[member]
      fits &= ~np.bitwise_or.reduce(met & fits, axis=0)
      chosen[member] = met | fits
      room -= np.maximum.reduce(size * fits, axis=0)
    left[live] = room
  return chosen, budget - left


def ngram_lengths(draws: Draws, columns: np.ndarray, longest: int) -> np.ndarray:
  """n int [B, R] for the words that begin at `columns` int [B, R]: p(n) is proportional to 1 / n
  for n up to `longest` (Lan et al. 2020, equation 1)."""
  shares = 1 / np.arange(1, longest + 1)
  bits = draws.bits_at(_LENGTH, columns.astype(np.uint32))
  n = np.ones(bits.shape, np.int8)
  for bound in np.cumsum(shares / shares.sum())[:-1]:
    n += bits >= np.uint32(math.ceil(bound * 2**32))
  return n
