"""Input embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import Embedding, LayerNorm


class BertEmbeddings(nnx.Module):
  """`dropout(norm(token + position + segment))` with learned positions (BERT, section 3)."""

  def __init__(self, key, *, vocab_size, positions, segments, width, eps, dropout):
    token, position, segment = jax.random.split(key, 3)
    self.token = Embedding(token, vocab_size, width)
    self.position = Embedding(position, positions, width)
    self.segment = Embedding(segment, segments, width)
    self.norm = LayerNorm(width, eps)
    self.dropout = dropout

  def __call__(self, ids_BT, segments_BT, dtype, noise: Noise | None) -> jax.Array:
    """int `[B, T]`, int `[B, T]` -> `[B, T, D]` of `dtype`."""
    x_BTD = self.token(ids_BT, dtype)
    x_BTD += self.position(jnp.arange(ids_BT.shape[-1]), dtype)
    x_BTD += self.segment(segments_BT, dtype)
    return dropout(self.norm(x_BTD), self.dropout, noise)
