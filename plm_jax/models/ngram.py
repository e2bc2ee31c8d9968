"""N-gram language models: interpolated modified Kneser-Ney (Chen and Goodman 1999), Jelinek-Mercer
and add-k, estimated from counts.

    log p(w | h) = stored value of "h w", if it was counted
                   else log backoff(h) + log p(w | h without its first token)

A context is the number of its n-gram (ngram_counts.py), found token by token through a binary
search among the n-grams of the context before. The forward pass gives the numbers of a position's
contexts, and `token_logits` the log-probabilities of all tokens: those of the shortest context,
overwritten by the n-grams of each longer one. ngram_smoothing.py has the formulas.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models import arpa, ngram_smoothing
from plm_jax.models.arpa import NEVER
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.heads import HeadedModel, OutputTable, check_heads
from plm_jax.models.model import SingleModel, refuse_below
from plm_jax.models.ngram_counts import count, documents_room, first_children
from plm_jax.models.parameters import Role
from plm_jax.models.recurrent import document_begins

if TYPE_CHECKING:
  from plm_jax.data.pipeline import Corpus
  from plm_jax.data.store import TokenStore
  from plm_jax.data.tokenizers import Tokenizer
  from plm_jax.data.vocab import Vocab

NONE, UNSEEN = -1, -2  # contexts that reach beyond the text, and those that were never counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class NGram(SingleModel):
  """An n-gram model.

  order: the most tokens of an n-gram. smoothing: see ngram_smoothing.py. k: of add_k.
  arpa: a file to read the model from, instead of counting; its words are the tokenizer's pieces.
  tokens: count only this many tokens, in documents at equal distances; None is the whole text.
  vocab_size: None takes the tokenizer's. positions: the window in which a long text is scored.
  sizes: the numbers of n-grams of orders 2 to `order`, then the most n-grams of one context of
    each order; a result of counting.
  """

  order: int = 5
  smoothing: Literal["kneser_ney", "jelinek_mercer", "add_k"] = "kneser_ney"
  k: float = 0.01
  arpa: str | None = None
  tokens: int | None = None
  vocab_size: int | None = None
  positions: int = 1024
  sizes: tuple[int, ...] = ()

  def __post_init__(self):
    refuse_below(self, 1, "order", "tokens", "vocab_size", "positions")
    if self.order > 20:
      raise UserError(
        f"model.order={self.order} is more than 20; longer n-grams are hardly counted"
      )
    if not 0 < self.k < np.inf:
      raise UserError(f"model.k={self.k} must be above 0 and finite")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> NGramModel:
    """Zeros of the shapes in `sizes`; before counting, one n-gram of each order."""
    check_heads(self, heads, NGramModel.HEADS, "an n-gram model", " (lm is for the objective CLM)")
    return NGramModel(self)

  def counted(
    self, corpus: Corpus, store: TokenStore, tokenizer: Tokenizer
  ) -> tuple[Self, NGramModel]:
    """The model of a text, laid out as `PackedDocuments` does: with its `separate`, no n-gram
    crosses documents and the token that begins them is not predicted."""
    vocab = tokenizer.vocab
    if self.arpa is not None:
      tables = arpa.read(self.arpa, tokenizer)
      if len(tables) != self.order:
        raise UserError(
          f"{self.arpa} has n-grams of order {len(tables)}, and model.order={self.order}; set "
          f"model.order={len(tables)}"
        )
      return self.filled(tables)
    if not hasattr(corpus.segments, "running"):
      raise UserError(
        f"an n-gram model reads running text, not {type(corpus.segments).__name__}; set "
        "data.segments=PackedDocuments()"
      )
    ids, document = self._part(*corpus.segments.running(store, vocab))
    predicted = np.ones(self.vocab_size or vocab.size, bool)
    if corpus.segments.separate and corpus.segments.framed and vocab.begin != vocab.end:
      predicted[vocab.begin] = False
    return self.estimated(ids, document, predicted)

  def _part(self, ids: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that are counted, and the numbers of their documents."""
    if self.tokens is None or self.tokens >= len(ids):
      return ids, document
    if document[-1]:
      share = np.arange(document[-1] + 2) * (self.tokens / len(ids))
      chosen = np.diff(np.floor(share)) > 0
      ids, document = ids[chosen[document]], document[chosen[document]]
    return ids[: self.tokens], document[: self.tokens]

  def estimated(
    self, ids: np.ndarray, document: np.ndarray, predicted: np.ndarray
  ) -> tuple[Self, NGramModel]:
    """The model of a text. ids int [N]; document int [N]: the number of every token's document,
    ascending; predicted bool [V]. Errors: `UserError` for an empty text."""
    if not len(ids):
      raise UserError("the text has no tokens to count; give one with words in it")
    grams = count(ids, documents_room(document, self.order), self.order, len(predicted))
    if self.smoothing == "kneser_ney":
      orders, _ = ngram_smoothing.kneser_ney(grams, predicted)
    elif self.smoothing == "jelinek_mercer":
      orders = ngram_smoothing.jelinek_mercer(grams, predicted)
    else:
      orders = ngram_smoothing.add_k(grams, predicted, self.k)
    tables = [arpa.Table(g.contexts, g.words, o.p, o.backoff) for g, o in zip(grams, orders)]
    return self.filled([t._replace(p=_log(t.p), backoff=_log(t.backoff)) for t in tables])

  def filled(self, tables: list[arpa.Table]) -> tuple[Self, NGramModel]:
    """The model of natural logarithms, in sorted order, and the configuration with its sizes.
    Errors: `UserError` for an order without n-grams."""
    if empty := next((k for k, table in enumerate(tables, 1) if not len(table.p)), None):
      raise UserError(
        f"the text has no n-grams of order {empty}, and model.order={len(tables)}; set "
        f"model.order={empty - 1}"
      )
    tables = [arpa.padded(tables[0], self.vocab_size), *tables[1:]]
    firsts = [
      first_children(after.contexts, len(these.p)) for these, after in itertools.pairwise(tables)
    ]
    sizes = (*(len(t.p) for t in tables[1:]), *(max(1, int(np.diff(f).max())) for f in firsts))
    config = dataclasses.replace(self, order=len(tables), sizes=sizes)
    model = NGramModel(config)
    for k, table in enumerate(tables, 1):
      grams = model.of_order(k)
      grams.log_p = nnx.Param(jnp.asarray(table.p, jnp.float32))
      if k > 1:
        grams.word = nnx.Param(jnp.asarray(table.words, jnp.int32))
      if k < len(tables):
        grams.backoff = nnx.Param(jnp.asarray(table.backoff, jnp.float32))
        grams.first = nnx.Param(jnp.asarray(firsts[k - 1]))
    return config, model


