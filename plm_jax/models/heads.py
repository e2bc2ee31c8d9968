"""Heads: the layers that read a model's last states, one class for each.

`Head(key, config, size)` makes a head; size is the number of labels of a head with labels. A new
head is a class here, an entry in the `Heads` of each kind of model that may have it, and rows for
its parameters in `parameters.ROLES`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.activations import activate
from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import NORMS, Embedding, Linear, scores
from plm_jax.models.model import Model


class MaskedLMHead(nnx.Module):
  """Token scores from hidden states: dense, activation, norm, then the tied token table and a bias
  (google-research/bert, run_pretraining.py `get_masked_lm_output`). With factorised embeddings the
  dense layer maps D to their width E (google-research/albert, run_pretraining.py). config: an
  `Encoder`."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    c, width = config, config.embedding or config.width
    decoder = jax.random.fold_in(key, 1)
    self.decoder = None if c.tied else Embedding(decoder, c.vocab_size, width)
    self.dense = Linear(key, (c.width,), (width,), c.head_bias)
    self.norm = NORMS[c.norm](width, c.norm_eps)
    self.bias = nnx.Param(jnp.zeros((c.vocab_size,)))
    self.activation = c.head_activation or c.activation

  def __call__(self, x: jax.Array, table_VE: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`."""
    table_VE = table_VE if self.decoder is None else self.decoder.table[...]
    x = self.norm(activate(self.dense(x), self.activation))
    return scores(x, table_VE) + self.bias[...]


class OutputTable(Embedding):
  """The output's table `[V, D]` of a left-to-right model that is not tied."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    super().__init__(key, config.vocab_size, config.width)


class ReplacedHead(nnx.Module):
  """Dense, activation, and one score (google-research/electra, run_pretraining.py
  `_get_discriminator_output`)."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    dense, score = jax.random.split(key)
    self.dense = Linear(dense, (config.width,), (config.width,))
    self.score = Linear(score, (config.width,), (1,))
    self.activation = config.activation

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """`[B, T, D] -> float32 [B, T]`."""
    return self.score(activate(self.dense(x_BTD), self.activation))[..., 0].astype(jnp.float32)


class Pooler(Linear):
  """The dense layer on the state of one token, before the heads that read whole rows."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    super().__init__(key, (config.width,), (config.width,))


class PairHead(Linear):
  """Two scores of a pair of segments, from the pooled state."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    super().__init__(key, (config.width,), (2,))


class Labels(Linear):
  """A score for each label, for a row or for every token."""

  def __init__(self, key, config: TransformerConfig, size: int, bias: bool = True):
    super().__init__(key, (config.width,), (size,), bias)


class Span(Linear):
  """Two scores of every token: that an answer starts there, and that it ends there."""

  def __init__(self, key, config: TransformerConfig, size: int = 0):
    super().__init__(key, (config.width,), (2,))


class PairLabels(Linear):
  """A score for each label of two texts, from [u, v, |u - v|] of their vectors (Sentence-BERT)."""

  def __init__(self, key, config: TransformerConfig, size: int):
    super().__init__(key, (3 * config.width,), (size,))


Heads = Mapping[str, Callable[..., nnx.Module]]
TUNED: Heads = {  # by fine-tuning
  "classes": Labels,
  "token_classes": Labels,
  "span": Span,
  "pair_classes": PairLabels,
}
ENCODER_HEADS: Heads = {
  "mlm": MaskedLMHead,
  "nsp": PairHead,
  "sop": PairHead,
  "rtd": ReplacedHead,
  **TUNED,
  "pooler": Pooler,
}
LM_HEADS: Heads = {"lm": OutputTable, **TUNED}
# GPT-1's code has a bias on its classes, the paper (section 3.2) has none.
DECODER_HEADS: Heads = {**LM_HEADS, "classes": partial(Labels, bias=False)}
# Streams of random numbers; the stream of any other head is the checksum of its name.
_STREAMS = {"rtd": 8, "token_classes": 9, "span": 10}


def check_heads(
  config: Model, heads: Collection[str], known: Heads, owner: str, note: str = ""
) -> None:
  """Errors: `UserError` naming a head that no model of this kind has; `ValueError` while the
  config's `vocab_size` is None. note: on the known heads."""
  if config.vocab_size is None:
    raise ValueError("vocab_size is not resolved: Experiment.resolve fills it from the tokenizer")
  for name in sorted(set(heads) - set(known)):
    raise UserError(f"{owner} has no head {name!r}; it has {', '.join(known)}{note}")


class HeadedModel(nnx.Module):
  """A model with a `config` and heads: an attribute for each name in `HEADS`, None if the model
  lacks that head."""

  HEADS: Heads

  def make_heads(self, key: jax.Array, keys: dict[str, jax.Array], heads: dict[str, int]) -> None:
    """Sets the heads, each from its key in `keys` or from a stream of `key`."""
    made = {}
    for name, size in heads.items():
      if name == "lm" and self.config.tied:
        continue
      stream = _STREAMS.get(name, zlib.crc32(name.encode()))
      head_key = keys[name] if name in keys else jax.random.fold_in(key, stream)
      made[name] = self.HEADS[name](head_key, self.config, size)
    self.set_heads(made)

  def set_heads(self, made: dict[str, nnx.Module]) -> None:
    for name in self.HEADS:
      setattr(self, name, made.get(name))

  def encoder(self) -> Self:
    return self

  def masked_lm(self) -> HeadedModel | None:
    return None

  def token_logits_at(self, hidden_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """float32 `[B, P, V]` at the given positions only."""
    return self.token_logits(jnp.take_along_axis(hidden_BTD, positions_BP[..., None], axis=1))

  def token_class_logits(
    self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None
  ) -> jax.Array:
    """float32 `[B, T, classes]` (BERT, section 5.3)."""
    hidden_BTD = dropout(hidden_BTD, self.classifier_dropout, noise)
    return self.token_classes(hidden_BTD).astype(jnp.float32)

  def span_logits(self, hidden_BTD: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """float32 `[B, T]` each: scores of an answer's start and end (BERT, section 4.2)."""
    logits_BT2 = self.span(hidden_BTD).astype(jnp.float32)
    return logits_BT2[..., 0], logits_BT2[..., 1]

  @property
  def classifier_dropout(self) -> float:
    """The dropout rate before the head `classes`."""
    rate = self.config.classifier_dropout
    return self.config.dropout if rate is None else rate


class LanguageModel(HeadedModel):
  """A model that predicts the next token by its token table or by the table of its head `lm`."""

  def output_table(self) -> jax.Array:
    """float32 `[V, D]`."""
    return (self.token if self.lm is None else self.lm).table[...]

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    """`[..., D] -> float32 [..., V]`: the scores of the next token."""
    return scores(hidden, self.output_table())

  def class_logits(self, hidden_BTD: jax.Array, batch: dict, noise: Noise | None) -> jax.Array:
    """float32 `[B, classes]` from the state of a row's last token, the only one that has read all
    (GPT-1, section 3.2)."""
    state_BD = state_at(hidden_BTD, batch["length"] - 1)
    return self.classes(dropout(state_BD, self.classifier_dropout, noise)).astype(jnp.float32)


def state_at(hidden_BTD: jax.Array, position_B: jax.Array) -> jax.Array:
  """`[B, D]`: the state at one position of each row."""
  return jnp.take_along_axis(hidden_BTD, position_B[:, None, None], axis=1)[:, 0]
