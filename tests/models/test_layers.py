"""Layers and activations against float64, in both dtypes and in the forms for GPUs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.models.activations import _gelu_on_gpu, activate
from plm_jax.models.layers import LayerNorm


def gelu_and_slope(x):
  """float64: the tanh variant of GELU (BERT, modeling.py), and its derivative."""
  c = np.sqrt(2 / np.pi)
  tanh = np.tanh(c * (x + 0.044715 * x**3))
  slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * c * (1 + 3 * 0.044715 * x**2)
  return 0.5 * x * (1 + tanh), slope


def exact_gelu_and_slope(x):
  """float64: GELU with the normal distribution (Hendrycks and Gimpel 2016), and its derivative."""
  cumulative = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  return x * cumulative, cumulative + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def named(name):
  return lambda x: activate(x, name)


@pytest.mark.parametrize("gelu, in_float64", [
  (named("gelu_tanh"), gelu_and_slope),
  (_gelu_on_gpu, gelu_and_slope),
  (named("gelu_erf"), exact_gelu_and_slope),
], ids=["tanh", "tanh-gpu", "exact"])  # fmt: skip
def test_gelu_and_its_gradient_are_those_of_float64(gelu, in_float64):
  x = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -300, 300, 1e4]])
  value, slope = in_float64(x)
  np.testing.assert_allclose(gelu(jnp.float32(x)), value, rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(x)), slope, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gelu_in_bfloat16_is_off_by_the_rounding_of_its_result_only(platform, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  x = jnp.linspace(-4.5, 4.5, 501, dtype=jnp.bfloat16)
  value, _ = gelu_and_slope(np.float64(x))
  np.testing.assert_allclose(np.float64(activate(x, "gelu_tanh")), value, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_layer_norm_has_the_gradients_of_its_formula(platform, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  keys = jax.random.split(jax.random.key(0), 4)
  x, g = 3 + 2 * jax.random.normal(keys[0], (2, 3, 5, 8)), jax.random.normal(keys[1], (2, 3, 5, 8))
  norm = LayerNorm(8, 1e-5)
  norm.gain[...], norm.bias[...] = jax.random.normal(keys[2], (2, 8))

  def formula(x, gain, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * gain + bias

  y, pull_back = jax.vjp(lambda norm, x: norm(x), norm, x)
  of_norm, of_x = pull_back(g)
  expected, expected_pull_back = jax.vjp(formula, x, norm.gain[...], norm.bias[...])
  np.testing.assert_allclose(y, expected, atol=1e-5)
  gradients = of_x, of_norm.gain[...], of_norm.bias[...]
  for got, wanted in zip(gradients, expected_pull_back(g), strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-5)
