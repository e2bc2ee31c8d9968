"""The protocol of a model: the attributes of its configuration and parameters that each use needs.

No code asks for a model's class. A model in one new file works everywhere if it has

  to train        config: `vocab_size`, `positions`, `encoder`, `encoder_path`, `frozen`, `init`.
                  parameters: the forward pass, `encoder()`, `masked_lm()`, and its objectives'
                  scores: `token_logits` and `token_logits_at` for CLM and MLM.
  to be counted   config: `counted(corpus, store, tokenizer)`; in its experiment `steps` is 0.
  to carry state  parameters: `carry(rows)` and `continued(batch, compute, noise, carry)`.
  to update only  parameters: `touched(batch)`, the ids of the rows that are read, by the path of
  touched rows    their table (plm_jax/train/touched.py).
  as static       parameters: `word_rows()`, the words' rows and those of n-grams, and
  vectors         `with_token_table(table)` (plm_jax/decode/neighbours.py).
  to generate     parameters: `generator(compute, rows)` (plm_jax/decode/generator.py). The config
                  of a model with a source also has `source_ids` and `decoder_start`.
  to sample its   parameters: `output_at(ids)`, rows and biases of the output's table
  softmax         (plm_jax/objectives/sampled_softmax.py).
  to be scored    left to right: `generator`, or CLM among the objectives; `token_logits`. A config
                  whose held-out rows are pairs of segments has `reads_pairs`.
                  masked: `masked_lm()` returns parameters with `token_logits`.
                  on pairs: `nsp` or `sop`, None without that head, and
                  `next_sentence_logits` or `sentence_order_logits`.
  to be           config: `text_frame`, `separator`. parameters: `class_logits` (sentences),
  fine-tuned      `token_class_logits` (tokens), `span_logits` (answers); `init` can make the
                  heads `classes`, `token_classes` and `span`. A config that `packs` has a model
                  that reads `document_ids`: several examples may share a row (packed.py).
  as frozen       config: `features`, the paths that fine-tuning leaves as they are. parameters:
  features        `mix` and `learnt()`, the weights of layers (plm_jax/models/layer_features.py).
  to be exported  a file in plm_jax/export/families/ that names the config's class.
  to be           config: `teacher` (the directory of a run) and `teacher_model`. parameters:
  distilled       `teacher`, `taught(teacher)`.
  to read         parameters: `spelled(tokenizer)`, the initial ones with the characters of all
  characters      tokens.

`counted`, `spelled`, `carry`, `touched`, `word_rows`, `generator`, `source_ids`, `has_decoder`,
`packs` and `teacher` are optional: callers test for them by `hasattr`. `generator` is an attribute
of `params.encoder()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.pipeline import Corpus
  from plm_jax.data.store import TokenStore
  from plm_jax.data.tokenizers import Tokenizer
  from plm_jax.data.vocab import Vocab
  from plm_jax.models.compute import Compute
  from plm_jax.models.dropout import Noise


def refuse_below(config: object, least: int, *names: str) -> None:
  """Errors: `UserError` for a named field of a model's configuration that is below `least`; None
  is allowed."""
  for name in names:
    size = getattr(config, name)
    if size is not None and size < least:
      raise UserError(f"model.{name}={size} must be at least {least}")


def refuse_rates(config: object, *names: str) -> None:
  """Errors: `UserError` for a named dropout rate outside [0, 1); None is allowed."""
  for name in names:
    if not 0 <= (getattr(config, name) or 0.0) < 1:
      raise UserError(f"model.{name}={getattr(config, name)} must be at least 0 and below 1")


class SingleModel:
  """A configuration that is not composite: all of it is fine-tuned and nothing is frozen."""

  @property
  def encoder(self) -> Self:
    return self

  @property
  def encoder_path(self) -> str:
    return ""

  @property
  def frozen(self) -> tuple[str, ...]:
    return ()

  def separator(self, vocab: Vocab) -> list[int]:
    """The end token, between the texts of a pair."""
    return vocab.end


class Model(Protocol):
  """The configuration of a model: a frozen dataclass, one per paper."""

  vocab_size: int | None  # None until the tokenizer is known
  positions: int  # longest row

  @property
  def encoder(self) -> Model:
    """The sub-model that is fine-tuned and evaluated; `self` unless composite (ELECTRA)."""

  @property
  def encoder_path(self) -> str:
    """The path of the sub-model's parameters: "", or a prefix such as "discriminator/"."""

  @property
  def frozen(self) -> tuple[str, ...]:
    """Path patterns of parameters without gradient, update and moments, such as "teacher/*"."""

  def init(self, key: jax.Array, heads: dict[str, int]) -> Parameters:
    """Random parameters with the named heads and their sizes, 0 for heads without a size:
    `{"mlm": 0, "classes": 3}`. Errors: `UserError` for a head that the model does not have."""

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text that is classified. Errors: `UserError` if the
    vocabulary lacks a special token that the model needs."""

  def separator(self, vocab: Vocab) -> list[int]:
    """The special tokens between the two texts of a pair; empty if the vocabulary has none."""


class CountedConfig(Model, Protocol):
  """The configuration of a model that is estimated from counts, not trained by gradient."""

  def counted(
    self, corpus: Corpus, store: TokenStore, tokenizer: Tokenizer
  ) -> tuple[Self, Parameters]:
    """The configuration whose `init` gives the parameters' shapes, and the parameters, estimated
    on the training text `store`. Only the field `sizes` of the configuration may change. Errors:
    `UserError` for a text from which nothing can be estimated."""


class SourceConfig(Model, Protocol):
  """The configuration of a model that reads a source before it writes."""

  has_decoder: bool  # False: a single stack reads source and target

  def source_ids(self, ids: list[int], vocab: Vocab) -> list[int]:
    """The ids of a text with the special tokens of a source."""

  def decoder_start(self, vocab: Vocab) -> list[int]:
    """The tokens that the decoder reads before the first token of a target."""


class Parameters(Protocol):
  """The parameters of a model and its forward pass: an `nnx.Module` used as a plain pytree."""

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """One forward pass, which the losses of all objectives read.

    batch: `input_ids` int `[B, T]`, `length` int `[B]`. Returns hidden states `[B, T, D]`, or a
    tuple of states if the model is composite.
    """

  def encoder(self) -> Parameters:
    """The parameters of the config's `encoder`."""

  def masked_lm(self) -> Parameters | None:
    """The parameters whose `token_logits` predict a masked token; None if there are none."""

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`: scores of the next or the masked token."""

  def token_logits_at(self, hidden: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""

  def class_logits(self, hidden: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]`."""

  def token_class_logits(self, hidden: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, T, classes]`."""

  def span_logits(self, hidden: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """float32 `[B, T]` each: scores that an answer begins at a token, and that it ends there."""

  def generator(self, compute: Compute, rows: int = 1) -> Any:
    """A `Generator` (plm_jax/decode/generator.py): the model ready for generation. Optional."""

  def carry(self, rows: int) -> Any:
    """The state before any token, a pytree of arrays `[rows, ...]`. Optional: only for models that
    carry a state from batch to batch."""

  def continued(
    self, batch: dict, compute: Compute, noise: Noise | None, carry: Any
  ) -> tuple[jax.Array, Any]:
    """The result of `__call__` and the state after the batch. Only for models with `carry`."""


def carried(params, batch: dict, carry: Any) -> Any:
  """The carry that a batch's rows start from: that of the batch before, or the model's initial one
  where a row begins. None if `carry` is None."""
  if carry is None:
    return None
  begins_B = batch["begins"]

  def chosen(first, old):
    return jnp.where(begins_B.reshape(-1, *[1] * (old.ndim - 1)), first, old)

  return jax.tree.map(chosen, params.carry(len(begins_B)), carry)
