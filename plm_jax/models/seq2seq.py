"""What encoder-decoders and single stacks have in common: the token table and the heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.heads import TokenHeads
from plm_jax.models.layers import Embedding, Linear, scores
from plm_jax.models.model import Model
from plm_jax.models.transformer import streams


class Seq2SeqModel(TokenHeads):
  """The token table and the heads of an `EncoderDecoder`."""

  def __init__(self, config: Model, key: jax.Array, heads: dict[str, int]):
    token, _, _, lm, pooler, classes = jax.random.split(key, 6)
    c = config
    self.config = config
    self.token = Embedding(token, c.vocab_size, c.width)
    self.lm = Embedding(lm, c.vocab_size, c.width) if "lm" in heads and not c.tied else None
    has_classes = "classes" in heads
    self.pooler = Linear(pooler, (c.width,), (c.width,)) if has_classes else None
    self.classes = Linear(classes, (c.width,), (heads["classes"],)) if has_classes else None
    self.make_token_heads(key, c.width, heads)

  def encoder(self) -> Seq2SeqModel:
    return self

  def masked_lm(self) -> None:
    return None

  def output_table(self) -> jax.Array:
    """float32 `[V, D]`: the token table, or the output's own."""
    return (self.token if self.lm is None else self.lm).table[...]

  def scaled(self, hidden: jax.Array) -> jax.Array:
    """What the output's table is multiplied with."""
    return hidden * self.config.width**-0.5 if self.config.logit_scale else hidden

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`: the scores of the next token."""
    return scores(self.scaled(hidden), self.output_table())

  def token_logits_at(self, hidden_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""
    return self.token_logits(jnp.take_along_axis(hidden_BTD, positions_BP[..., None], axis=1))

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the state at the row's last token, or where `decoder_length` of
    the batch ends: dropout, dense, tanh, dropout, linear (fairseq, `BARTClassificationHead`)."""
    before, after = streams(noise, 2)
    last_B = batch.get("decoder_length", batch["length"]) - 1
    state_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    state_BD = jnp.tanh(self.pooler(dropout(state_BD, self.classifier_dropout, before)))
    return self.classes(dropout(state_BD, self.classifier_dropout, after)).astype(jnp.float32)
