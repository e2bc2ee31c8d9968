"""The layers of a Transformer (attention, feed-forward, norms) and the context of attention."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.activations import Activation, activate
from plm_jax.models.attention import Attention, window_mask
from plm_jax.models.cache import LayerCache
from plm_jax.models.compute import AttentionKind
from plm_jax.models.config import TransformerConfig
from plm_jax.models.dropout import Noise, dropout, streams
from plm_jax.models.groups import Groups
from plm_jax.models.layers import NORMS, Linear
from plm_jax.models.positions import Rotation


class FeedForward(nnx.Module):
  """`activation(x W_up + b_up) W_down + b_down` (Vaswani et al. 2017, section 3.3).

  gated: `(activation(x W_gate) * (x W_up)) W_down`, which is SwiGLU with SiLU and GEGLU with GELU
  (Shazeer 2020). dropout: of the input of W_down (T5).
  """

  def __init__(
    self,
    key,
    width: int,
    hidden: int,
    activation: Activation,
    *,
    gated: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
  ):
    up, down = jax.random.split(key)
    gate = jax.random.fold_in(key, 2)
    self.gate = Linear(gate, (width,), (hidden,), bias) if gated else None
    self.up = Linear(up, (width,), (hidden,), bias)
    self.down = Linear(down, (hidden,), (width,), bias)
    self.activation, self.dropout = activation, dropout

  def __call__(self, x_BTD: jax.Array, noise: Noise | None = None) -> jax.Array:
    if self.gate is None:
      x_BTF = activate(self.up(x_BTD), self.activation)
    else:
      x_BTF = activate(self.gate(x_BTD), self.activation) * self.up(x_BTD)
    return self.down(dropout(x_BTF, self.dropout, noise))


class LocalContext(NamedTuple):
  """The context of the layers with a window.

  near: bool `[1, 1, T, S]`, True where a source is at most `window` columns from its target.
  rotation: None is that of the other layers. global_every: as in `TransformerConfig`.
  """

  near: jax.Array
  window: int
  global_every: int
  rotation: Rotation | None


class AttentionContext(NamedTuple):
  """The inputs of attention that all layers of a stack share; masks and biases broadcast to
  `[B, N, T, S]`.

  rotation: of queries and keys (RoPE). score_bias: float32, added to the scores of self-attention
  (T5). source, source_mask: the states `[B, S, D]` that cross-attention reads, not needed if their
  keys and values are cached. at: the cache column of the first target. causal: the mask is False
  wherever the source follows the target. local: of the layers with a window. window: of this layer,
  if it is known when the program is compiled. groups, source_groups: mask and source_mask as
  groups, if they have that form. kind: how attention is computed. bare: whether attention reads
  states that are not normalised, in the first layer, or in this one.
  """

  mask: jax.Array
  rotation: Rotation | None = None
  score_bias: jax.Array | None = None
  source: jax.Array | None = None
  source_mask: jax.Array | None = None
  at: jax.Array | None = None
  causal: bool = False
  local: LocalContext | None = None
  window: int | None = None
  groups: Groups | None = None
  source_groups: Groups | None = None
  kind: AttentionKind = "plain"
  bare: bool | jax.Array = False

  @classmethod
  def from_config(
    cls, config: TransformerConfig, mask: jax.Array, position_ids: jax.Array, at=None, **others
  ) -> AttentionContext:
    """A context with the angles and the window of a configuration. position_ids: int `[T]` or
    `[B, T]`, of the targets; the window counts columns. others: further fields."""
    local = None
    if config.window is not None:
      targets, sources = position_ids.shape[-1], mask.shape[-1]
      near = window_mask(config.window, targets, sources, 0 if at is None else at)
      rotation = config.local_rotation(position_ids)
      local = LocalContext(near, config.window, config.global_every, rotation)
    return cls(mask, config.rotation(position_ids), at=at, local=local, **others)

  def of_layer(self, layer: int | jax.Array) -> AttentionContext:
    """The context of one layer, counted from 0, with the layer's window applied."""
    if self.bare is not False:
      return self._replace(bare=False).of_layer(layer)._replace(bare=layer == 0)
    local = self.local
    if local is None:
      return self
    sees_all = local.global_every > 0 and layer % local.global_every == 0
    if isinstance(sees_all, bool):  # known when the program is compiled
      if sees_all:
        return self._replace(local=None)
      rotation = local.rotation or self.rotation
      mask = self.mask & local.near
      return self._replace(mask=mask, rotation=rotation, window=local.window, local=None)
    rotation = self.rotation
    if local.rotation is not None:
      pairs = zip(rotation, local.rotation, strict=True)
      rotation = Rotation(*(jnp.where(sees_all, wide, near) for wide, near in pairs))
    mask = self.mask & (local.near | sees_all)
    return self._replace(mask=mask, rotation=rotation, local=None, groups=None)


