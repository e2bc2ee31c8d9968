"""Skip-gram and CBOW with negative sampling or hierarchical softmax (Mikolov et al. 2013a, 2013b;
tmikolov/word2vec 20c129a, word2vec.c).

    skip-gram   every word of a window predicts the word in its middle
    CBOW        their mean predicts it
    negative    -log s(in . out) - sum over K words of -log s(-in . out'), drawn by count^0.75
    hierarchic  -sum over the nodes on the way to the word of log s(+-in . node)

A window has 1 to `window` words on each side, drawn uniformly. A negative that is the word itself
is left out. In the published code every pair draws K negatives. Here `block` consecutive words
share `shared` of them, each with the weight K / shared: the expected gradient is the same, and the
scores of a block are one matrix product. Deviations: the sigmoid is exact, where the code has a
table within +-6; an update reads the tables as they were before its rows.
"""

import dataclasses
import math
import weakref
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.huffman import huffman
from plm_jax.objectives.objective import Terms

_REACH, _NEGATIVES = 81, 82  # streams of draws
_LARGEST = 6.0  # beyond this score the published code leaves a node of the tree unchanged
_of_vocab: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # vocabulary -> key -> table


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkipGram:
  """Mean over all pairs (word of the window, word in its middle).

  window: the most words on each side. negatives: K; 0 is hierarchical softmax. power: of the
  counts by which negatives are drawn (fastText: 0.5). block, shared: see above.
  """

  window: int = 5
  negatives: int = 5
  power: float = 0.75
  block: int = 32
  shared: int = 32
  weight: float = 1.0
  name = "skipgram"
  heads: ClassVar[dict[str, int]] = {}

  def __post_init__(self):
    if not 1 <= self.window <= self.block:
      raise UserError(
        f"objectives.{self.name}.window={self.window} must be at least 1 and at most "
        f"block={self.block}"
      )
    if self.negatives < 0 or self.shared < 1 or self.power < 0:
      raise UserError(
        f"objectives.{self.name}.negatives and .power must be at least 0, and .shared at least 1"
      )

  def check(self, vocab) -> None:
    """A `UserError` for a vocabulary with too few words."""
    words = int((_counts(vocab) > 0).sum())
    if words <= self.negatives:
      raise UserError(
        f"the vocabulary has {words} words, and objectives.{self.name}.negatives={self.negatives}; "
        "give more text, lower data.tokenizer.min_count, or lower the negatives"
      )

  def corrupt(self, batch, draws, vocab) -> dict:
    """Adds `reach` int32 `[B, T]`, the words on each side of the window of each word, and the rows
    of the output table of each of N blocks: `outputs` int32 `[B, N, block + shared]`, its words and
    the negatives; or with `codes` int8 the nodes of its words `[B, N, block * L]`. With n-grams in
    the vocabulary, `ngrams` and `ngram_word` (models/word_vectors.py)."""
    ids_BT = batch["input_ids"]
    rows, length = ids_BT.shape
    if length % self.block:
      raise UserError(
        f"data.length={length} must be a multiple of objectives.{self.name}.block={self.block}"
      )
    reach = 1 + (draws.uniform(_REACH, length) * self.window).astype(np.int32)
    batch = batch | {"reach": reach} | row_ngrams(ids_BT, batch["length"], vocab)
    words_BNI = ids_BT.reshape(rows, -1, self.block)
    blocks = words_BNI.shape[:2]
    if not self.negatives:
      tree = _cached(vocab, "huffman", lambda: huffman(_counts(vocab)))
      outputs, codes = (x[words_BNI].reshape(*blocks, -1) for x in tree)
      return batch | {"outputs": outputs, "codes": codes}
    cumulative = _cached(vocab, self.power, lambda: np.cumsum(_counts(vocab) ** float(self.power)))
    uniform = draws.uniform(_NEGATIVES, blocks[1] * self.shared)
    drawn = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    drawn = np.minimum(drawn, len(cumulative) - 1).astype(np.int32)
    return batch | {"outputs": np.concatenate([words_BNI, drawn.reshape(*blocks, -1)], axis=2)}

  def count(self, batch) -> jax.Array:
    """The number of pairs."""
    return self._windows(batch).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    del noise
    band = self._windows(batch)  # [B, N, P, I]: does word p of the block's surroundings predict i?
    return self._terms(with_halo(hidden, self.window, self.block), band, model, batch)

  def _windows(self, batch) -> jax.Array:
    """float32 `[B, N, P, I]`: whether word P of a block with its surroundings is in the window of
    its word I. P = I + 2 window."""
    document = batch.get("document_ids", jnp.zeros_like(batch["input_ids"]))
    real = jnp.arange(document.shape[1]) < batch["length"][:, None]
    document = jnp.where(real & (batch["row_weight"][:, None] > 0), document, -1)
    reach_BNI = batch["reach"].reshape(len(document), -1, self.block)
    of_word = document.reshape(reach_BNI.shape)[:, :, None]
    of_other = with_halo(document[..., None], self.window, self.block, fill=-2)
    distance = jnp.abs(
      jnp.arange(self.block + 2 * self.window)[:, None] - self.window - jnp.arange(self.block)
    )
    inside = (distance > 0) & (distance <= reach_BNI[:, :, None])
    return (inside & (of_word == of_other) & (of_word >= 0)).astype(jnp.float32)

  def _terms(self, x_BNPD, band, model, batch) -> Terms:
    """The loss of all pairs: the product of every surrounding word with every output."""
    outputs, count = model.output(batch["outputs"]).astype(x_BNPD.dtype), band.sum()
    scores = jnp.einsum("bnpd,bnod->bnpo", x_BNPD, outputs, preferred_element_type=jnp.float32)
    if "codes" in batch:
      per_word = scores.reshape(*band.shape, -1)
      return {
        "loss": (
          (tree_losses(per_word, self._codes(batch)[:, :, None]) * band[..., None]).sum(),
          count,
        )
      }
    positive, negative = scores[..., : self.block], scores[..., self.block :]
    weight = jnp.einsum("bnpi,bnik->bnpk", band, self._unequal(batch))
    loss = (band * jax.nn.softplus(-positive)).sum()
    return {"loss": (loss + (weight * jax.nn.softplus(negative)).sum(), count)}

  def _codes(self, batch) -> jax.Array:
    """`[B, N, I, L]`."""
    return batch["codes"].reshape(*batch["codes"].shape[:2], self.block, -1)

  def _unequal(self, batch) -> jax.Array:
    """float32 `[B, N, I, K]`: the weight of a negative for the word I, 0 if it is this word."""
    words, negatives = batch["outputs"][..., : self.block], batch["outputs"][..., self.block :]
    return (words[..., None] != negatives[:, :, None]) * (self.negatives / self.shared)

  def baseline(self, counts, batches, scores) -> Baseline:
    """Vectors of zeros, to which all scores are 0."""
    del counts, scores
    if not self.negatives:
      depth = [(b["codes"] >= 0).sum() / b["input_ids"].size for b in batches]
      return Baseline("zeros", {"loss": float(np.mean(depth)) * math.log(2)})
    return Baseline("zeros", {"loss": (1 + self.negatives) * math.log(2)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CBOW(SkipGram):
  """Mean over all words with a window: the mean of the window's vectors predicts the word."""

  name = "cbow"

  def count(self, batch) -> jax.Array:
    return self._windows(batch).any(2).sum().astype(jnp.float32)

  def _terms(self, x_BNPD, band, model, batch) -> Terms:
    outputs = model.output(batch["outputs"]).astype(x_BNPD.dtype)
    size_BNI = band.sum(2)
    has_BNI = jnp.minimum(size_BNI, 1)
    sum_BNID = jnp.einsum("bnpi,bnpd->bnid", band.astype(x_BNPD.dtype), x_BNPD)
    mean_BNID = model.mean_of_sum(sum_BNID, size_BNI[..., None])
    count = has_BNI.sum()
    if "codes" in batch:
      nodes = outputs.reshape(*size_BNI.shape, -1, outputs.shape[-1])
      per_word = jnp.einsum("bnid,bnild->bnil", mean_BNID, nodes).astype(jnp.float32)
      return {
        "loss": ((tree_losses(per_word, self._codes(batch)) * has_BNI[..., None]).sum(), count)
      }
    words, negatives = outputs[:, :, : self.block], outputs[:, :, self.block :]
    positive = (mean_BNID * words).sum(-1).astype(jnp.float32)
    negative = jnp.einsum(
      "bnid,bnkd->bnik", mean_BNID, negatives, preferred_element_type=jnp.float32
    )
    loss = (has_BNI * jax.nn.softplus(-positive)).sum()
    weight = has_BNI[..., None] * self._unequal(batch)
    return {"loss": (loss + (weight * jax.nn.softplus(negative)).sum(), count)}


def tree_losses(scores: jax.Array, codes: jax.Array) -> jax.Array:
  """-log of the probability of each branch: s(score) for code 0, s(-score) for 1, none for -1. No
  gradient beyond +-6."""
  inside = jnp.abs(scores) < _LARGEST
  scores = jnp.where(inside, scores, jax.lax.stop_gradient(scores))
  return jnp.where(codes >= 0, jax.nn.softplus(jnp.where(codes == 1, scores, -scores)), 0.0)


def with_halo(x_BTD: jax.Array, window: int, block: int, fill: float = 0) -> jax.Array:
  """`[B, N, window + block + window, D]`: every block with the words before and after it."""
  rows, length, *rest = x_BTD.shape
  x = x_BTD.reshape(rows, length // block, block, *rest)
  edge = jnp.full((rows, 1, window, *rest), fill, x.dtype)
  before = jnp.concatenate([edge, x[:, :-1, block - window :]], axis=1)
  after = jnp.concatenate([x[:, 1:, :window], edge], axis=1)
  return jnp.concatenate([before, x, after], axis=2)


def _counts(vocab) -> np.ndarray:
  """int [V]: the counts of the words, 0 for special tokens."""
  return np.where(vocab.special, 0, vocab.counts)


def _cached(vocab, key, make):
  tables = _of_vocab.setdefault(vocab, {})
  if key not in tables:
    tables[key] = make()
  return tables[key]


ROOM = 24  # n-grams of a word for which a row has room, on average; "<the>" has 6, 20 are usual


def row_ngrams(ids_BT: np.ndarray, length_B: np.ndarray, vocab) -> dict[str, np.ndarray]:
  """The n-grams of the words of each row, `[B, ROOM * T]`, and the position of the word of each, T
  where there is none; empty for a vocabulary without. What has no room is left out."""
  if vocab.ngrams is None:
    return {}
  flat, bounds = vocab.ngrams
  rows, words = ids_BT.shape
  real = np.arange(words) < length_B[:, None]
  sizes = np.where(real, np.diff(bounds)[ids_BT], 0).ravel()
  owner = np.repeat(np.arange(rows * words), sizes)
  within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  row = owner // words
  firsts = np.searchsorted(row, np.arange(rows))
  column = np.arange(len(owner)) - firsts[row]
  fits = column < ROOM * words
  row, column, owner, within = (x[fits] for x in (row, column, owner, within))
  ngrams = np.zeros((rows, ROOM * words), np.int32)
  word = np.full(ngrams.shape, words, np.int32)
  ngrams[row, column] = flat[bounds[ids_BT.ravel()[owner]] + within]
  word[row, column] = owner % words
  return {"ngrams": ngrams, "ngram_word": word}
