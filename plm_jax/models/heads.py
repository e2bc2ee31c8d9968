"""What stands on top of an encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.layers import LayerNorm, Linear, einsum_float32
from plm_jax.models.transformer import Activation, activate


class MaskedLMHead(nnx.Module):
  """Token scores from hidden states: dense, activation, norm, then the tied token table and a bias
  (google-research/bert, run_pretraining.py `get_masked_lm_output`). With factorised embeddings the
  dense layer maps D to their width E (google-research/albert, run_pretraining.py)."""

  def __init__(
    self, key, width: int, embedding: int, vocab_size: int, activation: Activation, eps: float
  ):
    self.dense = Linear(key, (width,), (embedding,))
    self.norm = LayerNorm(embedding, eps)
    self.bias = nnx.Param(jnp.zeros((vocab_size,)))
    self.activation = activation

  def __call__(self, x: jax.Array, table_VE: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`."""
    x = self.norm(activate(self.dense(x), self.activation))
    rows_RE = x.reshape(-1, x.shape[-1])  # one matrix product, as in `project`
    logits_RV = einsum_float32("RE,VE->RV", rows_RE, table_VE.astype(x.dtype))
    return logits_RV.reshape(*x.shape[:-1], -1) + self.bias[...]
