"""ELMo (Peters et al. 2018): a language model in both directions over characters.

Source: allenai/bilm-tf, bilm/model.py. A token is the characters of its text: a convolution of each
width, the maximum over the token, ReLU, highways (Srivastava et al. 2015) and a projection. Two
stacks of projected LSTMs read the tokens, one from each side; characters and output are shared.

    highway    a = sigmoid(W_a s + b_a)      s <- a relu(W s + b) + (1 - a) s
    ELMo       gamma sum_j softmax(w)_j h_j, h_0 the tokens twice, h_1 and h_2 the layers

Fine-tuning leaves the language model as it is: tasks read a mix of its layers (layer_features.py).
Deviation: the backward direction begins every row without a state.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.heads import check_heads
from plm_jax.models.layer_features import FEATURE_HEADS, LayerFeatures, Pooling
from plm_jax.models.layers import Embedding, Linear, redrawn, scores
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.nnlm import BiasedOutput
from plm_jax.models.parameters import Role, linear_rows
from plm_jax.models.recording import record_input
from plm_jax.models.recurrent import LSTMState, ProjectedLSTM, document_begins
from plm_jax.placement import split_rows

if TYPE_CHECKING:
  from plm_jax.data.tokenizers import Tokenizer
  from plm_jax.data.vocab import Vocab

# Characters are the bytes of a token, and (bilm/data.py, `UnicodeCharsVocabulary`):
BEGIN_TEXT, END_TEXT, BEGIN, END, PAD = 256, 257, 258, 259, 260
CHARACTERS = 262  # each plus one; 0 is the padding of a row
FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elmo(SingleModel):
  """A bidirectional language model over characters; the defaults are the released model's.

  width: of a token and of the projected output of each direction. cell: units of an LSTM.
  filters: (width, number) of every convolution. longest: characters of a token, its begin and end
  included. clip: of memory cells and of projected outputs. residual: from the second layer on.
  reader: units in each direction of an LSTM between the mix of layers and the heads of a task; 0 is
  none. classifier: what the head `classes` reads, the mean or the maximum over the tokens.
  classifier_dropout: of the mix and before the heads; None is `dropout`.
  """

  layers: int = 2
  width: int = 512
  cell: int = 4096
  character_width: int = 16
  filters: tuple[tuple[int, int], ...] = FILTERS
  highways: int = 2
  longest: int = 50
  clip: float = 3.0
  residual: bool = True
  vocab_size: int | None = None
  positions: int = 1024
  dropout: float = 0.1
  reader: int = 0
  classifier: Pooling = "mean"
  classifier_dropout: float | None = None

  def __post_init__(self):
    names = ("layers", "width", "cell", "character_width", "longest", "vocab_size", "positions")
    refuse_below(self, 1, *names)
    refuse_below(self, 0, "highways", "reader")
    refuse_rates(self, "dropout", "classifier_dropout")
    widest = max((width for width, _ in self.filters), default=0)
    if not 1 <= widest <= self.longest or min(min(pair) for pair in self.filters) < 1:
      raise UserError(
        f"model.filters={self.filters} must be pairs (width, number), of widths from 1 to "
        f"model.longest={self.longest}"
      )
    if self.clip <= 0:
      raise UserError(f"model.clip={self.clip} must be above 0")

  @property
  def frozen(self) -> tuple[str, ...]:
    return ("characters/*",)

  @property
  def features(self) -> tuple[str, ...]:
    """Path patterns of the parameters that fine-tuning leaves as they are."""
    return ("tokens/*", "forward/*", "backward/*")

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> ElmoModel:
    """Random parameters with the named heads: `bilm` and `span` (size 0), `classes` and
    `token_classes` (number of labels). Tokens are empty: `spelled` gives them characters."""
    check_heads(self, heads, ElmoModel.HEADS, "an ELMo", " (bilm is for the objective BiLM)")
    drawn = jax.random.fold_in(key, 1)
    return redrawn(ElmoModel(self, key, heads), drawn, _draw)


def _draw(key, path: str, role: Role, leaf: jax.Array) -> jax.Array:
  """Normal with the variance 1 / fan-in; characters uniform in [-1, 1], as in bilm-tf."""
  if path.endswith("characters/table"):
    return leaf
  if path.endswith("character/table"):
    return jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1)
  inputs = leaf.shape[-1:] if role.kind == "table" else leaf.shape[: role.inputs]
  return math.prod(inputs) ** -0.5 * jax.random.normal(key, leaf.shape, leaf.dtype)


class States(NamedTuple):
  """layers_BTLD: the tokens twice, and both directions of every layer, side by side. forward_BTP,
  backward_BTP: the last layer with dropout, which predict the next and the previous token. real_BT:
  False at padding."""

  layers_BTLD: jax.Array
  forward_BTP: jax.Array
  backward_BTP: jax.Array
  real_BT: jax.Array


class Convolution(nnx.Module):
  """The largest answer of every filter of one width to the characters of a token."""

  def __init__(self, key, width: int, characters: int, number: int):
    self.filters = Linear(key, (width, characters), (number,))

  def __call__(self, x_NCE: jax.Array) -> jax.Array:
    """`[N, C, E] -> [N, filters]`."""
    width = self.filters.kernel.shape[0]
    places = x_NCE.shape[1] - width + 1
    windows_NCWE = jnp.stack([x_NCE[:, at : at + places] for at in range(width)], axis=2)
    return jax.nn.relu(self.filters(windows_NCWE).max(axis=1))


class Highway(nnx.Module):
  """A layer that at first carries most of its input (bias -2; Srivastava et al. 2015)."""

  def __init__(self, key, size: int):
    carry, transform = jax.random.split(key)
    self.carry = Linear(carry, (size,), (size,))
    self.carry.bias[...] = self.carry.bias[...] - 2.0
    self.transform = Linear(transform, (size,), (size,))

  def __call__(self, x: jax.Array) -> jax.Array:
    share = jax.nn.sigmoid(self.carry(x))
    return share * jax.nn.relu(self.transform(x)) + (1 - share) * x


class CharacterEncoder(nnx.Module):
  """Tokens from their characters."""

  def __init__(self, key, config: Elmo):
    c, size = config, sum(number for _, number in config.filters)
    character, project, *keys = jax.random.split(key, 2 + len(c.filters) + c.highways)
    self.character = Embedding(character, CHARACTERS, c.character_width)
    self.convolutions = nnx.List(
      Convolution(key, width, c.character_width, number)
      for key, (width, number) in zip(keys, c.filters)
    )
    self.highways = nnx.List(Highway(key, size) for key in keys[len(c.filters) :])
    self.project = Linear(project, (size,), (c.width,))

  def __call__(self, ids_NC: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int `[N, characters]` -> dtype `[N, D]`."""
    x_NCE = jnp.where(ids_NC[..., None] == 0, 0, self.character(ids_NC, dtype))
    x = jnp.concatenate([convolution(x_NCE) for convolution in self.convolutions], axis=-1)
    for highway in self.highways:
      x = highway(x)
    return self.project(x)


