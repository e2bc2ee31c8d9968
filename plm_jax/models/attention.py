"""Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import Linear, einsum_float32

MASKED = -1e30  # finite, so that a row with every position masked gives no NaN


class SelfAttention(nnx.Module):
  """`softmax(Q K^T / sqrt(H)) V` with N heads of H = D / N, all projections with biases."""

  def __init__(self, key, width: int, heads: int):
    q, k, v, o = jax.random.split(key, 4)
    per_head = (heads, width // heads)
    self.query = Linear(q, (width,), per_head)
    self.key = Linear(k, (width,), per_head)
    self.value = Linear(v, (width,), per_head)
    self.output = Linear(o, per_head, (width,))

  def __call__(
    self, x_BTD: jax.Array, mask: jax.Array, dropout_rate: float, noise: Noise | None
  ) -> jax.Array:
    """`[B, T, D] -> [B, T, D]`; `mask`: bool, broadcast to `[B, N, T, S]`, True = may attend."""
    q_BTNH, k_BSNH, v_BSNH = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
    return self.output(attend(q_BTNH, k_BSNH, v_BSNH, mask, dropout_rate, noise))


def attend(q_BTNH, k_BSNH, v_BSNH, mask, dropout_rate: float, noise: Noise | None) -> jax.Array:
  """Attention itself, `[B, T, N, H]`: scores and softmax in float32, dropout on the weights."""
  scale = q_BTNH.shape[-1] ** -0.5
  scores_BNTS = einsum_float32("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH)
  weights_BNTS = jax.nn.softmax(jnp.where(mask, scores_BNTS, MASKED), axis=-1)
  weights_BNTS = dropout(weights_BNTS.astype(v_BSNH.dtype), dropout_rate, noise)
  return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH)


def padding_mask(length_B: jax.Array, positions: int) -> jax.Array:
  """bool `[B, 1, 1, S]`: True at the real positions of rows that are `length_B` long."""
  return (jnp.arange(positions) < length_B[:, None])[:, None, None, :]


def causal_mask(positions: int) -> jax.Array:
  """bool `[1, 1, T, S]`: True where the source is not after the target."""
  return jnp.tril(jnp.ones((positions, positions), bool))[None, None]
