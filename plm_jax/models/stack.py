"""One side of an encoder-decoder: its layers with what stands before and behind them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import Embedding, LayerNorm, RMSNorm
from plm_jax.models.model import Model
from plm_jax.models.positions import sinusoids
from plm_jax.models.relative import RelativeBias
from plm_jax.models.transformer import (
  AttentionContext,
  PostNormBlock,
  PreNormBlock,
  run_blocks,
  stack,
  streams,
)


class Stack(nnx.Module):
  """The layers of one side of an `EncoderDecoder`.

  side: `encoder` or `decoder`, whose sizes may differ. cross: whether it reads another stack.
  bidirectional: whether relative positions tell sources before a target from those after it.
  blocks: whether it has layers of its own, or is run with those of another stack.
  """

  def __init__(
    self, config: Model, key, side: str, *, cross: bool, bidirectional: bool, blocks=True
  ):
    c, decodes = config, side == "decoder"
    in_position, in_relative, in_blocks = jax.random.split(key, 3)
    heads = (decodes and c.decoder_heads) or c.heads
    hidden = (decodes and c.decoder_hidden) or c.hidden or 4 * c.width
    self.config, self.layers = config, (decodes and c.decoder_layers) or c.layers
    rows = c.positions + c.first_position
    self.position = Embedding(in_position, rows, c.width) if c.position == "learned" else None
    self.bias = (
      RelativeBias(in_relative, c.relative_buckets, c.relative_distance, heads, bidirectional)
      if c.position == "relative"
      else None
    )
    normed = LayerNorm if c.norm == "layer" else RMSNorm
    self.embed_norm = normed(c.width, c.norm_eps) if c.embedding_norm else None
    block = PreNormBlock if c.norm_at == "pre" else PostNormBlock
    make = lambda key: block(  # noqa: E731
      key,
      width=c.width,
      heads=heads,
      head_width=c.head_width,
      hidden=hidden,
      activation=c.activation,
      gated=c.gated,
      norm=c.norm,
      eps=c.norm_eps,
      bias=c.attention_bias,
      feed_forward_bias=c.feed_forward_bias,
      scale=c.attention_scale,
      cross=cross,
      dropout=c.dropout,
      attention_dropout=c.attention_dropout,
      inner_dropout=c.hidden_dropout,
    )
    self.blocks = stack(in_blocks, self.layers, make) if blocks else None
    self.norm = normed(c.width, c.norm_eps) if c.norm_at == "pre" else None

  def embed(self, x_BTD: jax.Array, position_ids, noise: Noise | None) -> jax.Array:
    """`dropout(norm(scale * token + position))`, as far as there are any. position_ids: int
    `[T]` or `[B, T]`, counted from 0."""
    c = self.config
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
    """What follows the last layer."""
    x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
    return dropout(x_BTD, self.config.dropout, noise) if self.config.final_dropout else x_BTD

  def run(
    self, x_BTD, position_ids, seen: AttentionContext, compute, noise, blocks=None
  ) -> jax.Array:
    """From embedded tokens to the last states. blocks: those of another stack, where shared."""
    in_embed, in_blocks, at_end = streams(noise, 3)
    x_BTD = self.embed(x_BTD, position_ids, in_embed)
    blocks = self.blocks if blocks is None else blocks
    x_BTD = run_blocks(blocks, self.layers, x_BTD, seen, compute, in_blocks)
    return self.finish(x_BTD, at_end)
