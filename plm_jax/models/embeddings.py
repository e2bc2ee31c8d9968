"""Input embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import Embedding, LayerNorm, Linear


class Embeddings(nnx.Module):
  """`dropout(norm(token + position + segment))` with learned positions (BERT, section 3), mapped
  from the width E of the tables to D where `embedding` is given (ALBERT, section 3.1)."""

  def __init__(
    self,
    key,
    *,
    vocab_size,
    positions,
    segments,
    width,
    eps,
    dropout,
    first_position=0,
    embedding=None,
  ):
    token, position, segment = jax.random.split(key, 3)
    tables = embedding or width
    self.token = Embedding(token, vocab_size, tables)
    self.position = Embedding(position, positions + first_position, tables)
    self.segment = Embedding(segment, segments, tables) if segments else None
    self.norm = LayerNorm(tables, eps)
    self.project = Linear(jax.random.fold_in(key, 3), (embedding,), (width,)) if embedding else None
    self.first_position, self.dropout = first_position, dropout

  def __call__(self, batch: dict, dtype, noise: Noise | None) -> jax.Array:
    """`input_ids` and `segment_ids` int `[B, T]`, `length` int `[B]` -> `[B, T, D]` of `dtype`.

    `position_ids` in the batch overrule what positions the rows would get.
    A model with one row of segments adds it to every token (RoBERTa in transformers).
    """
    ids_BT = batch["input_ids"]
    x_BTE = self.token(ids_BT, dtype)
    x_BTE += self.position(_position_ids(batch, self.first_position), dtype)
    if self.segment is not None:
      x_BTE += self.segment(segment_ids(batch, self.segment.table.shape[0]), dtype)
    x_BTE = dropout(self.norm(x_BTE), self.dropout, noise)
    return x_BTE if self.project is None else self.project(x_BTE)


def position_ids(length_B: jax.Array, positions: int, first: int) -> jax.Array:
  """int `[T]` counted from 0, or `[B, T]` counted from `first` with `first - 1` at padding (fairseq
  `make_positions`: [<s>, a, b, </s>, pad, pad] -> [2, 3, 4, 5, 1, 1])."""
  column = jnp.arange(positions)
  if not first:
    return column
  return jnp.where(column < length_B[:, None], column + first, first - 1)


def _position_ids(batch: dict, first: int) -> jax.Array:
  if "position_ids" in batch:
    return batch["position_ids"]
  if first and "attention_mask" in batch:
    real_BT = batch["attention_mask"].astype(jnp.int32)
    return jnp.cumsum(real_BT, axis=1) * real_BT + first - 1
  return position_ids(batch["length"], batch["input_ids"].shape[1], first)


def segment_ids(batch: dict, segments: int) -> jax.Array:
  """int `[B, T]`; all 0 where the model knows one segment only."""
  return batch["segment_ids"] if segments > 1 else jnp.zeros_like(batch["input_ids"])
