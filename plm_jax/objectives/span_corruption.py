"""T5's unsupervised objectives (Raffel et al. 2020, section 3.3): span corruption and its rivals.

Source: google-research/text-to-text-transfer-transformer (e081111) t5/data/preprocessors.py:
`random_spans_helper`, `random_spans_noise_mask`, `iid_noise_mask`, `random_prefix_noise_mask`,
`noise_span_to_unique_sentinel`, `drop_noise_tokens`, `noise_token_to_random_token_or_sentinel`.

    text       Thank you for inviting me to your party last week .
    corrupted  Thank you <extra_id_0> me to your party <extra_id_1> week . </s>
    target     <extra_id_0> for inviting <extra_id_1> last </s>

Rows are running text without special tokens (`data/running_text.py`). `SpanCorruption` makes inputs
and targets of static lengths from data.length tokens of text. `tokens_for(512)` is (568, 114): 568
tokens of text fill inputs of 512 and give targets of 114.

Deviations: when the original runs out of sentinels it counts down into ordinary tokens. Here spans
without a sentinel stay in the text, and settings that usually need more sentinels are refused.
Random tokens are never special.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.masking import random_order
from plm_jax.objectives.seq2seq import Seq2Seq, compact, sides

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab

_NOISE, _TEXT, _IID, _RANDOM, _PREFIX, _SHUFFLE = 40, 41, 42, 43, 44, 45  # streams of draws
_SURE = 6  # standard deviations of room; rows that need more are cut


def tokens_for(inputs: int, rate: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
  """(tokens of text, length of the targets) for a length of inputs; as `random_spans_helper`."""
  tokens = inputs
  while sum(_lengths(tokens + 1, rate, mean_span_length)[0]) <= inputs:
    tokens += 1
  targets = sum(_lengths(tokens, rate, mean_span_length)[1])
  if rate == 0.5 and targets > inputs:  # both sides of one length, "a nice round number"
    return tokens - 1, targets - 1
  return tokens, targets


def _lengths(tokens: int, rate: float, mean_span_length: float):
  """((tokens that stay, sentinels, eos), (noise, sentinels, eos)) for a number of text tokens."""
  noise, spans = (int(x) for x in noise_budget(np.array(tokens), rate, mean_span_length))
  return (tokens - noise, spans, 1), (noise, spans, 1)


def noise_budget(length: np.ndarray, rate: float, mean_span_length: float):
  """Numbers of noise tokens and of spans, int [...]: n = clip(round(rate L), 1, L - 1), and
  max(1, round(n / mean_span_length)), at most one for every token that stays."""
  noise = np.clip(np.rint(length * rate), 1, length - 1).astype(np.int32)
  spans = np.maximum(np.rint(noise / mean_span_length), 1).astype(np.int32)
  return noise, np.minimum(spans, length - noise)


def random_spans(length: np.ndarray, columns: int, rate: float, mean_span_length: float, draws):
  """bool [B, columns]: which tokens are noise. `noise_budget` gives the number of spans.

  Noise and text are each divided into that number of non-empty parts, all divisions being equally
  likely. The parts alternate, text first, noise last.
  """
  noise, spans = noise_budget(length, rate, mean_span_length)
  most = int(spans.max(initial=1))
  of_noise = parts(noise, spans, most, draws, _NOISE)
  of_text = parts(length - noise, spans, most, draws, _TEXT)
  begin, end = of_text[:, 1:] + of_noise[:, :-1], of_text[:, 1:] + of_noise[:, 1:]
  row = np.arange(len(length))[:, None]
  # Parts that a row does not have are empty, at its end, and mark one column beyond all others.
  turn = np.zeros((len(length), columns + 1), np.int8)
  turn[row, np.where(end > begin, begin, columns)] = 1
  turn[row, np.where(end > begin, end, columns)] -= 1
  return np.cumsum(turn[:, :columns], axis=1, dtype=np.int8) > 0


def parts(items: np.ndarray, count: np.ndarray, most: int, draws, stream: int) -> np.ndarray:
  """int32 [B, most + 1]: where the parts of a random division of `items` [B] things into `count`
  [B] non-empty ones begin and end: 0, ..., items. Parts beyond a row's count are empty."""
  gaps = max(int(items.max(initial=1)) - 1, 1)
  allowed = np.arange(gaps) < items[:, None] - 1
  at, valid = random_order(allowed, draws, max(most - 1, 0), stream)
  valid = valid & (np.arange(at.shape[1]) < count[:, None] - 1)
  cuts = np.where(valid, at + 1, items[:, None])
  cuts.sort(axis=1)
  bounds = np.empty((len(items), most + 1), np.int32)
  bounds[:, 0], bounds[:, 1:] = 0, items[:, None]
  bounds[:, 1 : 1 + cuts.shape[1]] = cuts
  return bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Seq2Seq):
  """Predict noise from the text around it; by default as T5's released models (section 3.3.4).

  rate: share of noise tokens. mean_span_length: None draws every token independently (the i.i.d.
    objective, the baseline of the paper's ablations).
  inputs: how noise is replaced. `sentinels`: by one new sentinel per span; `mask`: by <extra_id_0>
    for every token, a share `random` of them by a random token (BERT-style: 0.1; MASS-style: 0);
    `drop`: noise is left out.
  targets: `sentinels` is the noise, with a sentinel for every stretch of text; `text` is the whole
    text; `noise` is the noise alone.
  """

  rate: float = 0.15
  mean_span_length: float | None = 3.0
  inputs: Literal["sentinels", "mask", "drop"] = "sentinels"
  random: float = 0.0
  targets: Literal["sentinels", "text", "noise"] = "sentinels"

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.rate < 1:
      raise UserError(f"seq2seq.rate={self.rate} must be above 0 and below 1")
    if self.mean_span_length is not None and not 1 <= self.mean_span_length < math.inf:
      raise UserError(
        f"seq2seq.mean_span_length={self.mean_span_length} must be at least 1, or none for tokens "
        "that are drawn one by one"
      )
    if not 0 <= self.random <= 1 or (self.random and self.inputs != "mask"):
      raise UserError(
        f"seq2seq.random={self.random} is a share of the tokens that seq2seq.inputs=mask replaces"
      )

  def corrupt(self, batch, draws, vocab) -> dict:
    """Source and target as `seq2seq.sides` lays them out. The decoder begins with padding."""
    ids, length, columns = batch["input_ids"], batch["length"], batch["input_ids"].shape[1]
    sentinels = self._sentinels(vocab, columns)
    real = np.arange(columns) < length[:, None]
    if self.mean_span_length is None:  # every token is noise with this probability
      noise = real & (draws.uniform(_IID, columns) < self.rate)
    else:
      noise = random_spans(length, columns, self.rate, self.mean_span_length, draws)
    text = real & ~noise
    if "sentinels" in (self.inputs, self.targets):
      noise, text = _limited(noise, text, len(sentinels))
    shown, kept = self._shown(ids, noise, text, sentinels, draws, vocab)
    wide, narrow = self.lengths(columns)
    end = checked_end(vocab)
    source = compact(shown, kept, wide, vocab.pad, end)
    if self.targets == "sentinels":
      target = compact(*marked(ids, text, noise, sentinels), narrow, vocab.pad, end)
    else:
      chosen = noise if self.targets == "noise" else noise | text
      target = compact(ids, chosen, narrow, vocab.pad, end)
    return sides(batch, *source, *target, vocab.pad)

  def lengths(self, tokens: int) -> tuple[int, int]:
    """The static lengths of inputs and targets for rows of `tokens` tokens."""
    stays, spans, noise = tokens * (1 - self.rate), 0.0, tokens * self.rate
    if self.mean_span_length is not None:
      (stays, spans, _), (noise, _, _) = _lengths(tokens, self.rate, self.mean_span_length)
    elif self.targets != "text":
      spans, spread = expected_runs(tokens, self.rate)
      noise += _SURE * math.sqrt(tokens * self.rate * (1 - self.rate))
      spans += _SURE * spread + 1  # text may stand at both ends
    wide = tokens + 1
    if self.mean_span_length is not None and self.inputs != "mask":
      wide = stays + spans * (self.inputs == "sentinels") + 1
    narrow = {"text": tokens, "noise": noise, "sentinels": noise + spans}[self.targets] + 1
    return int(wide), min(math.ceil(narrow), tokens + 1)

  def rounded(self, tokens: int) -> "SpanCorruption":
    """With the rate and the mean that rows of `tokens` tokens have: in short ones, spans of 2 and
    of 3 are the same."""
    if self.mean_span_length is None:
      return self
    noise, spans = noise_budget(np.array(tokens), self.rate, self.mean_span_length)
    rate, mean = float(noise) / tokens, float(noise) / float(spans)
    return dataclasses.replace(self, rate=rate, mean_span_length=mean)

  def _shown(self, ids, noise, text, sentinels, draws, vocab):
    """(values, which of them are kept) of the inputs, [B, T]."""
    if self.inputs == "sentinels":
      return marked(ids, noise, text, sentinels)
    if self.inputs == "drop":
      return ids, text
    hidden = np.where(noise, sentinels[0], ids)
    if self.random:
      u = draws.uniform(_RANDOM, ids.shape[1])
      ordinary = np.flatnonzero(~vocab.special).astype(np.int32)
      token = ordinary[np.minimum(u * (len(ordinary) / self.random), len(ordinary) - 1).astype(int)]
      hidden = np.where(noise & (u < self.random), token, hidden)
    return hidden, noise | text

  def _sentinels(self, vocab, columns: int) -> np.ndarray:
    if self.inputs == "drop" and self.targets != "sentinels":
      return np.empty(0, np.int32)
    sentinels = np.empty(0, np.int32) if vocab.sentinels is None else vocab.sentinels
    need = 1
    if "sentinels" in (self.inputs, self.targets):
      runs, spread = expected_runs(columns, self.rate)
      need = math.ceil(runs + 3 * spread)
      if self.mean_span_length is not None:
        need = _lengths(columns, self.rate, self.mean_span_length)[0][1]
    if len(sentinels) < need:
      raise UserError(
        f"rows of {columns} tokens need {need} sentinels, and the tokenizer has {len(sentinels)}: "
        f"set data.tokenizer.sentinels to {max(need, 100)}, or shorten data.length"
      )
    return sentinels


