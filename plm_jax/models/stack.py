"""One side of an encoder-decoder: embedding, layers, and the last norm."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.layer_loop import run_blocks, stack
from plm_jax.models.layers import NORMS, Embedding
from plm_jax.models.positions import sinusoids
from plm_jax.models.relative import RelativeBias
from plm_jax.models.transformer import AttentionContext, make_block
from plm_jax.placement import split_rows


class Stack(nnx.Module):
  """The layers of one side of an `EncoderDecoder`.

  side: `encoder` or `decoder`, whose sizes may differ. cross: whether there is cross-attention.
  bidirectional: whether relative positions distinguish sources before and after the target.
  blocks: False if the stack runs the layers of another stack.
  """

  def __init__(
    self,
    config: TransformerConfig,
    key,
    side: str,
    *,
    cross: bool,
    bidirectional: bool,
    blocks=True,
  ):
    c = config.decoder_side if side == "decoder" else config
    in_position, in_relative, in_blocks = jax.random.split(key, 3)
    self.config, self.layers = c, c.layers
    rows = c.positions + c.first_position
    self.position = Embedding(in_position, rows, c.width) if c.position == "learned" else None
    relative = c.relative_buckets, c.relative_distance, c.heads, bidirectional
    self.bias = RelativeBias(in_relative, *relative) if c.position == "relative" else None
    norm = partial(NORMS[c.norm], c.width, c.norm_eps)
    self.embed_norm = norm() if c.embedding_norm else None
    make = partial(make_block, config=c, cross=cross)
    self.blocks = stack(in_blocks, c.layers, make) if blocks else None
    self.norm = norm() if c.norm_at == "pre" else None

  def embed(self, x_BTD: jax.Array, position_ids, noise: Noise | None) -> jax.Array:
    """`dropout(norm(scale * token + position))`; scale, position and norm depend on the config.
    position_ids: int `[T]` or `[B, T]`, counted from 0."""
    c, x_BTD = self.config, split_rows(x_BTD)
    if c.embedding_scale:
      x_BTD = x_BTD * jnp.asarray(math.sqrt(c.width), x_BTD.dtype)
    if c.position == "learned":
      x_BTD = x_BTD + self.position(position_ids + c.first_position, x_BTD.dtype)
    elif c.position == "sinusoidal":
      rows = sinusoids(position_ids + c.first_position, c.width)
      x_BTD = x_BTD + rows.astype(x_BTD.dtype)
    if self.embed_norm is not None:
      x_BTD = self.embed_norm(x_BTD)
    return dropout(x_BTD, c.dropout, noise)

  def finish(self, x_BTD: jax.Array, noise: Noise | None) -> jax.Array:
    """The last norm and dropout, if the config has them."""
    x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
    return dropout(x_BTD, self.config.dropout, noise) if self.config.final_dropout else x_BTD

  def context(self, mask: jax.Array, position_ids: jax.Array, **others) -> AttentionContext:
    """The context of a row that begins at position 0."""
    bias = None if self.bias is None else self.bias(position_ids.shape[-1], mask.shape[-1])
    return AttentionContext.from_config(self.config, mask, position_ids, score_bias=bias, **others)

  def run(
    self, x_BTD, position_ids, context: AttentionContext, compute, noise, blocks=None
  ) -> jax.Array:
    """From embedded tokens to the last states. blocks: the layers of another stack, if shared."""
    in_embed, in_blocks, at_end = streams(noise, 3)
    x_BTD = self.embed(x_BTD, position_ids, in_embed)
    blocks = self.blocks if blocks is None else blocks
    x_BTD = run_blocks(blocks, self.layers, x_BTD, context, compute, in_blocks)
    return self.finish(x_BTD, at_end)
