"""Heads that read all layers of a frozen model (Peters et al. 2018, section 3.2).

    ELMo_k = gamma sum_j s_j h_kj      s = softmax(w)      (equation 1)

The heads read the mix, or the states of a bidirectional LSTM that reads the mix, as the paper's
tasks do. w begins at 0 and gamma at 1 (allenai/bilm-tf, bilm/elmo.py).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.encoder import mean_of_tokens
from plm_jax.models.heads import HeadedModel, Heads
from plm_jax.models.layers import Linear
from plm_jax.models.parameters import Role, linear_rows
from plm_jax.models.recurrent import BiLSTM

Pooling = Literal["mean", "max"]


class ScalarMix(nnx.Module):
  """The weighted sum of L layers. bias: w, `[L]`. gain: gamma, `[1]`."""

  def __init__(self, layers: int):
    self.bias = nnx.Param(jnp.zeros((layers,)))
    self.gain = nnx.Param(jnp.ones((1,)))

  def __call__(self, layers_BTLD: jax.Array) -> jax.Array:
    """`[B, T, D]`."""
    weights_L = (self.gain[...] * jax.nn.softmax(self.bias[...])).astype(layers_BTLD.dtype)
    return jnp.einsum("btld,l->btd", layers_BTLD, weights_L)

  def learnt(self) -> dict[str, float]:
    """{"s_0": ..., "gamma": ...}."""
    weights = jax.nn.softmax(self.bias[...]).tolist()
    return {f"s_{j}": s for j, s in enumerate(weights)} | {"gamma": float(self.gain[...][0])}


def labels(key, config, size: int = 0) -> Linear:
  """A score for each label; without labels two, of an answer's start and end."""
  return Linear(key, (2 * (config.reader or config.width),), (size or 2,))


FEATURE_HEADS: Heads = dict.fromkeys(("classes", "token_classes", "span"), labels)


def _reader_rows(direction: str) -> dict[str, Role]:
  gates = ("gates", "features")
  return {
    **linear_rows(f"reader/{direction}/input", "head", ("width",), gates),
    **linear_rows(f"reader/{direction}/recurrent", "head", ("features",), gates),
  }


class LayerFeatures(HeadedModel):
  """A model whose heads read `layers_BTLD` and `real_BT` of its states. Its config has `layers`,
  `width` of one direction, `reader` (units of the LSTM in each direction, 0: none), `classifier`
  and `classifier_dropout`."""

  ROLES: ClassVar = {
    "mix/bias": Role(("layers",), "bias", "head"),
    "mix/gain": Role(("layers",), "gain", "head"),
    **_reader_rows("forward"),
    **_reader_rows("backward"),
  }

  def make_features(self, key: jax.Array, heads: dict[str, int]) -> None:
    """Sets the mix and the reader of the heads for fine-tuning; None without such a head."""
    c, is_tuned = self.config, bool(set(heads) & set(FEATURE_HEADS))
    self.mix = ScalarMix(c.layers + 1) if is_tuned else None
    self.reader = BiLSTM(key, 2 * c.reader, 2 * c.width) if is_tuned and c.reader else None

  def features(self, states, noise: Noise | None) -> jax.Array:
    """`[B, T, D]`: the states that the heads read."""
    x_BTD = self.mix(states.layers_BTLD)
    if self.reader is None:
      return x_BTD
    return self.reader(dropout(x_BTD, self.classifier_dropout, noise), states.real_BT)

  def class_logits(self, states, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the mean or the maximum over the tokens."""
    del batch
    in_features, noise = streams(noise, 2)
    x_BTD, real_BT = self.features(states, in_features), states.real_BT
    if self.config.classifier == "max":
      pooled_BD = jnp.where(real_BT[..., None], x_BTD, -jnp.inf).max(axis=1)
    else:
      pooled_BD = mean_of_tokens(x_BTD, real_BT)
    return self.classes(dropout(pooled_BD, self.classifier_dropout, noise)).astype(jnp.float32)

  def token_class_logits(self, states, batch: dict, noise: Noise | None) -> jax.Array:
    in_features, noise = streams(noise, 2)
    return super().token_class_logits(self.features(states, in_features), batch, noise)

  def span_logits(self, states, batch: dict) -> tuple[jax.Array, jax.Array]:
    return super().span_logits(self.features(states, None), batch)

  def learnt(self) -> dict[str, float]:
    """The weights of the layers, for the results of a fine-tuning."""
    return self.mix.learnt()
