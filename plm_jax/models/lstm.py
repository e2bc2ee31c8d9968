"""Recurrent language models (Mikolov et al. 2010; Zaremba et al. 2014, "Recurrent Neural
Network Regularization", arXiv:1409.2329): stacked layers that read running text and carry their
state from batch to batch.

Dropout is on the connections between layers, never on the recurrent ones (section 3.1).
Deviations: one bias per gate, and the forget gate's starts at 1 (Jozefowicz et al. 2015).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.heads import LM_HEADS, LanguageModel, check_heads
from plm_jax.models.layer_loop import stack, unstack
from plm_jax.models.layers import STDDEV, Embedding, scaled_kernels
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.parameters import linear_rows
from plm_jax.models.recording import record_input
from plm_jax.models.recurrent import GRU, LSTM, RNN, RecurrentLayer, document_begins
from plm_jax.placement import split_rows

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lstm(SingleModel):
  """An LSTM language model.

  width: of the token table and of every layer. vocab_size: None takes the tokenizer's.
  positions: longest row, and the window in which a long text is scored.
  tied: the token table is also the output's (Press and Wolf 2017).
  variational: dropout takes the same mask for all tokens of a row (Gal and Ghahramani 2016).
  classifier_dropout: before the head `classes`; None is `dropout`.
  """

  layers: int = 2
  width: int = 200
  vocab_size: int | None = None
  positions: int = 1024
  tied: bool = False
  dropout: float = 0.0
  variational: bool = False
  classifier_dropout: float | None = None
  initializer_range: float = 0.05

  layer: ClassVar[type[RecurrentLayer]] = LSTM

  def __post_init__(self):
    refuse_below(self, 1, "layers", "width", "vocab_size", "positions")
    refuse_rates(self, "dropout", "classifier_dropout")
    if not 0 < self.initializer_range < math.inf:
      raise UserError(
        f"model.initializer_range={self.initializer_range} must be above 0 and finite"
      )

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> LstmModel:
    """Random parameters with the named heads: `lm` and `span` (size 0), `classes` and
    `token_classes` (number of labels)."""
    note = " (lm is for the objective CLM)"
    check_heads(self, heads, LM_HEADS, f"a language model of {type(self).__name__} layers", note)
    return scaled_kernels(LstmModel(self, key, heads), self.initializer_range / STDDEV)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gru(Lstm):
  """A language model of gated recurrent units (Cho et al. 2014)."""

  layer: ClassVar[type[RecurrentLayer]] = GRU


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rnn(Lstm):
  """A language model of simple recurrent layers (Mikolov et al. 2010)."""

  layer: ClassVar[type[RecurrentLayer]] = RNN


SMALL = Lstm(initializer_range=0.1)
MEDIUM = Lstm(width=650, dropout=0.5, initializer_range=0.05)
LARGE = Lstm(width=1500, dropout=0.65, initializer_range=0.04)


class LstmModel(LanguageModel):
  """The parameters of a recurrent language model and its forward pass."""

  HEADS = LM_HEADS
  ROLES: ClassVar = {
    **linear_rows("blocks/input", "layer", ("width",), ("gates", "features")),
    **linear_rows("blocks/recurrent", "layer", ("features",), ("gates", "features")),
  }

  def __init__(self, config: Lstm, key: jax.Array, heads: dict[str, int]):
    token, blocks, lm, classes = jax.random.split(key, 4)
    c = config
    self.config = config
    self.token = Embedding(token, c.vocab_size, c.width)
    self.blocks = stack(blocks, c.layers, lambda key: c.layer(key, c.width, c.width))
    self.make_heads(key, {"lm": lm, "classes": classes}, heads)

  def carry(self, rows: int) -> Any:
    """The state before any token, float32 `[B, L, U]` each."""
    return self.config.layer.State.zeros((rows, self.config.layers, self.config.width))

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """States of the last layer `[B, T, U]` in `compute.activation_dtype`; every row begins with a
    state of zeros.

    batch: `input_ids` int `[B, T]`, `length` int `[B]`; optional `document_ids` int `[B, T]`: every
    document of a row begins with zeros too.
    """
    return self.continued(batch, compute, noise, self.carry(batch["input_ids"].shape[0]))[0]

  def continued(
    self, batch: dict, compute: Compute, noise: Noise | None, carry: Any
  ) -> tuple[jax.Array, Any]:
    """`__call__` from the state `carry`, and the state after the batch."""
    ids_BT = batch["input_ids"]
    real_BT = jnp.arange(ids_BT.shape[1]) < batch["length"][:, None]
    begins_BT = None
    if "document_ids" in batch:
      begins_BT = document_begins(batch["document_ids"])
    layers = unstack(self.blocks, self.config.layers)
    return self.read(layers, ids_BT, real_BT, begins_BT, compute, noise, carry)

  def read(self, layers, ids_BT, real_BT, begins_BT, compute: Compute, noise, carry):
    """The states of the last layer after T tokens, and the carry of all layers.

    begins_BT: bool, True at tokens before which the state becomes zeros.
    """
    dtype = compute.activation_dtype
    *after_layers, in_embed = streams(noise, len(layers) + 1)
    x_BTU = self.dropped(split_rows(self.token(ids_BT, dtype)), in_embed)
    last = []
    for index, (layer, after_layer) in enumerate(zip(layers, after_layers, strict=True)):
      record_input(x_BTU)
      start = jax.tree.map(lambda x_BLU, l=index: x_BLU[:, l].astype(dtype), carry)
      x_BTU, state = layer(x_BTU, real_BT, start=start, begins_BT=begins_BT)
      x_BTU = split_rows(self.dropped(x_BTU, after_layer))
      last.append(state)
    carry = jax.tree.map(lambda *x_BU: jnp.stack(x_BU, axis=1).astype(jnp.float32), *last)
    return x_BTU, carry

  def output_at(self, ids: jax.Array) -> tuple[jax.Array, None]:
    """float32 `[..., D]`: the rows of the output's table, and no biases."""
    return self.output_table()[ids], None

  def dropped(self, x_BTU: jax.Array, noise: Noise | None) -> jax.Array:
    """Dropout."""
    if not self.config.variational:
      return dropout(x_BTU, self.config.dropout, noise)
    return x_BTU * dropout(jnp.ones_like(x_BTU[:, :1]), self.config.dropout, noise)

  def generator(self, compute: Compute, rows: int = 1) -> LstmGenerator:
    del rows
    return LstmGenerator(self, unstack(self.blocks, self.config.layers), compute)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LstmCache:
  """The state after the tokens read so far. pad_B: number of padding columns before each prompt.
  at: columns read so far, int32 `[]`."""

  state: Any
  pad_B: jax.Array
  at: jax.Array

  def take(self, rows=None, *, same_prompts: bool = False, capacity: int | None = None):
    del same_prompts, capacity
    if rows is None:
      return self
    state, pad_B = jax.tree.map(lambda x: x[rows], (self.state, self.pad_B))
    return LstmCache(state, pad_B, self.at)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LstmGenerator:
  """A recurrent language model made ready for generation (plm_jax/decode/generator.py)."""

  model: LstmModel
  layers: list[Any]
  compute: Compute = dataclasses.field(metadata={"static": True})

  def start(self, batch: dict, capacity: int) -> LstmCache:
    del capacity
    pad_B = jnp.asarray(batch["pad"])
    return LstmCache(self.model.carry(len(pad_B)), pad_B, jnp.zeros((), jnp.int32))

  def extend(self, ids_BT: jax.Array, cache: LstmCache) -> tuple[jax.Array, LstmCache]:
    at = cache.at + ids_BT.shape[1]
    real_BT = cache.at + jnp.arange(ids_BT.shape[1]) >= cache.pad_B[:, None]
    x_BTU, state = self.model.read(
      self.layers, ids_BT, real_BT, None, self.compute, None, cache.state
    )
    return self.model.token_logits(x_BTU[:, -1]), LstmCache(state, cache.pad_B, at)
