"""The nonlinearities of feed-forward layers and heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

# The papers here use the first four. The others are for import only: transformers' encoders allow
# them (activations.py, without those that have parameters).
Activation = Literal[
  "gelu_tanh",
  "gelu_erf",
  "relu",
  "silu",
  "tanh",
  "sigmoid",
  "identity",
  "quick_gelu",
  "gelu_10",
  "relu_squared",
  "relu6",
  "leaky_relu",
  "mish",
  "hard_swish",
  "laplace",
  "sqrt_softplus",
]


def activate(x: jax.Array, name: Activation) -> jax.Array:
  """The named nonlinearity of x. GELU has two variants, which differ by up to 4.73e-4 (at |x| =
  2.70): tanh in BERT's TensorFlow code, exact in transformers."""
  return _FUNCTIONS[name](x)


def _gelu_tanh(x: jax.Array) -> jax.Array:
  """Computed in float32: in bfloat16 the constants of `jax.nn.gelu` are off by a thousandth, and
  its values below -3 are 0."""
  if jax.default_backend() == "gpu" and x.dtype != jnp.float32:
    return _gelu_on_gpu(x)
  return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def _gelu_on_gpu(x: jax.Array) -> jax.Array:
  """`x sigmoid(2 u)`, which is `x (1 + tanh(u)) / 2`, without a division, which takes as long as
  all the rest. Its gradient keeps x only."""
  x32 = x.astype(jnp.float32)
  return (x32 * _sigmoid(_twice_u(x32))).astype(x.dtype)


def _twice_u(x32: jax.Array) -> jax.Array:
  return x32 * (_SLOPE + _SLOPE * 0.044715 * jnp.square(x32))


def _sigmoid(x32: jax.Array) -> jax.Array:
  return jnp.square(jax.lax.rsqrt(1 + jnp.exp(-x32)))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
  x32 = x.astype(jnp.float32)
  # Not 1 - sigmoid(2 u): XLA would keep that of the forward pass, which costs more than this one.
  below = _sigmoid(-_twice_u(x32))
  slope = _SLOPE + 3 * _SLOPE * 0.044715 * jnp.square(x32)
  of_x = (1 - below) * (1 + x32 * below * slope)
  return ((of_x * gradient.astype(jnp.float32)).astype(x.dtype),)


_SLOPE = 2 * math.sqrt(2 / math.pi)
_gelu_on_gpu.defvjp(lambda x: (_gelu_on_gpu(x), x), _gelu_backward)


def _gelu_erf(x: jax.Array) -> jax.Array:
  """In float32, as PyTorch computes it. For values below -3, whose result is nearly 0, it is exact
  to 1e-7 only; `jax.nn.gelu`, which has `erfc`, is exact there too, and slower."""
  x32 = x.astype(jnp.float32)
  return (0.5 * x32 * (1 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


def _laplace(x: jax.Array) -> jax.Array:
  """The normal distribution function closest to a squared ReLU (Ma et al. 2022, MEGA)."""
  return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu_tanh": _gelu_tanh,
  "gelu_erf": _gelu_erf,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
  "sigmoid": jax.nn.sigmoid,
  "identity": lambda x: x,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu_10": lambda x: jnp.clip(_gelu_erf(x), -10.0, 10.0),
  "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
  "relu6": jax.nn.relu6,
  "leaky_relu": jax.nn.leaky_relu,
  "mish": jax.nn.mish,
  "hard_swish": jax.nn.hard_swish,
  "laplace": _laplace,
  "sqrt_softplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
}
assert _FUNCTIONS.keys() == set(get_args(Activation))
