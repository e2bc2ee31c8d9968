"""Every layer that owns parameters, and nothing else does.

The layers are `flax.nnx` modules used as plain pytrees: `jax.jit`, `jax.grad`, `jax.vmap` and
`jax.lax.scan` act on them directly, keys are arguments and the forward pass is a pure function.
Parameters are float32; a layer computes in the dtype of its input. A parameter's last name is its
kind: `kernel` (contracted with the input), `table` (indexed), `bias`, `gain`.

Shapes, here and in all models: B batch, T/S target and source positions, D width, N heads, H head
width, F feed-forward width, V vocabulary, L layers, P predicted positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.parameters import map_roles, with_roles

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
  `draw(key, path, role, leaf)`, each with a key of its own."""
  leaves = [
    draw(jax.random.fold_in(key, number), path, role, leaf) if role.is_weight else leaf
    for number, (path, role, leaf) in enumerate(with_roles(model))
  ]
  return jax.tree.unflatten(jax.tree.structure(model), leaves)


def normal_kernels(model: nnx.Module, key: jax.Array, stddev: float) -> nnx.Module:
  """The model with every kernel and table drawn anew from a normal that is not cut (fairseq,
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
    return project(x, self.kernel[...], self.axes, None if self.bias is None else self.bias[...])


def scores(x: jax.Array, table_VD: jax.Array) -> jax.Array:
  """`[..., D] -> float32 [..., V]`: the product with every row of a table."""
  return project(x, table_VD.T, 1, None, jnp.float32)


def project(
  x: jax.Array,
  kernel: jax.Array,
  inputs: int,
  bias: jax.Array | None,
  result: jnp.dtype | None = None,
) -> jax.Array:
  """Contracts the last `inputs` axes of `x` with the first of `kernel`, as one matrix product.

  Of two matrices: with several batch axes XLA transposes one side of the kernel's gradient on a CPU
  and computes it three times as slowly (docs/speed.md). result: dtype; None is that of `x`.
  """
  batch, out = x.shape[: x.ndim - inputs], kernel.shape[inputs:]
  contracted = math.prod(kernel.shape[:inputs])
  kernel_KF = kernel.reshape(contracted, -1).astype(x.dtype)
  y = product(x.reshape(-1, contracted), kernel_KF, result or x.dtype)
  y = y.reshape(*batch, *out)
  return y if bias is None else y + bias.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_RK: jax.Array, w_KF: jax.Array, result: jnp.dtype) -> jax.Array:
  """`x w`, `[R, F]` in the dtype `result`; its gradient's products are in the operands' dtype, as
  those of `einsum_float32`."""
  return jnp.dot(x_RK, w_KF, preferred_element_type=result)


def _product_forward(x_RK, w_KF, result):
  return product(x_RK, w_KF, result), (x_RK, w_KF)


def _product_backward(result, operands, cotangent_RF):
  del result
  x_RK, w_KF = operands
  g_RF = cotangent_RF.astype(x_RK.dtype)
  return g_RF @ w_KF.T, _kernel_gradient(x_RK, g_RF)


product.defvjp(_product_forward, _product_backward)


def _kernel_gradient(x_RK: jax.Array, g_RF: jax.Array) -> jax.Array:
  """`x^T g`. On a CPU the narrower matrix is the one that is read transposed, which for the table
  of a vocabulary takes half the time (docs/speed.md); the barrier keeps XLA from undoing it."""
  if jax.default_backend() != "cpu":
    return x_RK.T @ g_RF
  if x_RK.shape[1] <= g_RF.shape[1]:
    return jax.lax.optimization_barrier(x_RK.T @ g_RF)
  return jax.lax.optimization_barrier(g_RF.T @ x_RK).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """An einsum of two arrays of one dtype with a float32 result, for scores of attention.

  Its gradient's products are in the dtype of the operands: JAX's own rule would turn bfloat16
  operands into float32 ones there, the slowest products of the whole step.
  """
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _einsum_float32_forward(subscripts, a, b):
  return einsum_float32(subscripts, a, b), (a, b)


def _einsum_float32_backward(subscripts, operands, cotangent):
  _, pull_back = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
  return pull_back(cotangent.astype(operands[0].dtype))


einsum_float32.defvjp(_einsum_float32_forward, _einsum_float32_backward)


class Embedding(nnx.Module):
  """A table `[V, D]` of vectors, indexed by id."""

  def __init__(self, key, size: int, width: int):
    self.table = nnx.Param(truncated_normal(key, (size, width)))

  def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int `[...] -> dtype [..., D]`."""
    return self.table[...].astype(dtype)[ids]


class LayerNorm(nnx.Module):
  """`gain * (x - mean) / sqrt(variance + eps) + bias` over the last axis (Ba et al. 2016).

  Statistics are float32 whatever the dtype of `x`: BERT's eps of 1e-12 means nothing in bfloat16.
  """

  def __init__(self, width: int, eps: float):
    self.gain = nnx.Param(jnp.ones((width,)))
    self.bias = nnx.Param(jnp.zeros((width,)))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.eps) * self.gain[...] + self.bias[...]
    return y.astype(x.dtype)


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
