"""Static word vectors: word2vec (Mikolov et al. 2013) and fastText (Bojanowski et al. 2017).

There is no hidden layer: a word is a row of a table, with fastText the mean of its row and those of
its n-grams. The output table has a row for every word, or with hierarchical softmax for every inner
node of the Huffman tree.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.heads import HeadedModel, Heads, Labels, check_heads
from plm_jax.models.model import SingleModel, refuse_below, refuse_rates
from plm_jax.models.parameters import Role, path_name

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab

HEADS: Heads = {"classes": Labels, "token_classes": Labels}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordVectors(SingleModel):
  """word2vec or fastText.

  buckets: rows of n-grams, those of `data.tokenizer.buckets`; 0 is word2vec. word_ngrams: with
  buckets, the head `classes` also reads the n-grams of up to this many words, and of characters if
  the tokenizer has them (fastText's `wordNgrams`); 0 reads words alone. scale: the input
  tables begin uniformly within +- scale / width, 0.5 in word2vec.c and 1 in fastText; the output
  table begins at 0. positions: any row is allowed.
  """

  width: int = 100
  vocab_size: int | None = None
  buckets: int = 0
  word_ngrams: int = 0
  scale: float = 0.5
  positions: int = 2**15
  dropout: float = 0.0
  classifier_dropout: float | None = None

  def __post_init__(self):
    refuse_below(self, 1, "width", "vocab_size", "positions")
    refuse_below(self, 0, "buckets", "scale", "word_ngrams")
    if self.word_ngrams and not self.buckets:
      raise UserError(f"model.word_ngrams={self.word_ngrams} needs model.buckets above 0")
    refuse_rates(self, "dropout", "classifier_dropout")

  def init(self, key: jax.Array, heads: dict[str, int]) -> WordVectorsModel:
    """Random parameters. heads: `classes` and `token_classes` for fine-tuning."""
    check_heads(self, heads, HEADS, "a table of word vectors")
    return WordVectorsModel(self, key, heads)

  def text_frame(self, vocab: Vocab) -> tuple[list[int], list[int]]:
    """None: a text is its words."""
    del vocab
    return [], []

  def separator(self, vocab: Vocab) -> list[int]:
    return vocab.end


class VectorTable(nnx.Module):
  """A table `[V, D]`, uniform within +- `scale / D`."""

  def __init__(self, key, size: int, width: int, scale: float):
    bound = scale / width
    self.table = nnx.Param(jax.random.uniform(key, (size, width), minval=-bound, maxval=bound))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """float32 `[..., D]`. In a step that updates touched rows alone, the table is these rows
    (plm_jax/train/touched.py)."""
    table = self.table[...]
    return table if table.ndim > 2 else table[ids]


class StaticModel(HeadedModel):
  """A model whose state of a token does not depend on its context."""

  HEADS = HEADS

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The vectors of the tokens `[B, T, D]` in `compute.activation_dtype`."""
    del noise
    return self.token(batch["input_ids"]).astype(compute.activation_dtype)

  def word_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
    """The words' rows float32 [V, D], and those of n-grams [buckets, D], None without."""
    return np.asarray(self.token.table[...]), None

  def with_token_table(self, table: np.ndarray) -> Self:
    """The model with another token table."""
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: table if path_name(path) == "token/table" else leaf, self
    )

  @staticmethod
  def mean_of_sum(sum_D: jax.Array, count: jax.Array) -> jax.Array:
    """sum / count, with the gradient of the sum: word2vec.c and fastText average the rows of an
    input and add the whole gradient to each of them."""
    mean_D = sum_D / jnp.maximum(count, 1).astype(sum_D.dtype)
    return sum_D + jax.lax.stop_gradient(mean_D - sum_D)

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the mean of the words, as fastText's classifier."""
    real_BT1 = (jnp.arange(hidden_BTD.shape[1]) < batch["length"][:, None])[..., None]
    mean_BD = (hidden_BTD * real_BT1).sum(1) / jnp.maximum(batch["length"], 1)[:, None]
    return self.classes(dropout(mean_BD, self.classifier_dropout, noise)).astype(jnp.float32)


class WordVectorsModel(StaticModel):
  """The parameters of word2vec or fastText."""

  ROLES: ClassVar = {
    "output/table": Role(("vocab", "width"), "table", "end"),
    "subword/table": Role(("positions", "width"), "table", "embedding"),
  }

  def __init__(self, config: WordVectors, key: jax.Array, heads: dict[str, int]):
    token, subword = jax.random.split(key)
    c = config
    self.config = config
    self.token = VectorTable(token, c.vocab_size, c.width, c.scale)
    self.output = VectorTable(key, c.vocab_size, c.width, 0.0)
    self.subword = VectorTable(subword, c.buckets, c.width, c.scale) if c.buckets else None
    self.make_heads(key, {}, heads)

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """The vectors of the words `[B, T, D]`. With `ngrams` int `[B, F]` in the batch, and
    `ngram_word` int `[B, F]` (the position of the word of each; T: none), the means of the words'
    rows and their n-grams'."""
    x_BTD = super().__call__(batch, compute, noise)
    if "ngrams" not in batch:
      return x_BTD
    word_BF = batch["ngram_word"]
    row_B1 = jnp.arange(len(word_BF))[:, None]
    rows_BFD = self.subword(batch["ngrams"]).astype(x_BTD.dtype)
    sum_BTD = x_BTD.at[row_B1, word_BF].add(rows_BFD, mode="drop")
    count_BT = jnp.ones(x_BTD.shape[:2]).at[row_B1, word_BF].add(1.0, mode="drop")
    return self.mean_of_sum(sum_BTD, count_BT[..., None])

  def touched(self, batch: dict) -> dict[str, jax.Array]:
    """The rows of each table that a batch reads: path -> int `[B, ...]`."""
    paths = {"token": "input_ids", "output": "outputs", "subword": "ngrams"}
    return {f"{path}/table": batch[name] for path, name in paths.items() if name in batch}

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]`. With `bag` int `[B, F]` in the batch, the rows of n-grams (-1: none),
    from the mean of all rows of words and n-grams (fastText, model.cc `computeHidden`)."""
    if "bag" not in batch:
      return super().class_logits(hidden_BTD, batch, noise)
    real_BF, length_B = batch["bag"] >= 0, batch["length"]
    rows_BFD = self.subword(jnp.maximum(batch["bag"], 0)).astype(hidden_BTD.dtype)
    real_BT = jnp.arange(hidden_BTD.shape[1]) < length_B[:, None]
    sum_BD = (hidden_BTD * real_BT[..., None]).sum(1) + (rows_BFD * real_BF[..., None]).sum(1)
    mean_BD = sum_BD / jnp.maximum(length_B + real_BF.sum(1), 1)[:, None]
    return self.classes(dropout(mean_BD, self.classifier_dropout, noise)).astype(jnp.float32)

  def word_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
    rows, _ = super().word_rows()
    return rows, None if self.subword is None else np.asarray(self.subword.table[...])

  def output_rows(self) -> np.ndarray:
    """float32 [V, D]: the output table."""
    return np.asarray(self.output.table[...])