class Block(nnx.Module):
  """A layer's parts: self-attention, optional cross-attention, feed-forward, and a norm for each.
  `PostNormBlock` and `PreNormBlock` place the norms.

  cross: whether there is cross-attention.
  """

  def __init__(self, key, config: TransformerConfig, cross: bool = False):
    c = config
    in_attention, in_feed_forward = jax.random.split(key)
    attention = partial(
      Attention,
      width=c.width,
      heads=c.heads,
      kv_heads=c.kv_heads,
      head_width=c.head_width,
      scale=c.attention_scale,
      bias=c.attention_bias,
      output_bias=c.output_bias,
    )
    norm = partial(NORMS[c.norm], c.width, c.norm_eps)
    self.attention, self.attention_norm = attention(in_attention), norm()
    self.cross = attention(jax.random.fold_in(key, 2)) if cross else None
    self.cross_norm = norm() if cross else None
    self.feed_forward = FeedForward(
      in_feed_forward,
      c.width,
      c.width_of_feed_forward,
      c.activation,
      gated=c.gated,
      bias=c.feed_forward_bias,
      dropout=c.hidden_dropout,
    )
    self.feed_forward_norm = norm()
    self.dropout, self.attention_dropout = c.dropout, c.attention_dropout

  def attend(self, x_BTD, context: AttentionContext, noise, cache: LayerCache | None):
    """Self-attention, and the cache extended by the keys and values of x."""
    key_values = self.attention.key_values(x_BTD, context.rotation)
    if cache is not None:
      key_values = cache.own.extended(key_values, context.at)
      cache = cache._replace(own=key_values)
    y_BTD = self.attention(
      x_BTD,
      context.mask,
      self.attention_dropout,
      noise,
      read=key_values,
      score_bias=context.score_bias,
      rotation=context.rotation,
      causal=context.causal,
      window=context.window,
      groups=context.groups,
      kind=context.kind,
    )
    return y_BTD, cache

  def attend_source(
    self, x_BTD, context: AttentionContext, noise, cache: LayerCache | None
  ) -> jax.Array:
    """Cross-attention."""
    read = self.cross.key_values(context.source) if cache is None else cache.source
    return self.cross(
      x_BTD,
      context.source_mask,
      self.attention_dropout,
      noise,
      read=read,
      groups=context.source_groups,
      kind=context.kind,
    )


class PostNormBlock(Block):
  """A Transformer layer that normalises after each residual sum (Vaswani et al. 2017; BERT)."""

  def __call__(
    self,
    x_BTD: jax.Array,
    context: AttentionContext,
    noise: Noise | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    in_attention, after_attention, after_feed_forward, in_cross, after_cross, inside = streams(
      noise, 6
    )
    y, cache = self.attend(x_BTD, context, in_attention, cache)
    x_BTD = self.attention_norm(x_BTD + dropout(y, self.dropout, after_attention))
    if self.cross is not None:
      y = self.attend_source(x_BTD, context, in_cross, cache)
      x_BTD = self.cross_norm(x_BTD + dropout(y, self.dropout, after_cross))
    y = self.feed_forward(x_BTD, inside)
    x_BTD = self.feed_forward_norm(x_BTD + dropout(y, self.dropout, after_feed_forward))
    return x_BTD, cache


class PreNormBlock(Block):
  """A Transformer layer whose sublayers read a normalised residual stream (GPT-2, section 2.3). The
  stream itself is never normalised, so the stack needs a norm at its end."""

  def __call__(
    self,
    x_BTD: jax.Array,
    context: AttentionContext,
    noise: Noise | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    in_attention, after_attention, after_feed_forward, in_cross, after_cross, inside = streams(
      noise, 6
    )
    normalised_BTD = self.attention_norm(x_BTD)
    if context.bare is not False:
      normalised_BTD = jnp.where(context.bare, x_BTD, normalised_BTD)
    y, cache = self.attend(normalised_BTD, context, in_attention, cache)
    x_BTD = x_BTD + dropout(y, self.dropout, after_attention)
    if self.cross is not None:
      y = self.attend_source(self.cross_norm(x_BTD), context, in_cross, cache)
      x_BTD = x_BTD + dropout(y, self.dropout, after_cross)
    y = self.feed_forward(self.feed_forward_norm(x_BTD), inside)
    x_BTD = x_BTD + dropout(y, self.dropout, after_feed_forward)
    return x_BTD, cache


def make_block(key: jax.Array, config: TransformerConfig, cross: bool = False) -> Block:
  """The layer that a configuration describes."""
  return (PreNormBlock if config.norm_at == "pre" else PostNormBlock)(key, config, cross)
