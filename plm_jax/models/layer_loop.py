"""The loop over the layers of a stack: scanned or unrolled, with shared layers and with a cache.

A stack's parameters are arrays with a leading layer axis. Shared parameters have fewer entries on
that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.recording import record_input
from plm_jax.models.transformer import AttentionContext, Block
from plm_jax.placement import split_rows


def stack(
  key: jax.Array, layers: int, make: Callable[[jax.Array], nnx.Module], first: int | None = None
) -> nnx.Module:
  """`layers` modules made by `make(key)`, as one module whose parameters have a leading layer axis;
  only the first `first` of them if that is given."""
  return jax.vmap(make)(jax.random.split(key, layers)[:first])


M = TypeVar("M")
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

  The layers read one array, so its gradient is the sum over them.
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

  `compute` chooses between scan and unrolling; the parameters are stacked either way, so a
  checkpoint does not depend on the choice. Parts with fewer entries than layers are `shared`.
  """

  context = context._replace(kind=compute.attention)

  def apply(layer, block, x, cache):
    record_input(x)
    noise_of_layer = None if noise is None else noise.fold(layer)
    x, cache = block(split_rows(x), context.of_layer(layer), noise_of_layer, cache)
    return split_rows(x), cache

  return _loop(apply, blocks, layers, x, None, compute, "nothing" if compute.remat else "all")[0]


def extend_blocks(
  blocks: nnx.Module | list[nnx.Module],
  layers: int,
  x: jax.Array,
  context: AttentionContext,
  compute: Compute,
  cache: Any,
) -> tuple[jax.Array, Any]:
  """`run_blocks` with a cache from `empty_cache`: each block reads and extends its layer's cache.

  `blocks` may be the list that `unstack` returns: unstacking inside the loop over tokens would copy
  all parameters for each token.
  """

  def apply(layer, block, x, cache):
    return block(x, context.of_layer(layer), None, cache)

  return _loop(apply, blocks, layers, x, cache, compute, "all")


def _loop(apply, blocks, layers, x, cache, compute: Compute, kept: Kept):
  unrolled = isinstance(blocks, list | nnx.List) or compute.unrolls(layers)
  if not unrolled and kept == "all" and jax.default_backend() == "tpu":
    kept = "products"
  return (_unroll if unrolled else _scan)(apply, blocks, layers, x, cache, KEPT[kept])


def _is_product(primitive, *_, **about) -> bool:
  """Whether an operation is a matrix product, or a kernel or a product with its own gradient. JAX's
  kernel names what it needs (long_rows.py)."""
  name = str(about.get("name") or about.get("name_and_src_info") or "")
  if primitive.name == "name" or name.startswith("splash"):
    return primitive.name == "name" and name == "splash"
  return primitive.name in ("dot_general", "pallas_call", "custom_vjp_call")


Kept = Literal["all", "products", "nothing"]
# What the backward pass reads. A scan writes all of it to memory, and the compiler can do nothing
# against it. Of BERT's GELU alone these are five arrays `[B, T, F]`. So on a TPU a scan keeps the
# results of products, and the rest is computed again, in passes that read them anyway. On a GPU
# that was slower (docs/speed.md).
KEPT: dict[Kept, Callable] = {
  "all": lambda apply: apply,
  "products": partial(jax.checkpoint, policy=_is_product, prevent_cse=False),
  "nothing": jax.checkpoint,
}


def _unroll(apply, blocks, layers, x, cache, keeping):
  """Compiles every layer separately. cache: a list of the layers' caches, or None."""
  blocks = blocks if isinstance(blocks, list | nnx.List) else unstack(blocks, layers)
  caches = [None] * layers if cache is None else cache
  after = []
  for layer, (block, before) in enumerate(zip(blocks, caches, strict=True)):
    apply_layer = partial(apply, layer)  # the layer's number stays an int
    x, extended = keeping(apply_layer)(block, x, before)
    after.append(extended)
  return x, after


def _scan(apply, blocks, layers, x, cache, keeping):
  """Compiles one layer and runs it `layers` times. cache: with a leading layer axis, or None."""
  apply = keeping(apply)
  unshared, block_of = _scanned(blocks, layers)

  def body(carry, xs):
    (x, cache), (entries, layer) = carry, xs
    x, after = apply(layer, block_of(layer, entries), x, _entry(cache, layer))
    return (x, _with_entry(cache, layer, after)), None

  return jax.lax.scan(body, (x, cache), (unshared, jnp.arange(layers)))[0]


def _scanned(blocks: nnx.Module, layers: int) -> tuple[list, Callable]:
  """The unshared arrays, which have an entry for each layer and are scanned; and a function from a
  layer's number and entries to its block, which reads the shared arrays in place."""
  leaves, treedef = jax.tree.flatten(blocks)
  unshared = [leaf if leaf.shape[0] == layers else None for leaf in leaves]

  def block_of(layer, entries):
    groups = [layer * leaf.shape[0] // layers if leaf.shape[0] > 1 else 0 for leaf in leaves]
    parts = zip(entries, leaves, groups, strict=True)
    return treedef.unflatten([leaf[g] if entry is None else entry for entry, leaf, g in parts])

  return unshared, block_of


def _entry(cache, index):
  return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), cache)


def _with_entry(cache, index, new):
  put = jax.lax.dynamic_update_index_in_dim
  return jax.tree.map(lambda layers, layer: put(layers, layer, index, 0), cache, new)


def unstack(blocks: nnx.Module, layers: int) -> list[nnx.Module]:
  """The single layers, by `lax.split`: its gradient is one concatenation, that of indexing a sum of
  `layers` padded arrays."""
  leaves, treedef = jax.tree.flatten(blocks)
  split = [[p[0] for p in jax.lax.split(leaf, (1,) * leaf.shape[0])] for leaf in leaves]
  return [
    jax.tree.unflatten(treedef, [parts[l * len(parts) // layers] for parts in split])
    for l in range(layers)
  ]


def with_separate_layers(model: M, compute: Compute) -> M:
  """The model with a list of layers in place of a stack that `compute` unrolls. Every call of a
  compiled program copies the layers out of a stack, which takes several times as long as one short
  text (docs/serving.md). Models that generate have their own layout (decoding_layout.py)."""
  config = getattr(model, "config", None)
  blocks, layers = getattr(model, "blocks", None), getattr(config, "layers", 0)
  if blocks is None or hasattr(model, "generator") or not compute.unrolls(layers):
    return model
  if any(leaf.shape[0] != layers for leaf in jax.tree.leaves(blocks)):  # shared layers
    return model
  made = jax.tree.map(lambda leaf: leaf, model)  # other modules, the same arrays
  made.blocks = nnx.List(jax.jit(unstack, static_argnums=1)(blocks, layers))
  return made
