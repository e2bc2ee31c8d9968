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


def _gelu_erf(x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=False)


def _laplace(x: jax.Array) -> jax.Array:
  """The normal distribution function closest to a squared ReLU (Ma et al. 2022, MEGA)."""
  return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu_tanh": jax.nn.gelu,
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
