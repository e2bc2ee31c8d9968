"""What stands on top of an encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.activations import Activation, activate
from plm_jax.models.layers import Embedding, LayerNorm, Linear, scores


class MaskedLMHead(nnx.Module):
  """Token scores from hidden states: dense, activation, norm, then the tied token table and a bias
  (google-research/bert, run_pretraining.py `get_masked_lm_output`). With factorised embeddings the
  dense layer maps D to their width E (google-research/albert, run_pretraining.py).

  tied: without, the head has a table of its own and leaves the tokens' alone.
  """

  def __init__(
    self,
    key,
    width: int,
    embedding: int,
    vocab_size: int,
    activation: Activation,
    eps: float,
    tied: bool = True,
  ):
    own = jax.random.fold_in(key, 1)
    self.decoder = None if tied else Embedding(own, vocab_size, embedding)
    self.dense = Linear(key, (width,), (embedding,))
    self.norm = LayerNorm(embedding, eps)
    self.bias = nnx.Param(jnp.zeros((vocab_size,)))
    self.activation = activation

  def __call__(self, x: jax.Array, table_VE: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`."""
    table_VE = table_VE if self.decoder is None else self.decoder.table[...]
    x = self.norm(activate(self.dense(x), self.activation))
    return scores(x, table_VE) + self.bias[...]


class ReplacedHead(nnx.Module):
  """Dense, activation, and one score (google-research/electra, run_pretraining.py
  `_get_discriminator_output`)."""

  def __init__(self, key, width: int, activation):
    dense, score = jax.random.split(key)
    self.dense = Linear(dense, (width,), (width,))
    self.score = Linear(score, (width,), (1,))
    self.activation = activation

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """`[B, T, D] -> float32 [B, T]`."""
    return self.score(activate(self.dense(x_BTD), self.activation))[..., 0].astype(jnp.float32)
