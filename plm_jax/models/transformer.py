"""Transformer blocks and the loop over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.activations import Activation, activate
from plm_jax.models.attention import Attention
from plm_jax.models.cache import LayerCache
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import LayerNorm, Linear, RMSNorm
from plm_jax.models.positions import Rotation


class FeedForward(nnx.Module):
  """`activation(x W_up + b_up) W_down + b_down` (Vaswani et al. 2017, section 3.3).

  gated: `(activation(x W_gate) * (x W_up)) W_down`, SwiGLU where the activation is SiLU and GEGLU
  where it is GELU (Shazeer 2020). dropout: on what W_down reads (T5).
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


class AttentionContext(NamedTuple):
  """What all layers of a stack see besides the residual stream; masks and biases broadcast to
  `[B, N, T, S]`.

  rotation: of queries and keys (RoPE). score_bias: float32, added to the scores of self-attention
  (T5). source, source_mask: the states `[B, S, D]` that cross-attention reads; no source is needed
  where its keys and values are cached. at: the column of the cache that the first target gets.
  causal: the mask is False wherever the source follows the target.
  """

  mask: jax.Array
  rotation: Rotation | None = None
  score_bias: jax.Array | None = None
  source: jax.Array | None = None
  source_mask: jax.Array | None = None
  at: jax.Array | None = None
  causal: bool = False


class Block(nnx.Module):
  """A layer's parts: self-attention, perhaps cross-attention, feed-forward, and a norm for each.
  Where the norms stand is said by `PostNormBlock` and `PreNormBlock`.

  norm: `layer` (LayerNorm) or `rms` (RMSNorm). cross: whether there is cross-attention.
  bias: of attention; feed_forward_bias: None is the same. inner_dropout: within the feed-forward.
  """

  def __init__(
    self,
    key,
    *,
    width: int,
    heads: int,
    hidden: int,
    activation: Activation,
    eps: float,
    dropout: float,
    attention_dropout: float,
    norm: Literal["layer", "rms"] = "layer",
    gated: bool = False,
    bias: bool = True,
    feed_forward_bias: bool | None = None,
    kv_heads: int | None = None,
    head_width: int | None = None,
    scale: float | None = None,
    cross: bool = False,
    inner_dropout: float = 0.0,
  ):
    attention, feed_forward = jax.random.split(key)
    normed = LayerNorm if norm == "layer" else RMSNorm
    heads_of = {"kv_heads": kv_heads, "head_width": head_width, "scale": scale, "bias": bias}
    self.attention = Attention(attention, width, heads, **heads_of)
    self.attention_norm = normed(width, eps)
    in_cross = jax.random.fold_in(key, 2)
    self.cross = Attention(in_cross, width, heads, **heads_of) if cross else None
    self.cross_norm = normed(width, eps) if cross else None
    self.feed_forward = FeedForward(
      feed_forward,
      width,
      hidden,
      activation,
      gated=gated,
      bias=bias if feed_forward_bias is None else feed_forward_bias,
      dropout=inner_dropout,
    )
    self.feed_forward_norm = normed(width, eps)
    self.dropout, self.attention_dropout = dropout, attention_dropout

  def attend(self, x_BTD, seen: AttentionContext, noise, cache: LayerCache | None):
    """Self-attention, and the cache with the keys and values of x in it."""
    own = self.attention.key_values(x_BTD, seen.rotation)
    if cache is not None:
      own = cache.own.extended(own, seen.at)
      cache = cache._replace(own=own)
    y_BTD = self.attention(
      x_BTD,
      seen.mask,
      self.attention_dropout,
      noise,
      read=own,
      score_bias=seen.score_bias,
      rotation=seen.rotation,
      causal=seen.causal,
    )
    return y_BTD, cache

  def attend_source(
    self, x_BTD, seen: AttentionContext, noise, cache: LayerCache | None
  ) -> jax.Array:
    """Cross-attention."""
    read = self.cross.key_values(seen.source) if cache is None else cache.source
    return self.cross(x_BTD, seen.source_mask, self.attention_dropout, noise, read=read)


