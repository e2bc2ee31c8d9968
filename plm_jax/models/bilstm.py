"""A bidirectional LSTM as a tagger and classifier (Huang et al. 2015, arXiv:1508.01991; Conneau et
al. 2017, arXiv:1705.02364): stacked layers that read a row from both sides.

It has no pretraining objective: `run_finetune.py --from=experiments/bilstm.py:tiny` trains it from
random parameters. Dropout is on the input of every layer and before the heads, never on recurrent
connections (Zaremba et al. 2014). Deviations: no conditional random field over the tags; one bias
per gate, and the forget gate's starts at 1 (Jozefowicz et al. 2015).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.encoder import mean_of_tokens
from plm_jax.models.heads import TUNED, HeadedModel, check_heads, state_at
from plm_jax.models.layers import Embedding, redrawn
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.parameters import Role, linear_rows
from plm_jax.models.recording import record_input
from plm_jax.models.recurrent import BiLSTM
from plm_jax.placement import split_rows

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiLstm(SingleModel):
  """A bidirectional LSTM encoder.

  width: of both directions together, half for each. embedding: of the token table; None is width.
  vocab_size: None takes the tokenizer's. positions: longest row.
  classifier: the state that the head `classes` reads: the maximum over the tokens of each component
    (Conneau et al. 2017), their mean, or the last state of each direction.
  classifier_dropout: before the heads; None is `dropout`.
  """

  layers: int = 1
  width: int = 256
  embedding: int | None = None
  vocab_size: int | None = None
  positions: int = 1024
  classifier: Literal["max", "mean", "last"] = "max"
  dropout: float = 0.5
  classifier_dropout: float | None = None

  def __post_init__(self):
    refuse_below(self, 1, "layers", "width", "embedding", "vocab_size", "positions")
    refuse_rates(self, "dropout", "classifier_dropout")
    if self.width % 2:
      raise UserError(f"model.width={self.width} must be even: each direction has half of it")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> BiLstmModel:
    """Random parameters with the named heads: `classes` and `token_classes` (number of labels),
    `span` (size 0)."""
    note = "; it has no pretraining objective, run_finetune.py trains it"
    check_heads(self, heads, TUNED, "a bidirectional LSTM", note)
    return redrawn(BiLstmModel(self, key, heads), jax.random.fold_in(key, 1), _draw)


def _draw(key, path: str, role: Role, leaf: jax.Array) -> jax.Array:
  """Tables uniform with the variance 1 / D (Lample et al. 2016: +- sqrt(3 / D)); kernels uniform
  within +- sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010), each gate by itself."""
  del path
  if role.kind == "table":
    bound = math.sqrt(3 / leaf.shape[-1])
  else:
    bound = math.sqrt(6 / (leaf.shape[0] + leaf.shape[-1]))
  return jax.random.uniform(key, leaf.shape, leaf.dtype, -bound, bound)


def _rows(direction: str) -> dict[str, Role]:
  gates = ("gates", "features")
  return {
    **linear_rows(f"{direction}/input", "layer", ("width",), gates),
    **linear_rows(f"{direction}/recurrent", "layer", ("features",), gates),
  }


class BiLstmModel(HeadedModel):
  """The parameters of a bidirectional LSTM and its forward pass."""

  HEADS = TUNED
  ROLES: ClassVar = _rows("forward") | _rows("backward")

  def __init__(self, config: BiLstm, key: jax.Array, heads: dict[str, int]):
    token, *layers = jax.random.split(key, 1 + config.layers)
    c, inputs = config, config.embedding or config.width
    self.config = config
    self.token = Embedding(token, c.vocab_size, inputs)
    self.layers = nnx.List(
      BiLSTM(key, c.width, c.width if number else inputs) for number, key in enumerate(layers)
    )
    self.make_heads(key, {}, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """States of the last layer `[B, T, D]` in `compute.activation_dtype`.

    batch: `input_ids` int `[B, T]`, `length` int `[B]`.
    """
    real_BT = _real(batch)
    x_BTD = self.token(batch["input_ids"], compute.activation_dtype)
    for layer, source in zip(self.layers, streams(noise, len(self.layers)), strict=True):
      record_input(x_BTD)
      x_BTD = layer(dropout(split_rows(x_BTD), self.config.dropout, source), real_BT)
    return split_rows(x_BTD)

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from `config.classifier` of the states."""
    real_BT, kind = _real(batch), self.config.classifier
    if kind == "max":
      pooled_BD = jnp.where(real_BT[..., None], hidden_BTD, -jnp.inf).max(axis=1)
    elif kind == "mean":
      pooled_BD = mean_of_tokens(hidden_BTD, real_BT)
    else:
      half = self.config.width // 2
      forward_BU = state_at(hidden_BTD, batch["length"] - 1)[:, :half]
      pooled_BD = jnp.concatenate([forward_BU, hidden_BTD[:, 0, half:]], axis=-1)
    return self.classes(dropout(pooled_BD, self.classifier_dropout, noise)).astype(jnp.float32)


def _real(batch: dict) -> jax.Array:
  return jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
