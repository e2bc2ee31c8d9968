"""Matrix products with gradients written by hand.

JAX's own rules give the same numbers, more slowly: docs/speed.md has the measurements.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def contract(
  x: jax.Array, kernel: jax.Array, axes: int, result: jnp.dtype | None = None
) -> jax.Array:
  """Contracts the last `axes` axes of `x` with the first of `kernel`, as a product of two matrices.

  With several batch axes XLA on a CPU transposes one side of the kernel's gradient, which is three
  times as slow. result: dtype; None is that of `x`.
  """
  batch, out = x.shape[: x.ndim - axes], kernel.shape[axes:]
  contracted = math.prod(kernel.shape[:axes])
  kernel_KF = kernel.reshape(contracted, -1).astype(x.dtype)
  y = product(x.reshape(-1, contracted), kernel_KF, result or x.dtype)
  return y.reshape(*batch, *out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x_RK: jax.Array, w_KF: jax.Array, result: jnp.dtype) -> jax.Array:
  """`x w`, `[R, F]` in the dtype `result`. The products of its gradient are in the operands' dtype,
  as in `einsum_float32`."""
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
  """`x^T g`. On a CPU the narrower matrix is read transposed, which takes half the time for the
  table of a vocabulary; the barrier keeps XLA from undoing it."""
  if jax.default_backend() != "cpu":
    return x_RK.T @ g_RF
  if x_RK.shape[1] <= g_RF.shape[1]:
    return jax.lax.optimization_barrier(x_RK.T @ g_RF)
  return jax.lax.optimization_barrier(g_RF.T @ x_RK).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """An einsum of two arrays of one dtype with a float32 result, for attention scores.

  The products of its gradient are in the operands' dtype. JAX's rule would convert bfloat16
  operands to float32, which makes them the slowest products of the whole step.
  """
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _einsum_float32_forward(subscripts, a, b):
  return einsum_float32(subscripts, a, b), (a, b)


def _einsum_float32_backward(subscripts, operands, cotangent):
  _, pull_back = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
  return pull_back(cotangent.astype(operands[0].dtype))


einsum_float32.defvjp(_einsum_float32_forward, _einsum_float32_backward)
