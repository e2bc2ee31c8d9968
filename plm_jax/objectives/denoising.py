"""BART's denoising (Lewis et al. 2020, section 2.2): restore a whole text from a corrupted one.

Source: fairseq (3d262bb) data/denoising_dataset.py; for mBART tasks/multilingual_denoising.py. The
order is fairseq's: permute sentences; mask, delete or insert spans; rotate. The target is the text.

Rows are "<s> text </s>" (`DocSentences` is fairseq's `complete_doc`). A corrupted row is at most as
long as its text; further insertions are left out.
Deviation: random tokens are never special; fairseq draws them from all tokens but <s>.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.masking import random_order
from plm_jax.objectives.seq2seq import Seq2Seq, compact, sides

# Streams of draws.
_SENTENCES, _STARTS, _SPANS, _FATES, _TOKENS, _PLACES, _INSERTED, _ROTATION = range(48, 56)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Seq2Seq):
  """Mean of `-log p(x_t | x_<t, corrupted text)` over all tokens of the text.

  mask: at most ceil(mask W) of a row's W words are hidden; fewer where spans overlap or reach over
    the row's end. unit: `token` and `word` hide single ones, `span` stretches of words whose
    lengths are drawn from a Poisson distribution with mean `mean_span_length`.
  replace: `each` puts one [MASK] for every hidden token, `one` a single [MASK] for a span (text
    infilling), `delete` none. A share `random` of the [MASK]s is a random token instead. A span of
    length 0 is an inserted [MASK]; of n of these, ceil(random n) are random tokens.
  permute: share of a row's sentences that change places. rotate: share of rows that begin at
    another token, uniform over all tokens.
  language: a language code of the tokenizer. Source and target then end with it and the decoder
    begins with it, as in mBART, and <s> is left out.
  """

  mask: float = 0.3
  unit: Literal["token", "word", "span"] = "span"
  mean_span_length: float = 3.0
  replace: Literal["each", "one", "delete"] = "one"
  random: float = 0.0
  permute: float = 0.0
  rotate: float = 0.0
  language: str | None = None

  def __post_init__(self):
    super().__post_init__()
    shares = (self.mask, self.random, self.permute, self.rotate)
    if min(shares) < 0 or max(shares) > 1:
      raise UserError(
        "seq2seq.mask, .random, .permute and .rotate are shares and must be between 0 and 1, not "
        f"{', '.join(map(str, shares))}"
      )
    if not 0.1 <= self.mean_span_length < math.inf:
      raise UserError(f"seq2seq.mean_span_length={self.mean_span_length} must be at least 0.1")
    if self.random and not (self.mask and self.replace != "delete"):
      raise UserError(f"seq2seq.random={self.random} is a share of [MASK]s, and there are none")
    if self.unit != "span" and self.replace == "one":
      raise UserError("seq2seq.replace=one stands for a span: set seq2seq.unit=span")

  def corrupt(self, batch, draws, vocab) -> dict:
    """Source and target as `seq2seq.sides` lays them out."""
    if vocab.pad is None:
      raise UserError("denoising needs a tokenizer with a token for padding; this has none")
    ids, length = batch["input_ids"], batch["length"]
    source, size = ids, length
    if self.permute:
      source = permuted(source, length, self.permute, draws, vocab)
    if self.mask:
      source, size = self._masked(source, length, draws, vocab)
    if self.rotate:
      source = rotated(source, size, self.rotate, draws)
    target = ids
    if self.language is not None:
      code = vocab.languages.get(self.language)
      if code is None:
        raise UserError(
          f"the tokenizer has no language code {self.language!r}: set data.tokenizer.languages"
        )
      source, target = (_in_language(*x, code) for x in ((source, size), (ids, length)))
    last = target[np.arange(len(ids)), length - 1]
    return sides(batch, source, size, target, length, last)

  def _masked(self, ids, length, draws, vocab) -> tuple[np.ndarray, np.ndarray]:
    """(rows int32 [B, T], their lengths [B]) with spans of words replaced and masks inserted."""
    if vocab.mask is None and self.replace != "delete":
      raise UserError("denoising by [MASK] needs a tokenizer with a mask token; this has none")
    starts = word_starts(ids, length, vocab, self.unit)
    order, sizes, inserted = self._spans(starts, draws)
    column = np.arange(ids.shape[1])
    real = column < length[:, None]
    covered, begins = _cover(starts, order, sizes)
    covered &= column < length[:, None] - 1
    if self.replace == "delete":
      shown, kept = ids, real & ~covered
    else:
      hidden = begins if self.replace == "one" else covered
      shown = np.where(hidden, self._masks(begins, draws, vocab), ids)
      kept = real & (~covered | hidden)
    rows, size = compact(shown, kept, ids.shape[1], vocab.pad)
    if self.unit == "span" and self.replace != "delete":
      rows, size = self._with_inserted(rows, size, inserted, draws, vocab)
    return rows, size

  def _spans(self, starts, draws) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First columns int32 [B, K] of spans, sizes in words (0: none); number [B] of empty ones."""
    words = starts.sum(axis=1)
    number = np.ceil(words.astype(np.float32) * np.float32(self.mask)).astype(np.int32)
    most = int(number.max(initial=1))
    if self.unit != "span":
      order, _ = random_order(starts, draws, most, _STARTS)
      sizes = (np.arange(order.shape[1]) < number[:, None]).astype(np.int32)
      return order, sizes, np.zeros_like(number)
    columns = math.ceil(most / self.mean_span_length + 6 * math.sqrt(most) + 16)
    drawn = poisson(draws.uniform(_SPANS, columns), self.mean_span_length)
    before = np.cumsum(drawn, axis=1) - drawn
    drawn = np.where(before < number[:, None], np.minimum(drawn, number[:, None] - before), 0)
    used = (before < number[:, None]).sum(axis=1)
    inserted = used - (drawn > 0).sum(axis=1)
    # Those of some words, at the front.
    most = int((drawn > 0).sum(axis=1).max(initial=1))
    sizes, _ = compact(drawn, drawn > 0, most, 0)
    order, _ = random_order(starts, draws, most, _STARTS)
    return order, sizes[:, : order.shape[1]], inserted

  def _masks(self, begins, draws, vocab) -> np.ndarray:
    """[MASK] everywhere, or a random token where the span that begins at or before it drew one."""
    if not self.random:
      return np.broadcast_to(np.int32(vocab.mask), begins.shape)
    columns = begins.shape[1]
    origin = np.maximum.accumulate(np.where(begins, np.arange(columns, dtype=np.uint32), 0), axis=1)
    is_random = draws.bits_at(_FATES, origin) * 2.0**-32 < self.random
    return np.where(is_random, random_tokens(draws, _TOKENS, columns, vocab), vocab.mask)

  def _with_inserted(self, rows, size, number, draws, vocab) -> tuple[np.ndarray, np.ndarray]:
    """`number` [B] more [MASK]s at places between the first and the last token."""
    columns = rows.shape[1]
    number = np.minimum(number, columns - size)
    most = int(number.max(initial=0))
    if not most:
      return rows, size
    column = np.arange(columns)
    allowed = (column > 0) & (column < (size + number - 1)[:, None])
    place, _ = random_order(allowed, draws, most, _PLACES)
    rank = np.arange(place.shape[1])
    tokens = np.full(place.shape, vocab.mask, np.int32)
    if self.random:
      drawn = random_tokens(draws, _INSERTED, place.shape[1], vocab)
      tokens = np.where(rank < np.ceil(number * self.random)[:, None], drawn, tokens)
    row, rank = np.nonzero(rank < number[:, None])
    is_new = np.zeros(rows.shape, bool)
    is_new[row, place[row, rank]] = True
    result = np.full_like(rows, vocab.pad)
    total = size + number
    result[~is_new & (column < total[:, None])] = rows[column < size[:, None]]
    result[row, place[row, rank]] = tokens[row, rank]
    return result, total