def expected_runs(tokens: int, rate: float) -> tuple[float, float]:
  """Mean and standard deviation of the number of runs of noise tokens drawn one by one."""
  share = rate * (1 - rate)
  return tokens * share + rate * rate, math.sqrt(tokens * share * max(1 - 3 * share, 0.25))


def _limited(noise, text, most: int) -> tuple[np.ndarray, np.ndarray]:
  """Noise and text with at most `most` runs each: in rows with more, later noise stays text."""
  run = np.cumsum(_begins(noise), axis=1, dtype=np.int32)
  crowded = (run[:, -1] > most) | (_begins(text).sum(axis=1) > most)
  if not crowded.any():
    return noise, text
  surplus = noise & (run >= most) & crowded[:, None]
  return noise & ~surplus, text | surplus


def _begins(mask: np.ndarray) -> np.ndarray:
  """Where a run of True begins."""
  begins = mask.copy()
  begins[:, 1:] &= ~mask[:, :-1]
  return begins


def marked(ids, hidden, shown, sentinels) -> tuple[np.ndarray, np.ndarray]:
  """Every run of `hidden` as one sentinel, the next one each time: (values, which are kept)."""
  begins = _begins(hidden)
  number = np.cumsum(begins, axis=1, dtype=np.int32) - 1
  return np.where(begins, sentinels.take(number, mode="clip"), ids), shown | begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Seq2Seq):
  """Predict the rest of a text from its beginning, whose length is uniform on [1, L - 1], or with
  prefix="none" is 0: the source is then nothing but the end of a text, and the target all of it.
  """

  prefix: Literal["uniform", "none"] = "uniform"

  def corrupt(self, batch, draws, vocab) -> dict:
    ids, length, columns = batch["input_ids"], batch["length"], batch["input_ids"].shape[1]
    prefix = 1 + (draws.uniform(_PREFIX, 1)[:, 0] * (length - 1)).astype(np.int32)
    prefix = prefix * (self.prefix == "uniform")
    column, end = np.arange(columns), checked_end(vocab)
    first = column < prefix[:, None]
    rest = (column < length[:, None]) & ~first
    source = compact(ids, first, columns, vocab.pad, end)
    target = compact(ids, rest, columns + (self.prefix == "none"), vocab.pad, end)
    return sides(batch, *source, *target, vocab.pad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deshuffling(Seq2Seq):
  """Predict a text from its tokens in random order."""

  def corrupt(self, batch, draws, vocab) -> dict:
    ids, length, columns = batch["input_ids"], batch["length"], batch["input_ids"].shape[1]
    real, end = np.arange(columns) < length[:, None], checked_end(vocab)
    order, _ = random_order(real, draws, columns, _SHUFFLE)
    shuffled = np.take_along_axis(ids, order, axis=1)
    source = compact(shuffled, real, columns + 1, vocab.pad, end)
    target = compact(ids, real, columns + 1, vocab.pad, end)
    return sides(batch, *source, *target, vocab.pad)


def checked_end(vocab: "Vocab") -> int:
  """The token at the end of inputs and targets. Errors: `UserError` if it or padding is missing."""
  if not vocab.end or vocab.pad is None:
    raise UserError("the tokenizer needs a token for the end of a text and one for padding")
  return vocab.end[0]