def _log(p: np.ndarray) -> np.ndarray:
  return np.log(np.maximum(p, 10.0**NEVER))


class Grams(nnx.Module):
  """The n-grams of one order. log_p float32 [N]; word int32 [N], the last token, from order 2 on;
  backoff float32 [N] and first int32 [N + 1], where the n-grams of the next order begin that have
  this one as their context: not of the last order."""

  def __init__(self, size: int, tokens: bool, last: bool):
    self.log_p = nnx.Param(jnp.zeros((size,)))
    self.word = None if tokens else nnx.Param(jnp.zeros((size,), jnp.int32))
    self.backoff = None if last else nnx.Param(jnp.zeros((size,)))
    self.first = None if last else nnx.Param(jnp.zeros((size + 1,), jnp.int32))


class NGramModel(HeadedModel):
  """The tables of an n-gram model, `order_1` and on, and its forward pass."""

  HEADS: ClassVar = {"lm": OutputTable}  # the tables themselves
  ROLES: ClassVar = {
    name: Role(("ngrams",), "table", "embedding") for name in ("log_p", "word", "backoff", "first")
  }

  def __init__(self, config: NGram):
    self.config = config
    sizes = config.sizes[: config.order - 1] or (1,) * (config.order - 1)
    for k, size in enumerate((config.vocab_size, *sizes), 1):
      setattr(self, f"order_{k}", Grams(size, k == 1, k == config.order))

  def of_order(self, k: int) -> Grams:
    return getattr(self, f"order_{k}")

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """int32 `[B, T, n - 1]`: the numbers of the contexts of 1 to n - 1 tokens that end at each
    position, NONE or UNSEEN. No context reaches beyond its row, or its document where the batch has
    `document_ids`."""
    ids_BT = batch["input_ids"]
    begins_BT = jnp.zeros(ids_BT.shape, bool)
    if "document_ids" in batch:
      begins_BT = document_begins(batch["document_ids"])
    return self.read(ids_BT, begins_BT, self.start(len(ids_BT)))

  def start(self, rows: int) -> jax.Array:
    """The contexts before any token."""
    return jnp.full((rows, max(1, self.config.order - 1)), NONE, jnp.int32)

  def read(self, ids_BT: jax.Array, begins_BT: jax.Array, before_BK: jax.Array) -> jax.Array:
    """`__call__` after the contexts `before`. begins_BT: tokens with no context before them."""
    context_BT = ids_BT.astype(jnp.int32)
    found = [context_BT]
    for k in range(1, self.config.order - 1):
      shifted_BT = jnp.concatenate([before_BK[:, k - 1 : k], context_BT[:, :-1]], axis=1)
      shifted_BT = jnp.where(begins_BT, NONE, shifted_BT)
      context_BT = self.extended(k, shifted_BT, ids_BT)
      found.append(context_BT)
    return jnp.stack(found, axis=-1)

  def extended(self, k: int, context: jax.Array, token: jax.Array) -> jax.Array:
    """The numbers of the n-grams of order k + 1: contexts of order k, each and a token."""
    first, words = self.of_order(k).first[...], self.of_order(k + 1).word[...]
    place = jnp.maximum(context, 0)
    low, end = first[place], first[place + 1]
    high = end
    for _ in range(self.most(k).bit_length()):
      middle = (low + high) // 2
      smaller = (low < high) & (words[jnp.minimum(middle, len(words) - 1)] < token)
      low, high = jnp.where(smaller, middle + 1, low), jnp.where(smaller, high, middle)
    is_there = (low < end) & (words[jnp.minimum(low, len(words) - 1)] == token)
    return jnp.where(context < 0, context, jnp.where(is_there, low, UNSEEN))

  def most(self, k: int) -> int:
    """The most n-grams of order k + 1 that one context has."""
    return (self.config.sizes[self.config.order - 1 :] or (1,) * self.config.order)[k - 1]

  def token_logits(self, contexts: jax.Array) -> jax.Array:
    """`[..., n - 1] -> float32 [..., V]`: log p of the next token."""
    contexts_PK = contexts.reshape(-1, contexts.shape[-1])
    size = self.config.vocab_size
    tokens_V = self.order_1.log_p[...]
    logits_PV = jnp.broadcast_to(tokens_V, (len(contexts_PK), size))
    possible_V = tokens_V > NEVER * np.log(10) / 2
    uniform_V = jnp.where(possible_V, -jnp.log(possible_V.sum()), NEVER * np.log(10))
    row_P1 = jnp.arange(len(contexts_PK))[:, None]
    for k in range(1, self.config.order):
      here, after = self.of_order(k), self.of_order(k + 1)
      context_P1 = contexts_PK[:, k - 1, None]
      place_P1 = jnp.maximum(context_P1, 0)
      lower_PV = logits_PV
      if self.config.smoothing == "add_k":
        lower_PV = uniform_V
        logits_PV = jnp.where(context_P1 == UNSEEN, uniform_V, logits_PV)
      backed_PV = lower_PV + here.backoff[...][place_P1]
      logits_PV = jnp.where(context_P1 >= 0, backed_PV, logits_PV)
      at_PF = here.first[...][place_P1] + jnp.arange(self.most(k))
      real_PF = (at_PF < here.first[...][place_P1 + 1]) & (context_P1 >= 0)
      at_PF = jnp.minimum(at_PF, len(after.word[...]) - 1)
      token_PF = jnp.where(real_PF, after.word[...][at_PF], size)
      values_PF = after.log_p[...][at_PF]
      logits_PV = logits_PV.at[row_P1, token_PF].set(values_PF, mode="drop")
    return logits_PV.reshape(*contexts.shape[:-1], size)

  def generator(self, compute: Compute, rows: int = 1) -> NGramGenerator:
    del compute, rows
    return NGramGenerator(self)

  def tables(self) -> list[arpa.Table]:
    """All orders on the host, natural logarithms."""
    made = []
    for k in range(1, self.config.order + 1):
      these = jax.device_get(self.of_order(k))
      words = np.arange(len(these.log_p[...])) if k == 1 else np.asarray(these.word[...])
      contexts = np.zeros(len(words), np.int64)
      if k > 1:
        first = np.asarray(self.of_order(k - 1).first[...])
        contexts = np.repeat(np.arange(len(first) - 1), np.diff(first))
      backoff = np.zeros(len(words)) if these.backoff is None else np.asarray(these.backoff[...])
      made.append(arpa.Table(contexts, words, np.asarray(these.log_p[...]), backoff))
    return made

  def write_arpa(self, path: str | Path, tokenizer: Tokenizer) -> None:
    """Writes an ARPA file. Errors: `UserError` for add-k, which does not back off."""
    if self.config.smoothing == "add_k":
      raise UserError("an ARPA file cannot hold an add-k model: it does not back off")
    arpa.write(path, self.tables(), tokenizer)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NGramCache:
  """contexts_BK: those after the tokens read so far. pad_B: padding columns before each prompt. at:
  columns read so far, int32 `[]`."""

  contexts_BK: jax.Array
  pad_B: jax.Array
  at: jax.Array

  def take(self, rows=None, *, same_prompts: bool = False, capacity: int | None = None):
    del same_prompts, capacity
    if rows is None:
      return self
    return NGramCache(self.contexts_BK[rows], self.pad_B[rows], self.at)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NGramGenerator:
  """An n-gram model made ready for generation (plm_jax/decode/generator.py)."""

  model: NGramModel

  def start(self, batch: dict, capacity: int) -> NGramCache:
    del capacity
    pad_B = jnp.asarray(batch["pad"])
    return NGramCache(self.model.start(len(pad_B)), pad_B, jnp.zeros((), jnp.int32))

  def extend(self, ids_BT: jax.Array, cache: NGramCache) -> tuple[jax.Array, NGramCache]:
    column_T = cache.at + jnp.arange(ids_BT.shape[1])
    begins_BT = column_T <= cache.pad_B[:, None]  # padding, and the first token after it
    contexts_BTK = self.model.read(ids_BT, begins_BT, cache.contexts_BK)
    last_BK = contexts_BTK[:, -1]
    at = cache.at + ids_BT.shape[1]
    return self.model.token_logits(last_BK), NGramCache(last_BK, cache.pad_B, at)
