"""The protocol of a model: what its configuration and its parameters must have, for each use.

Nothing asks for a model's class. A model in one new file is at home everywhere if it has

  to train        config: `vocab_size`, `positions`, `encoder`, `encoder_path`, `frozen`, `init`.
                  parameters: the forward pass, `encoder()`, `masked_lm()`, and the scores that its
                  objectives read: `token_logits` and `token_logits_at` for CLM and MLM.
  to carry state  parameters: `carry(rows)` and `continued(batch, compute, noise, carry)`.
  to generate     parameters: `generator(compute, rows)` (plm_jax/decode/generator.py). A config
                  that reads a source before it writes also has `source_ids` and `decoder_start`.
  to be scored    left to right: `generator`, or CLM among the objectives; `token_logits`.
                  masked: `masked_lm()` returns parameters with `token_logits`.
                  on pairs: `nsp` or `sop`, each None without the head, and
                  `next_sentence_logits` or `sentence_order_logits`.
  to be           config: `text_frame`. parameters: `class_logits` (sentences),
  fine-tuned      `token_class_logits` (tokens), `span_logits` (answers); `init` makes the heads
                  `classes`, `token_classes` and `span`, where they are named.
  to be exported  a family in plm_jax/export/families/, which names the config's class.
  to be           config: `teacher` (the directory of a run) and `teacher_model`. parameters:
  distilled       `teacher`, `taught(teacher)`.

`carry`, `generator`, `source_ids`, `has_decoder` and `teacher` are optional: their presence is the
answer (`hasattr`). `generator` is asked of `params.encoder()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import jax

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab
  from plm_jax.models.compute import Compute
  from plm_jax.models.dropout import Noise


def refuse_below(config: object, least: int, *names: str) -> None:
  """A `UserError` for a field of a model's configuration that is given, and less than `least`."""
  for name in names:
    size = getattr(config, name)
    if size is not None and size < least:
      raise UserError(f"model.{name}={size} must be at least {least}")


class Model(Protocol):
  """The configuration of a model: a frozen dataclass, one per paper."""

  vocab_size: int | None  # None until the tokenizer is known
  positions: int  # longest row

  @property
  def encoder(self) -> Model:
    """The sub-model that is fine-tuned and evaluated; `self` unless composite (ELECTRA)."""

  @property
  def encoder_path(self) -> str:
    """Where that model's parameters are among these: "" or a path such as "discriminator/"."""

  @property
  def frozen(self) -> tuple[str, ...]:
    """Path patterns of parameters that get no gradient, no update and no moments ("teacher/*")."""

  def init(self, key: jax.Array, heads: dict[str, int]) -> Parameters:
    """Random parameters, with the named heads: `{"mlm": 0, "classes": 3}`, sizes where they have
    one. Errors: `UserError` for a head that the model does not have."""

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text that is classified. Errors: `UserError` where the
    vocabulary lacks one that the model needs."""


class SourceConfig(Model, Protocol):
  """The configuration of a model that reads a source before it writes."""

  has_decoder: bool  # apart from the source's stack; without, a single stack reads both

  def source_ids(self, ids: list[int], vocab: Vocab) -> list[int]:
    """The ids of a text with the special tokens that sources have."""

  def decoder_start(self, vocab: Vocab) -> list[int]:
    """The tokens that the decoder has read before the first token of a target."""


class Parameters(Protocol):
  """The parameters of a model and its forward pass: an `nnx.Module` used as a plain pytree."""

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """One forward pass; every objective's loss reads its result.

    Of a composite model that is a tuple of states. Otherwise hidden states `[B, T, D]`, for a batch
    with `input_ids` int `[B, T]` and `length` int `[B]`.
    """

  def encoder(self) -> Parameters:
    """The parameters of the config's `encoder`."""

  def masked_lm(self) -> Parameters | None:
    """The parameters that predict a masked token by `token_logits`; None where nothing does."""

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`: scores of the next token, or of a masked one."""

  def token_logits_at(self, hidden: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""

  def class_logits(self, hidden: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]`."""

  def token_class_logits(self, hidden: jax.Array, noise: Noise | None) -> jax.Array:
    """float32 `[B, T, classes]`."""

  def span_logits(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 `[B, T]` each: that an answer begins here, and that it ends here."""

  def generator(self, compute: Compute, rows: int = 1) -> Any:
    """A `Generator` (plm_jax/decode/generator.py): the model ready for generation. Models that do
    not write lack it."""

  def carry(self, rows: int) -> Any:
    """The state before any token, a pytree of arrays `[rows, ...]`. Models that carry no state from
    batch to batch lack it."""

  def continued(
    self, batch: dict, compute: Compute, noise: Noise | None, carry: Any
  ) -> tuple[jax.Array, Any]:
    """The result of `__call__` and the state after the batch. Models without `carry` lack it."""
