"""The basic layers, which own all parameters: linear, embedding, norms.

They are `flax.nnx` modules used as plain pytrees: `jax.jit`, `jax.grad`, `jax.vmap` and
`jax.lax.scan` act on them directly, keys are arguments and the forward pass is a pure function.
Parameters are float32; a layer computes in the dtype of its input. A parameter's last name is its
kind: `kernel` (contracted with the input), `table` (indexed), `bias`, `gain`.

Shapes, here and in all models: B batch, T/S target and source positions, D width, N heads, H head
width, F feed-forward width, V vocabulary, L layers, P predicted positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.parameters import map_roles, with_roles
from plm_jax.models.products import contract
from plm_jax.placement import split_rows

SMALL_TABLE = 16  # rows of a table that is read by a product on accelerators
STDDEV = 0.02  # of all initial kernels and tables, before a model rescales them


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float = STDDEV) -> jax.Array:
  """Normal cut at two sigma and not rescaled, as TensorFlow's initializer (google-research/bert,
  modeling.py `create_initializer`): the real standard deviation is 0.88 of `stddev`."""
  return stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def scaled_kernels(model: nnx.Module, factor: float) -> nnx.Module:
  """The model with every kernel and table, but no bias or gain, multiplied by `factor`."""
  return map_roles(lambda path, role, leaf: leaf * factor if role.is_weight else leaf, model)


def redrawn(model: nnx.Module, key: jax.Array, draw: Callable) -> nnx.Module:
  """The model with every kernel and table, but no bias or gain, replaced by
  `draw(key, path, role, leaf)`, each with a separate key."""
  leaves = [
    draw(jax.random.fold_in(key, number), path, role, leaf) if role.is_weight else leaf
    for number, (path, role, leaf) in enumerate(with_roles(model))
  ]
  return jax.tree.unflatten(jax.tree.structure(model), leaves)


def normal_kernels(model: nnx.Module, key: jax.Array, stddev: float) -> nnx.Module:
  """The model with every kernel and table drawn again from a normal that is not cut (fairseq,
  transformer_sentence_encoder.py `init_bert_params`)."""

  def draw(key, path, role, leaf):
    return stddev * jax.random.normal(key, leaf.shape, leaf.dtype)

  return redrawn(model, key, draw)


class Linear(nnx.Module):
  """`y = x W + b`, contracting the axes `inputs` of the kernel `[*inputs, *outputs]`."""

  def __init__(self, key, inputs: tuple[int, ...], outputs: tuple[int, ...], bias: bool = True):
    self.kernel = nnx.Param(truncated_normal(key, (*inputs, *outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
    self.axes = len(inputs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """`[..., *inputs] -> [..., *outputs]` in the dtype of `x`."""
    y = contract(x, self.kernel[...], self.axes)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
  """A table `[V, D]` of vectors, indexed by id."""

  def __init__(self, key, size: int, width: int):
    self.table = nnx.Param(truncated_normal(key, (size, width)))

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int `[...] -> dtype [..., D]`. On accelerators a small table is read by a product, as in
    google-research/bert (modeling.py `embedding_postprocessor`): the gradient of indexing adds all
    rows to the same few, one after the other."""
    table_VD = self.table[...].astype(dtype)
    if len(table_VD) > SMALL_TABLE or jax.default_backend() == "cpu":
      return table_VD[ids]
    return jax.nn.one_hot(ids, len(table_VD), dtype=dtype) @ table_VD


def scores(x: jax.Array, table_VD: jax.Array) -> jax.Array:
  """`[..., D] -> float32 [..., V]`: the product with every row of a table. On accelerators the
  product has a multiple of 128 rows, because others are much slower."""
  size = len(table_VD)
  if jax.default_backend() != "cpu":
    table_VD = jnp.pad(table_VD, ((0, -size % 128), (0, 0)))
  return split_rows(contract(split_rows(x), table_VD.T, 1, jnp.float32)[..., :size])


def _normed(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
  """float32 `gain (x - mean) / sqrt(variance + eps)` over the last axis."""
  mean, inverse = _mean_and_inverse(x, eps)
  return (x.astype(jnp.float32) - mean) * inverse * gain


def _mean_and_inverse(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
  """float32 `[..., 1]`: of each row, its mean and the inverse of its standard deviation."""
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  return mean, jax.lax.rsqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normed_on_gpu(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
  """`_normed` with a faster gradient. XLA would compute mean and inverse again, and write a product
  to memory for the gradient of `gain`, which is one pass if both are kept."""
  return _normed(x, gain, eps)


def _normed_forward(x, gain, eps):
  kept = jax.lax.optimization_barrier(_mean_and_inverse(x, eps))
  return _normed(x, gain, eps), (x, gain, *kept)


def _normed_backward(eps, kept, g):
  x, gain, mean, inverse = kept
  y = (x.astype(jnp.float32) - mean) * inverse
  g_gain = (g * y).sum(tuple(range(g.ndim - 1))).astype(gain.dtype)
  g = g * gain
  along = (g * y).mean(-1, keepdims=True)
  return (inverse * (g - g.mean(-1, keepdims=True) - y * along)).astype(x.dtype), g_gain


_normed_on_gpu.defvjp(_normed_forward, _normed_backward)


class LayerNorm(nnx.Module):
  """`gain * (x - mean) / sqrt(variance + eps) + bias` over the last axis (Ba et al. 2016).

  Statistics are float32 whatever the dtype of `x`: BERT's eps of 1e-12 is lost in bfloat16.
  """

  def __init__(self, width: int, eps: float):
    self.gain = nnx.Param(jnp.ones((width,)))
    self.bias = nnx.Param(jnp.zeros((width,)))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    norm = _normed_on_gpu if jax.default_backend() == "gpu" else _normed
    y = norm(x, self.gain[...], self.eps)
    return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class UnbiasedNorm(LayerNorm):
  """LayerNorm without its bias (ModernBERT)."""

  def __init__(self, width: int, eps: float):
    super().__init__(width, eps)
    self.bias = None


class RMSNorm(nnx.Module):
  """`gain * x / sqrt(mean(x^2) + eps)` over the last axis (Zhang and Sennrich 2019); no bias.

  Statistics are float32 whatever the dtype of `x`.
  """

  def __init__(self, width: int, eps: float):
    self.gain = nnx.Param(jnp.ones((width,)))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    square = jnp.square(x32).mean(-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(square + self.eps) * self.gain[...]).astype(x.dtype)


NORMS = {"layer": LayerNorm, "unbiased": UnbiasedNorm, "rms": RMSNorm}
