"""Transformer blocks and the loop over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.attention import SelfAttention
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import LayerNorm, Linear

Activation = Literal["gelu_tanh", "gelu_erf", "relu"]


def activate(x: jax.Array, name: Activation) -> jax.Array:
  """BERT's TensorFlow code has the tanh GELU, transformers the exact one; they differ by up to
  4.73e-4 (at |x| = 2.70), so the variant is a setting of the model."""
  if name == "relu":
    return jax.nn.relu(x)
  return jax.nn.gelu(x, approximate=name == "gelu_tanh")


class FeedForward(nnx.Module):
  """`activation(x W_up + b_up) W_down + b_down` (Vaswani et al. 2017, section 3.3)."""

  def __init__(self, key, width: int, hidden: int, activation: Activation):
    up, down = jax.random.split(key)
    self.up = Linear(up, (width,), (hidden,))
    self.down = Linear(down, (hidden,), (width,))
    self.activation = activation

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    return self.down(activate(self.up(x_BTD), self.activation))


class PostNormBlock(nnx.Module):
  """A Transformer layer that normalises after each residual sum (Vaswani et al. 2017; BERT)."""

  def __init__(self, key, *, width, heads, hidden, activation, eps, dropout, attention_dropout):
    attention, feed_forward = jax.random.split(key)
    self.attention = SelfAttention(attention, width, heads)
    self.attention_norm = LayerNorm(width, eps)
    self.feed_forward = FeedForward(feed_forward, width, hidden, activation)
    self.feed_forward_norm = LayerNorm(width, eps)
    self.dropout, self.attention_dropout = dropout, attention_dropout

  def __call__(self, x_BTD: jax.Array, mask: jax.Array, noise: Noise | None) -> jax.Array:
    in_attention, after_attention, after_feed_forward = streams(noise, 3)
    y = self.attention(x_BTD, mask, self.attention_dropout, in_attention)
    x_BTD = self.attention_norm(x_BTD + dropout(y, self.dropout, after_attention))
    y = self.feed_forward(x_BTD)
    x_BTD = self.feed_forward_norm(x_BTD + dropout(y, self.dropout, after_feed_forward))
    return x_BTD


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
  blocks: nnx.Module,
  layers: int,
  x: jax.Array,
  mask: jax.Array,
  compute: Compute,
  noise: Noise | None,
) -> jax.Array:
  """Applies stacked blocks in order: `x = block_l(x, mask, noise_l)` for every layer l of `layers`.

  Scanned or unrolled by `compute`; the parameters are stacked either way, so a checkpoint does not
  depend on the choice. What fewer entries than layers have is shared, see `shared`.
  """

  def apply(x, layer):
    block, index = layer
    return block(x, mask, None if noise is None else noise.fold(index)), None

  if compute.remat:
    apply = jax.checkpoint(apply)
  if compute.unrolls(layers):
    for index, block in enumerate(unstack(blocks, layers)):
      x, _ = apply(x, (block, index))
    return x

  leaves, treedef = jax.tree.flatten(blocks)
  own = [leaf if leaf.shape[0] == layers else None for leaf in leaves]

  def scanned(x, layer):
    own, index = layer
    group = [index * leaf.shape[0] // layers if leaf.shape[0] > 1 else 0 for leaf in leaves]
    block = [
      leaf[g] if mine is None else mine for leaf, g, mine in zip(leaves, group, own, strict=True)
    ]
    return apply(x, (jax.tree.unflatten(treedef, block), index))

  return jax.lax.scan(scanned, x, (own, jnp.arange(layers)))[0]


def unstack(blocks: nnx.Module, layers: int) -> list[nnx.Module]:
  """The single layers. `lax.split` is used because its gradient is one concatenation, where that
  of indexing is a sum of `layers` padded arrays."""
  leaves, treedef = jax.tree.flatten(blocks)
  split = [[p[0] for p in jax.lax.split(leaf, (1,) * leaf.shape[0])] for leaf in leaves]
  return [
    jax.tree.unflatten(treedef, [parts[l * len(parts) // layers] for parts in split])
    for l in range(layers)
  ]
