"""Input embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.attention import real_tokens
from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import NORMS, Embedding, Linear
from plm_jax.models.positions import document_positions
from plm_jax.placement import split_rows


class Embeddings(nnx.Module):
  """`dropout(norm(token + position + segment))` (BERT, section 3); rotary positions are not added.
  config: an `Encoder`; with its `embedding` the result is mapped from the tables' width E to D
  (ALBERT, section 3.1)."""

  def __init__(self, key, config: TransformerConfig):
    c, width = config, config.embedding or config.width
    token, position, segment = jax.random.split(key, 3)
    self.token = Embedding(token, c.vocab_size, width)
    rows, learned = c.positions + c.first_position, c.position == "learned"
    self.position = Embedding(position, rows, width) if learned else None
    self.segment = Embedding(segment, c.segments, width) if c.segments else None
    self.norm = NORMS[c.norm](width, c.norm_eps)
    project = jax.random.fold_in(key, 3)
    self.project = Linear(project, (width,), (c.width,)) if c.embedding else None
    self.first_position, self.dropout = c.first_position, c.dropout

  def __call__(self, batch: dict, dtype, noise: Noise | None) -> jax.Array:
    """`input_ids` and `segment_ids` int `[B, T]`, `length` int `[B]` -> `[B, T, D]` of `dtype`.

    A model with one row of segments adds it to every token (RoBERTa in transformers).
    """
    ids_BT = batch["input_ids"]
    x_BTE = split_rows(self.token(ids_BT, dtype))
    if self.position is not None:
      x_BTE += self.position(position_ids(batch, self.first_position), dtype)
    if self.segment is not None:
      x_BTE += self.segment(segment_ids(batch, self.segment.table.shape[0]), dtype)
    x_BTE = dropout(self.norm(x_BTE), self.dropout, noise)
    return x_BTE if self.project is None else self.project(x_BTE)


def position_ids(batch: dict, first: int) -> jax.Array:
  """int `[T]` counted from 0, or `[B, T]` counted from `first` with `first - 1` at padding (fairseq
  `make_positions`: [<s>, a, b, </s>, pad, pad] -> [2, 3, 4, 5, 1, 1]); or the batch's
  `position_ids`. With `document_ids` every document counts anew."""
  if "position_ids" in batch:
    return batch["position_ids"]
  column, real_BT = jnp.arange(batch["input_ids"].shape[1]), real_tokens(batch)
  if "document_ids" in batch:
    column = document_positions(batch["document_ids"])
  elif first and "attention_mask" in batch:
    column = jnp.cumsum(real_BT, axis=1) - 1
  if not first:
    return column
  return jnp.where(real_BT, column + first, first - 1)


def segment_ids(batch: dict, segments: int) -> jax.Array:
  """int `[B, T]`; all 0 if the model has one segment only."""
  return batch["segment_ids"] if segments > 1 else jnp.zeros_like(batch["input_ids"])
