"""The token table and the heads that encoder-decoders and single stacks share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.heads import LM_HEADS, LanguageModel, Pooler, state_at
from plm_jax.models.layers import Embedding


class Seq2SeqModel(LanguageModel):
  """The token table and the heads of an `EncoderDecoder`, and their scores."""

  HEADS = LM_HEADS

  def __init__(self, config: TransformerConfig, key: jax.Array, heads: dict[str, int]):
    token, _, _, lm, pooler, classes = jax.random.split(key, 6)
    self.config = config
    self.token = Embedding(token, config.vocab_size, config.width)
    self.pooler = Pooler(pooler, config) if "classes" in heads else None
    self.make_heads(key, {"lm": lm, "classes": classes}, heads)

  def scaled(self, hidden: jax.Array) -> jax.Array:
    """The states divided by sqrt(width) if the config has `logit_scale`."""
    return hidden * self.config.width**-0.5 if self.config.logit_scale else hidden

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    return super().token_logits(self.scaled(hidden))

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the state of the last token, by `decoder_length` of the batch or
    else `length`: dropout, dense, tanh, dropout, linear (fairseq, `BARTClassificationHead`)."""
    before, after = streams(noise, 2)
    state_BD = state_at(hidden_BTD, batch.get("decoder_length", batch["length"]) - 1)
    state_BD = jnp.tanh(self.pooler(dropout(state_BD, self.classifier_dropout, before)))
    return self.classes(dropout(state_BD, self.classifier_dropout, after)).astype(jnp.float32)
