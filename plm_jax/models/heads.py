"""What stands on top of a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.activations import Activation, activate
from plm_jax.models.dropout import Noise, dropout
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


class TokenHeads(nnx.Module):
  """What may stand on the state of every token, of whatever model: a label for it, and whether an
  answer begins and ends there. The model has a `config` with dropout and classifier_dropout."""

  def make_token_heads(self, key: jax.Array, width: int, heads: dict[str, int]) -> None:
    """Sets `token_classes` and `span`, each None where `heads` does not name it."""
    tokens, span = jax.random.fold_in(key, 9), jax.random.fold_in(key, 10)
    labels = heads.get("token_classes")
    self.token_classes = Linear(tokens, (width,), (labels,)) if labels else None
    self.span = Linear(span, (width,), (2,)) if "span" in heads else None

  def token_class_logits(self, hidden_BTD: jax.Array, noise: Noise | None) -> jax.Array:
    """float32 `[B, T, classes]` (BERT, section 5.3)."""
    hidden_BTD = dropout(hidden_BTD, self.classifier_dropout, noise)
    return self.token_classes(hidden_BTD).astype(jnp.float32)

  def span_logits(self, hidden_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 `[B, T]` each: that an answer starts here, and that it ends here (section 4.2)."""
    logits_BT2 = self.span(hidden_BTD).astype(jnp.float32)
    return logits_BT2[..., 0], logits_BT2[..., 1]

  @property
  def classifier_dropout(self) -> float:
    """The rate under classes: one of its own, or the model's."""
    own = self.config.classifier_dropout
    return self.config.dropout if own is None else own
