"""The loop over the layers of a stack: scanned or unrolled, with shared layers and with a cache.

The parameters of a stack's layers are arrays with a leading layer axis. What layers share has fewer
entries on that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.transformer import AttentionContext, Block


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


def shared(blocks: Block, sharing: Sharing, groups: int = 1) -> Block:
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
  context: AttentionContext,
  compute: Compute,
  noise: Noise | None = None,
) -> jax.Array:
  """Applies stacked blocks in order: `x = block_l(x, context_l, noise_l)` for each of `layers`.

  Scanned or unrolled by `compute`; the parameters are stacked either way, so a checkpoint does not
  depend on the choice. Blocks with fewer entries than layers are shared, see `shared`.
  """

  def apply(layer, block, x, cache):
    return block(x, context.of_layer(layer), None if noise is None else noise.fold(layer), cache)

  return _loop(apply, blocks, layers, x, None, compute, compute.remat)[0]


def extend_blocks(
  blocks: nnx.Module | list[nnx.Module],
  layers: int,
  x: jax.Array,
  context: AttentionContext,
  compute: Compute,
  cache: Any,
) -> tuple[jax.Array, Any]:
  """`run_blocks` with a cache, as `empty_cache` makes it: a block reads its layer's and extends it.

  `blocks` may be the list that `unstack` returns: inside the loop over tokens taking a stack apart
  would copy all parameters for each.
  """

  def apply(layer, block, x, cache):
    return block(x, context.of_layer(layer), None, cache)

  return _loop(apply, blocks, layers, x, cache, compute)


def _loop(apply, blocks, layers, x, cache, compute: Compute, remat: bool = False):
  unrolled = isinstance(blocks, list) or compute.unrolls(layers)
  return (_unroll if unrolled else _scan)(apply, blocks, layers, x, cache, remat)


def _unroll(apply, blocks, layers, x, cache, remat):
  """Every layer is compiled by itself. cache: a list of the layers', or None."""
  blocks = blocks if isinstance(blocks, list) else unstack(blocks, layers)
  caches = [None] * layers if cache is None else cache
  after = []
  for layer, (block, before) in enumerate(zip(blocks, caches, strict=True)):
    one = partial(apply, layer)  # its number stays an int
    x, written = (jax.checkpoint(one) if remat else one)(block, x, before)
    after.append(written)
  return x, after


def _scan(apply, blocks, layers, x, cache, remat):
  """One layer is compiled, and run `layers` times. cache: with a leading layer axis, or None."""
  apply = jax.checkpoint(apply) if remat else apply
  own, entry_of = _scanned(blocks, layers)

  def body(carry, xs):
    (x, cache), (own, layer) = carry, xs
    x, after = apply(layer, entry_of(layer, own), x, _entry(cache, layer))
    return (x, _with_entry(cache, layer, after)), None

  return jax.lax.scan(body, (x, cache), (own, jnp.arange(layers)))[0]


def _scanned(blocks: nnx.Module, layers: int) -> tuple[list, Callable]:
  """The arrays with an entry for each layer, which are scanned, and how a layer is made of its
  entries and of the arrays that layers share, which are read in place."""
  leaves, treedef = jax.tree.flatten(blocks)
  own = [leaf if leaf.shape[0] == layers else None for leaf in leaves]

  def entry_of(layer, own):
    group = [layer * leaf.shape[0] // layers if leaf.shape[0] > 1 else 0 for leaf in leaves]
    entries = zip(own, leaves, group, strict=True)
    return treedef.unflatten([leaf[g] if mine is None else mine for mine, leaf, g in entries])

  return own, entry_of


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
