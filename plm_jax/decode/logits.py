"""Transformations of the next token's scores before it is chosen: small pure functions on float32
`[B, V]`. A token that is ruled out has the score -inf."""

import jax
import jax.numpy as jnp

RULED_OUT = -jnp.inf


def top_k(logits_BV: jax.Array, k: int | jax.Array) -> jax.Array:
  """The k highest scores (Fan et al. 2018); of equal scores the lower id is kept. 0 keeps all. k:
  of all rows, or an array `[B, 1]`."""
  if isinstance(k, int) and not 0 < k < logits_BV.shape[-1]:
    return logits_BV
  return jnp.where((_rank(logits_BV) < k) | (k == 0), logits_BV, RULED_OUT)


def top_p(logits_BV: jax.Array, p: float | jax.Array) -> jax.Array:
  """The smallest set of tokens whose probabilities sum to p or more (Holtzman et al. 2020). p: of
  all rows, or an array `[B, 1]`; 1 keeps all."""
  if not isinstance(p, jax.Array) and p >= 1:
    return logits_BV
  probabilities_BV = jax.nn.softmax(logits_BV)
  sorted_BV = -jnp.sort(-probabilities_BV)
  before_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV  # of the more probable tokens
  size_B1 = (before_BV < p).sum(axis=-1, keepdims=True)
  return jnp.where((_rank(logits_BV) < size_B1) | (p >= 1), logits_BV, RULED_OUT)


def _rank(logits_BV: jax.Array) -> jax.Array:
  """int `[B, V]`: the rank of each token, 0 for the highest score."""
  order_BV = jnp.argsort(-logits_BV, stable=True)
  row = jnp.arange(len(logits_BV))[:, None]
  ranks = jnp.broadcast_to(jnp.arange(logits_BV.shape[-1]), logits_BV.shape)
  return jnp.zeros(logits_BV.shape, jnp.int32).at[row, order_BV].set(ranks)


def repetition_penalty(
  logits_BV: jax.Array, seen_BV: jax.Array, penalty: float | jax.Array
) -> jax.Array:
  """Scores of seen tokens (bool `[B, V]`), divided by `penalty` if positive and multiplied by it if
  negative (Keskar et al. 2019, section 4.1)."""
  punished_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, punished_BV, logits_BV)


def not_yet(logits_BV: jax.Array, ends_E: jax.Array, early: jax.Array) -> jax.Array:
  """Rules out the tokens that end a text where `early` (bool `[]` or `[B, 1]`)."""
  is_end_V = jnp.isin(jnp.arange(logits_BV.shape[-1]), ends_E)
  return jnp.where(early & is_end_V, RULED_OUT, logits_BV)