def word_starts(ids, length, vocab, unit: str) -> np.ndarray:
  """bool [B, T]: where words begin, or with unit="token" all tokens, between first and last."""
  column = np.arange(ids.shape[1])
  inside = (column > 0) & (column < length[:, None] - 1)
  if unit == "token":
    return inside
  if vocab.word_start is None:
    raise UserError(
      f"seq2seq.unit={unit} needs a tokenizer that marks where words start; take seq2seq.unit=token"
    )
  return inside & vocab.word_start.take(ids)


def _cover(starts, order, sizes) -> tuple[np.ndarray, np.ndarray]:
  """bool [B, T] each: tokens of spans, and those that a span begins with and no other covers.

  starts: where words begin. order, sizes: columns int [B, K] of first words, and numbers of words.
  """
  word = np.cumsum(starts, axis=1, dtype=np.int32)  # of a token; 0 before the first
  end = np.zeros(starts.shape, np.int32)  # at a span's first word: the word after the span
  row, rank = np.nonzero(sizes)
  at = order[row, rank]
  end[row, at] = word[row, at] + sizes[row, rank]
  reach = np.maximum.accumulate(end, axis=1)
  covered = reach > word
  before = np.zeros_like(reach)
  before[:, 1:] = reach[:, :-1]
  begins = (end > 0) & (before <= word)
  return covered, begins