class PostNormBlock(Block):
  """A Transformer layer that normalises after each residual sum (Vaswani et al. 2017; BERT)."""

  def __call__(
    self,
    x_BTD: jax.Array,
    seen: AttentionContext,
    noise: Noise | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    in_attention, after_attention, after_feed_forward, in_cross, after_cross, inside = streams(
      noise, 6
    )
    y, cache = self.attend(x_BTD, seen, in_attention, cache)
    x_BTD = self.attention_norm(x_BTD + dropout(y, self.dropout, after_attention))
    if self.cross is not None:
      y = self.attend_source(x_BTD, seen, in_cross, cache)
      x_BTD = self.cross_norm(x_BTD + dropout(y, self.dropout, after_cross))
    y = self.feed_forward(x_BTD, inside)
    x_BTD = self.feed_forward_norm(x_BTD + dropout(y, self.dropout, after_feed_forward))
    return x_BTD, cache


class PreNormBlock(Block):
  """A Transformer layer whose sublayers read a normalised residual stream (GPT-2, section 2.3). The
  stream itself is never normalised, so that the stack needs a norm at its end."""

  def __call__(
    self,
    x_BTD: jax.Array,
    seen: AttentionContext,
    noise: Noise | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    in_attention, after_attention, after_feed_forward, in_cross, after_cross, inside = streams(
      noise, 6
    )
    y, cache = self.attend(self.attention_norm(x_BTD), seen, in_attention, cache)
    x_BTD = x_BTD + dropout(y, self.dropout, after_attention)
    if self.cross is not None:
      y = self.attend_source(self.cross_norm(x_BTD), seen, in_cross, cache)
      x_BTD = x_BTD + dropout(y, self.dropout, after_cross)
    y = self.feed_forward(self.feed_forward_norm(x_BTD), inside)
    x_BTD = x_BTD + dropout(y, self.dropout, after_feed_forward)
    return x_BTD, cache


def streams(noise: Noise | None, count: int) -> list[Noise | None]:
  """`count` independent sources of noise, or as many Nones."""
  return [None if noise is None else noise.fold(i) for i in range(count)]


def stack(
  key: jax.Array, layers: int, make: Callable[[jax.Array], nnx.Module], first: int | None = None
) -> nnx.Module:
  """`layers` modules made by `make(key)`, as one whose parameters have a leading layer axis; where
  `first` is given, only so many of them."""
  return jax.vmap(make)(jax.random.split(key, layers)[:first])


Sharing = Literal["none", "all", "attention", "ffn"]
_SHARED = {
  "none": (),
  "attention": ("attention", "attention_norm"),
  "ffn": ("feed_forward", "feed_forward_norm"),
}
_SHARED["all"] = _SHARED["attention"] + _SHARED["ffn"]


def shared(blocks: PostNormBlock, sharing: Sharing, groups: int = 1) -> PostNormBlock:
  """Stacked blocks whose shared parts have a leading axis of `groups` instead of layers: layer l of
  L reads entry `l * groups // L` (google-research/albert, modeling.py `group_idx`).

  Shared by structure: there is one array, so its gradient is the sum over the layers that read it.
  """
  for part in _SHARED[sharing]:
    setattr(blocks, part, jax.tree.map(lambda x: x[:groups], getattr(blocks, part)))
  return blocks


def run_blocks(
  blocks: nnx.Module | list[nnx.Module],
  layers: int,
  x: jax.Array,
  seen: AttentionContext,
  compute: Compute,
  noise: Noise | None = None,
  cache: Any = None,
) -> jax.Array | tuple[jax.Array, Any]:
  """Applies stacked blocks in order: `x = block_l(x, seen, noise_l)` for every layer l of `layers`.

  Scanned or unrolled by `compute`; the parameters are stacked either way, so a checkpoint does not
  depend on the choice. What fewer entries than layers have is shared, see `shared`.

  With a cache, as `empty_cache` makes it, every block gets its layer's and the result is
  (x, the cache after it). `blocks` may then be what `unstack` returns: inside the loop over tokens
  taking a stack apart would copy all parameters for each.
  """

  def apply(x, layer):
    block, index, cache = layer
    return block(x, seen, None if noise is None else noise.fold(index), cache)

  if compute.remat and cache is None:
    apply = jax.checkpoint(apply)
  if isinstance(blocks, list) or compute.unrolls(layers):
    blocks = blocks if isinstance(blocks, list) else unstack(blocks, layers)
    kept = []
    for index, block in enumerate(blocks):
      x, after = apply(x, (block, index, None if cache is None else cache[index]))
      kept.append(after)
    return x if cache is None else (x, kept)

  leaves, treedef = jax.tree.flatten(blocks)
  own = [leaf if leaf.shape[0] == layers else None for leaf in leaves]

  def scanned(carry, layer):
    x, cache = carry
    own, index = layer
    group = [index * leaf.shape[0] // layers if leaf.shape[0] > 1 else 0 for leaf in leaves]
    block = [
      leaf[g] if mine is None else mine for leaf, g, mine in zip(leaves, group, own, strict=True)
    ]
    x, after = apply(x, (jax.tree.unflatten(treedef, block), index, _entry(cache, index)))
    return (x, _with_entry(cache, index, after)), None

  x, kept = jax.lax.scan(scanned, (x, cache), (own, jnp.arange(layers)))[0]
  return x if cache is None else (x, kept)


def _entry(cache, index):
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), cache)


def _with_entry(cache, index, new):
  put = jax.lax.dynamic_update_index_in_dim
  return jax.tree.map(lambda all_, one: put(all_, one, index, 0), cache, new)


def unstack(blocks: nnx.Module, layers: int) -> list[nnx.Module]:
  """The single layers. `lax.split` is used because its gradient is one concatenation, where that
  of indexing is a sum of `layers` padded arrays."""
  leaves, treedef = jax.tree.flatten(blocks)
  split = [[p[0] for p in jax.lax.split(leaf, (1,) * leaf.shape[0])] for leaf in leaves]
  return [
    jax.tree.unflatten(treedef, [parts[l * len(parts) // layers] for parts in split])
    for l in range(layers)
  ]
