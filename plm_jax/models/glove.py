"""GloVe (Pennington et al. 2014): two vectors and two biases for every word, whose product is the
logarithm of how often two words occur together.

As in the published code (stanfordnlp/GloVe 52f7dbc, glove.c) all begin uniformly within +- 0.5 / D,
and the vector of a word is the sum of both.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.models.heads import check_heads
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.parameters import Role
from plm_jax.models.word_vectors import HEADS, StaticModel, VectorTable

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glove(SingleModel):
  """GloVe's vectors. positions: any row is allowed."""

  width: int = 100
  vocab_size: int | None = None
  positions: int = 2**15
  dropout: float = 0.0
  classifier_dropout: float | None = None

  def __post_init__(self):
    refuse_below(self, 1, "width", "vocab_size", "positions")
    refuse_rates(self, "dropout", "classifier_dropout")

  def init(self, key: jax.Array, heads: dict[str, int]) -> GloveModel:
    """Random parameters. heads: `classes` and `token_classes` for fine-tuning."""
    check_heads(self, heads, HEADS, "a table of word vectors")
    return GloveModel(self, key, heads)

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """None: a text is its words."""
    del vocab
    return [], []


class GloveModel(StaticModel):
  """w (token) and w~ (context), with their biases as tables of width 1."""

  ROLES: ClassVar = {
    "context/table": Role(("vocab", "width"), "table", "embedding"),
    "token_bias/table": Role(("vocab", "classes"), "table", "embedding"),
    "context_bias/table": Role(("vocab", "classes"), "table", "embedding"),
  }

  def __init__(self, config: Glove, key: jax.Array, heads: dict[str, int]):
    keys, c = jax.random.split(key, 4), config
    self.config = config
    self.token = VectorTable(keys[0], c.vocab_size, c.width, 0.5)
    self.context = VectorTable(keys[1], c.vocab_size, c.width, 0.5)
    self.token_bias = VectorTable(keys[2], c.vocab_size, 1, 0.5 / c.width)
    self.context_bias = VectorTable(keys[3], c.vocab_size, 1, 0.5 / c.width)
    self.make_heads(key, {}, heads)

  def log_counts(self, hidden_BTD: jax.Array, batch: dict) -> jax.Array:
    """float32 `[B, T]`: w . w~ + b + b~ of the pairs (`input_ids`, `context_ids`)."""
    context_BTD = self.context(batch["context_ids"]).astype(hidden_BTD.dtype)
    product_BT = (hidden_BTD * context_BTD).sum(-1).astype(jnp.float32)
    biases = self.token_bias(batch["input_ids"]) + self.context_bias(batch["context_ids"])
    return product_BT + biases[..., 0]

  def touched(self, batch: dict) -> dict[str, jax.Array]:
    """The rows of each table that a batch reads: path -> int `[B, ...]`."""
    if "context_ids" not in batch:
      return {"token/table": batch["input_ids"]}
    token, context = batch["input_ids"], batch["context_ids"]
    tables = {"token": token, "token_bias": token, "context": context, "context_bias": context}
    return {f"{name}/table": ids for name, ids in tables.items()}

  def word_rows(self) -> tuple[np.ndarray, None]:
    """w + w~, as the published code writes it."""
    return np.asarray(self.token.table[...] + self.context.table[...]), None