def poisson(uniform: np.ndarray, mean: float) -> np.ndarray:
  """int32 like `uniform`: Poisson numbers by the inverse of their distribution, cut where the
  probability falls below 1e-7, as fairseq's table is."""
  shares = [math.exp(-mean)]
  while len(shares) <= mean or shares[-1] >= 1e-7:
    shares.append(shares[-1] * mean / len(shares))
  bounds = np.cumsum(shares) / np.sum(shares)
  return np.searchsorted(bounds[:-1], uniform, side="right").astype(np.int32)


def random_tokens(draws, stream: int, columns: int, vocab) -> np.ndarray:
  """int32 [B, columns], uniform over the tokens that are not special."""
  ordinary = np.flatnonzero(~vocab.special).astype(np.int32)
  return ordinary[(draws.uniform(stream, columns) * len(ordinary)).astype(np.int32)]


def permuted(ids, length, share: float, draws, vocab) -> np.ndarray:
  """Rows in which ceil(share S) of the S sentences, drawn at random, have changed places at random.

  A sentence ends with the row, or a full stop that does not follow another; not with "?" or "!".
  """
  rows, columns = ids.shape
  row, column = np.arange(rows), np.arange(columns)
  stop = vocab.full_stop.take(ids)
  stop[row, length - 2] = True
  ends = stop & (column > 0) & (column < length[:, None] - 1)
  ends[:, 1:] &= ~stop[:, :-1]
  sentence = np.cumsum(ends, axis=1, dtype=np.int32) - ends
  count = ends.sum(axis=1)
  most = int(count.max(initial=1))
  # Tokens after the last end (a row may end with two full stops) and outside stay.
  moves = (column > 0) & (sentence < count[:, None]) & (column < length[:, None] - 1)
  slot = _new_order(count, most, share, draws)
  size = np.zeros((rows, most), np.int32)
  flat = (sentence + row[:, None] * most)[moves]
  size.ravel()[:] = np.bincount(flat, minlength=rows * most)
  in_slot = np.zeros_like(size)
  np.put_along_axis(in_slot, slot, size, axis=1)
  begin_slot = np.cumsum(in_slot, axis=1) - in_slot
  shift = np.take_along_axis(begin_slot, slot, axis=1) - (np.cumsum(size, axis=1) - size)
  to = column + np.take_along_axis(shift, np.minimum(sentence, most - 1), axis=1)
  result = ids.copy()
  result[np.nonzero(moves)[0], to[moves]] = ids[moves]
  return result


def _new_order(count, most: int, share: float, draws) -> np.ndarray:
  """int32 [B, most]: the place of each sentence among the `count` [B] of its row."""
  column = np.arange(most, dtype=np.int32)
  drawn, _ = random_order(column < count[:, None], draws, most, _SENTENCES)
  number = np.ceil(count * np.float32(share)).astype(np.int32)
  # The n chosen ones, in random order, go to the places of the same n in their own order.
  chosen = np.where(column < number[:, None], drawn, most)
  places = np.sort(chosen, axis=1)
  slot = np.tile(column, (len(count), 1))
  row, rank = np.nonzero(chosen < most)
  slot[row, chosen[row, rank]] = places[row, rank]
  return slot


def rotated(ids, length, share: float, draws) -> np.ndarray:
  """Rows of which a share begins at another token, uniform on all but the first and the last."""
  u = draws.uniform(_ROTATION, 2)
  inside = np.maximum(length - 2, 1)
  offset = np.where(u[:, 0] < share, (u[:, 1] * (inside + 1)).astype(np.int32), 0)
  column = np.arange(ids.shape[1])
  moved = 1 + (column - 1 + offset[:, None]) % inside[:, None]
  turns = (column > 0) & (column < length[:, None] - 1)
  return np.take_along_axis(ids, np.where(turns, moved, column), axis=1)


def _in_language(ids, length, code: int) -> np.ndarray:
  """Rows "<s> text </s>" as "text </s> code"."""
  result = ids.copy()
  result[:, :-1] = ids[:, 1:]
  result[np.arange(len(ids)), length - 1] = code
  return np.where(np.arange(ids.shape[1]) < length[:, None], result, ids)


def mbart(language: str) -> Denoising:
  """mBART's noise (Liu et al. 2020, section 2.2): 35% in spans of 3.5, all sentences permuted."""
  return Denoising(mask=0.35, mean_span_length=3.5, permute=1.0, language=language)