class ElmoModel(LayerFeatures):
  """The parameters of an ELMo and its forward pass."""

  HEADS: ClassVar = {"bilm": BiasedOutput, **FEATURE_HEADS}
  ROLES: ClassVar = {
    **LayerFeatures.ROLES,
    "characters/table": Role(("vocab", "positions"), "table", "embedding"),
    "character/table": Role(("classes", "features"), "table", "embedding"),
    **linear_rows("filters", "embedding", ("positions", "features"), ("features",)),
    **linear_rows("carry", "embedding", ("features",), ("features",)),
    **linear_rows("transform", "embedding", ("features",), ("features",)),
    **linear_rows("project", "embedding", ("features",), ("width",)),
    **linear_rows("input", "layer", ("width",), ("gates", "features")),
    **linear_rows("recurrent", "layer", ("width",), ("gates", "features")),
    **linear_rows("output", "layer", ("features",), ("width",)),
    "bilm/table": Role(("vocab", "width"), "table", "head"),
    "bilm/bias": Role(("vocab",), "bias", "head"),
  }

  def __init__(self, config: Elmo, key: jax.Array, heads: dict[str, int]):
    tokens, forward, backward, bilm = jax.random.split(key, 4)
    c = config
    self.config = config
    self.characters = Embedding(key, c.vocab_size, c.longest)
    self.characters.table = nnx.Param(jnp.full((c.vocab_size, c.longest), PAD + 1, jnp.int32))
    self.tokens = CharacterEncoder(tokens, c)
    self.forward, self.backward = (
      nnx.List(
        ProjectedLSTM(key, c.width, c.cell, c.width, c.clip)
        for key in jax.random.split(key, c.layers)
      )
      for key in (forward, backward)
    )
    self.make_heads(key, {"bilm": bilm}, heads)
    self.make_features(jax.random.fold_in(key, 0), heads)

  def spelled(self, tokenizer: Tokenizer) -> ElmoModel:
    """The model with the characters of a tokenizer's tokens."""
    self.characters.table[...] = jnp.asarray(spellings(tokenizer, self.config.longest))
    return self

  def carry(self, rows: int) -> LSTMState:
    """The state of the forward direction before any token, float32 `[B, L, P]` and `[B, L, U]`."""
    c = self.config
    h_BLP, c_BLU = (jnp.zeros((rows, c.layers, size)) for size in (c.width, c.cell))
    return LSTMState(h_BLP, c_BLU)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> States:
    """The states of every row, from a state of zeros.

    batch: `input_ids` int `[B, T]`, `length` int `[B]`; optional `document_ids` int `[B, T]`: both
    directions begin every document of a row with zeros too.
    """
    return self.continued(batch, compute, noise, self.carry(batch["input_ids"].shape[0]))[0]

  def encode(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The states of the last layer, both directions side by side, `[B, T, 2 P]`."""
    return self(batch, compute, noise).layers_BTLD[:, :, -1]

  def continued(
    self, batch: dict, compute: Compute, noise: Noise | None, carry: LSTMState
  ) -> tuple[States, LSTMState]:
    """`__call__` from the state `carry` of the forward direction, and the state after the batch."""
    real_BT = jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
    characters_BTC = self.characters.table[...][batch["input_ids"]]
    fresh = self.carry(real_BT.shape[0])
    begins_BT = None
    if "document_ids" in batch:
      begins_BT = document_begins(batch["document_ids"])
    states, (carry, _) = self.read(
      characters_BTC, real_BT, (carry, fresh), compute, noise, begins_BT
    )
    return states, carry

  def read(
    self, characters_BTC, real_BT, carries, compute: Compute, noise: Noise | None, begins_BT=None
  ):
    """The states of tokens given by their characters, and the states after them.

    carries: of the forward and of the backward direction, before the tokens that each reads first.
    begins_BT: bool, True at the first tokens of documents, which begin with a state of zeros.
    """
    dtype = compute.activation_dtype
    rows, length, longest = characters_BTC.shape
    x_BTD = self.tokens(characters_BTC.reshape(-1, longest), dtype).reshape(rows, length, -1)
    x_BTD = split_rows(x_BTD)
    layers, after, tops = [jnp.concatenate([x_BTD, x_BTD], axis=-1)], [], []
    sources = streams(noise, 2)
    begins_BT = jnp.zeros(real_BT.shape, bool) if begins_BT is None else begins_BT
    ends_BT = jnp.pad(begins_BT[:, 1:], ((0, 0), (0, 1)))
    for stack, carry, source, first_BT, reverse in (
      (self.forward, carries[0], sources[0], begins_BT, False),
      (self.backward, carries[1], sources[1], ends_BT, True),
    ):
      x, last, outputs = x_BTD, [], []
      in_layer = streams(source, len(stack) + 1)
      for number, layer in enumerate(stack):
        start = jax.tree.map(lambda s, l=number: s[:, l].astype(dtype), carry)
        y = dropout(x, self.config.dropout, in_layer[number])
        y, state = layer(y, real_BT, reverse, start, first_BT)
        x = x + y if self.config.residual and number else y
        last.append(state)
        outputs.append(x)
      after.append(jax.tree.map(lambda *s: jnp.stack(s, axis=1).astype(jnp.float32), *last))
      tops.append(dropout(x, self.config.dropout, in_layer[-1]))
      layers.append(outputs)
    both = [jnp.concatenate(pair, axis=-1) for pair in zip(*layers[1:], strict=True)]
    for x in (layers[0], *both[:-1]):
      record_input(x)
    layers_BTLD = jnp.stack([layers[0], *both], axis=2)
    return States(layers_BTLD, tops[0], tops[1], real_BT), tuple(after)

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., P] -> float32 [..., V]`: the scores of the next or of the previous token."""
    return scores(hidden, self.bilm.table[...]) + self.bilm.bias[...]

  def output_at(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 `[..., P]` and `[...]`: rows of the output's table, and their biases."""
    return self.bilm.table[ids], self.bilm.bias[ids]


def spellings(tokenizer: Tokenizer, longest: int) -> np.ndarray:
  """int32 `[V, longest]`: the characters of every token. Those that begin and end a text are one
  character each."""
  texts = [tokenizer.decode([i]) or tokenizer.token(i) for i in range(tokenizer.vocab.size)]
  table = characters_of(texts, longest)
  for ids, character in ((tokenizer.vocab.begin, BEGIN_TEXT), (tokenizer.vocab.end, END_TEXT)):
    for i in ids:
      table[i] = boundary(character, longest)
  return table


def characters_of(words: list[str], longest: int) -> np.ndarray:
  """int32 `[N, longest]`: the bytes of every word between its begin and end, plus one."""
  return np.stack([_padded(word.encode()[: longest - 2], longest) for word in words])


def boundary(character: int, longest: int) -> np.ndarray:
  """int32 `[longest]`: the characters of the token that begins or ends a text."""
  return _padded([character], longest)


def _padded(characters, longest: int) -> np.ndarray:
  row = np.full(longest, PAD, np.int32)
  row[: len(characters) + 2] = [BEGIN, *characters, END]
  return row + 1
