"""The neural probabilistic language model (Bengio et al. 2003): the next token from the last n - 1.

    x = (C(w_t), ..., C(w_{t-n+2}))        y = b + W x + U tanh(d + H x)

W are the direct connections. U and W are one table `lm` over `(tanh(d + H x), x)`. Before the
beginning of a row or a document, C is zero; the paper's text has no beginning.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.heads import LM_HEADS, LanguageModel, OutputTable, check_heads
from plm_jax.models.layers import STDDEV, Embedding, Linear, scaled_kernels, scores
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.parameters import Role, linear_rows
from plm_jax.placement import split_rows

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab

NONE = -1  # the token before the first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nnlm(SingleModel):
  """A feed-forward language model.

  order: n, the tokens of a context and the next one. features: m, of a token. hidden: h, units; 0
  leaves only the direct connections. direct: W. positions: longest row.
  classifier_dropout: before the head `classes`; None is `dropout`.
  """

  order: int = 5
  features: int = 60
  hidden: int = 50
  direct: bool = True
  vocab_size: int | None = None
  positions: int = 1024
  dropout: float = 0.0
  classifier_dropout: float | None = None
  initializer_range: float = 0.1

  tied: ClassVar[bool] = False

  def __post_init__(self):
    refuse_below(self, 1, "features", "vocab_size", "positions")
    refuse_below(self, 2, "order")
    refuse_below(self, 0, "hidden")
    refuse_rates(self, "dropout", "classifier_dropout")
    if not self.hidden and not self.direct:
      raise UserError("model.hidden=0 without model.direct has no weights between input and output")
    if not 0 < self.initializer_range < math.inf:
      raise UserError(
        f"model.initializer_range={self.initializer_range} must be above 0 and finite"
      )

  @property
  def width(self) -> int:
    """Of the states that the output table reads."""
    return self.hidden + self.direct * (self.order - 1) * self.features

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """The tokens for begin and end that the vocabulary has."""
    return vocab.begin, vocab.end

  def init(self, key: jax.Array, heads: dict[str, int]) -> NnlmModel:
    """Random parameters with the named heads: `lm` and `span` (size 0), `classes` and
    `token_classes` (number of labels)."""
    note = " (lm is for the objective CLM)"
    check_heads(self, heads, LM_HEADS, "a feed-forward language model", note)
    return scaled_kernels(NnlmModel(self, key, heads), self.initializer_range / STDDEV)


class BiasedOutput(OutputTable):
  """U and W as one table, and b."""

  def __init__(self, key, config: Nnlm, size: int = 0):
    super().__init__(key, config)
    self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))


class NnlmModel(LanguageModel):
  """The parameters of a feed-forward language model and its forward pass."""

  HEADS: ClassVar = {**LM_HEADS, "lm": BiasedOutput}
  ROLES: ClassVar = {
    **linear_rows("hidden", "layer", ("features",), ("width",)),
    "lm/bias": Role(("vocab",), "bias", "head"),
  }

  def __init__(self, config: Nnlm, key: jax.Array, heads: dict[str, int]):
    token, hidden, lm, classes = jax.random.split(key, 4)
    self.config = config
    self.token = Embedding(token, config.vocab_size, config.features)
    inputs = (config.order - 1) * config.features
    self.hidden = Linear(hidden, (inputs,), (config.hidden,)) if config.hidden else None
    self.make_heads(key, {"lm": lm, "classes": classes}, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """`[B, T, h + (n - 1) m]` in `compute.activation_dtype`: the hidden units and the features of
    the context, which the output reads.

    batch: `input_ids` int `[B, T]`; optional `document_ids` int `[B, T]`: no context reaches beyond
    its document.
    """
    ids_BT = batch["input_ids"]
    before = jnp.full((len(ids_BT), self.config.order - 2), NONE, ids_BT.dtype)
    return self.read(ids_BT, before, batch.get("document_ids"), compute, noise)

  def read(self, ids_BT, before_BK, document_BT, compute: Compute, noise) -> jax.Array:
    """`__call__` after the n - 2 tokens `before`, NONE where there are none."""
    length, past = ids_BT.shape[1], self.config.order - 2
    known_BS = jnp.concatenate([before_BK, ids_BT], axis=1)
    table_BSM = self.token(jnp.maximum(known_BS, 0), compute.activation_dtype)
    table_BSM = jnp.where(known_BS[..., None] == NONE, 0, split_rows(table_BSM))
    parts = []
    for back in range(self.config.order - 1):
      features = table_BSM[:, past - back : past - back + length]
      if document_BT is not None and back:
        same = document_BT[:, back:] == document_BT[:, :-back]
        same = jnp.pad(same, ((0, 0), (length - same.shape[1], 0)))
        features = jnp.where(same[..., None], features, 0)
      parts.append(features)
    x_BTF = jnp.concatenate(parts, axis=-1)
    states = [jnp.tanh(self.hidden(x_BTF))] if self.config.hidden else []
    states += [x_BTF] if self.config.direct else []
    return dropout(split_rows(jnp.concatenate(states, axis=-1)), self.config.dropout, noise)

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., h + (n - 1) m] -> float32 [..., V]`: the scores of the next token."""
    return scores(hidden, self.output_table()) + self.lm.bias[...]

  def generator(self, compute: Compute, rows: int = 1) -> NnlmGenerator:
    del rows
    return NnlmGenerator(self, compute)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NnlmCache:
  """before_BK: the last n - 2 tokens. pad_B: padding columns before each prompt. at: columns read
  so far, int32 `[]`."""

  before_BK: jax.Array
  pad_B: jax.Array
  at: jax.Array

  def take(self, rows=None, *, same_prompts: bool = False, capacity: int | None = None):
    del same_prompts, capacity
    return self if rows is None else NnlmCache(self.before_BK[rows], self.pad_B[rows], self.at)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NnlmGenerator:
  """A feed-forward language model made ready for generation (plm_jax/decode/generator.py)."""

  model: NnlmModel
  compute: Compute = dataclasses.field(metadata={"static": True})

  def start(self, batch: dict, capacity: int) -> NnlmCache:
    del capacity
    pad_B, past = jnp.asarray(batch["pad"]), self.model.config.order - 2
    before_BK = jnp.full((len(pad_B), past), NONE, jnp.int32)
    return NnlmCache(before_BK, pad_B, jnp.zeros((), jnp.int32))

  def extend(self, ids_BT: jax.Array, cache: NnlmCache) -> tuple[jax.Array, NnlmCache]:
    length, past = ids_BT.shape[1], self.model.config.order - 2
    real_BT = cache.at + jnp.arange(length) >= cache.pad_B[:, None]
    ids_BT = jnp.where(real_BT, ids_BT, NONE).astype(jnp.int32)
    known_BS = jnp.concatenate([cache.before_BK, ids_BT], axis=1)
    wanted = min(length + past, past + 1)  # the last token and those before it
    last_BS = known_BS[:, known_BS.shape[1] - wanted :]
    state = self.model.read(last_BS[:, -1:], last_BS[:, :-1], None, self.compute, None)
    before_BK = known_BS[:, known_BS.shape[1] - past :]
    return self.model.token_logits(state[:, -1]), NnlmCache(
      before_BK, cache.pad_B, cache.at + length
    )
