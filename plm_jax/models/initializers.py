"""Initial weights, by the role of each parameter.

Sources: google-research/mesh, mesh_tensorflow transformer_layers.py and t5/models/gin (T5: the
factor 1 / sqrt(H) of attention is in the initial queries); tensorflow/tensor2tensor,
models/transformer.py (Vaswani: `uniform_unit_scaling`, tables at 1 / sqrt(D)).
"""

from __future__ import annotations

import math
from typing import Literal

import jax
from flax import nnx

from plm_jax.models.layers import STDDEV, normal_kernels, redrawn, scaled_kernels
from plm_jax.models.parameters import ROLES, stacked_axes

Initializer = Literal["truncated_normal", "normal", "t5", "xavier"]


def initialised(model: nnx.Module, key: jax.Array, kind: Initializer, stddev: float) -> nnx.Module:
  """The model with every kernel and table rescaled (`truncated_normal`) or drawn again.

  normal: with one standard deviation. t5: tokens N(0, 1), queries N(0, 1 / (D H)), all else
  N(0, 1 / fan-in). xavier: kernels uniform, variance 2 / (fan-in + fan-out); tables N(0, 1 / D).
  """
  if kind == "truncated_normal":
    return scaled_kernels(model, stddev / STDDEV)
  if kind == "normal":
    return normal_kernels(model, key, stddev)
  drawn = _t5 if kind == "t5" else _xavier

  def draw(key, path, role, leaf):
    if role.depth == "head" and role.kind == "kernel":  # 0.02 for fine-tuning, in all models
      return leaf
    shape = leaf.shape[stacked_axes(path, role, leaf.ndim) :]
    return drawn(key, role, leaf, shape, model.config)

  return redrawn(model, key, draw)


def _t5(key, role, leaf, shape, config) -> jax.Array:
  stddev = math.prod(shape[: role.inputs]) ** -0.5
  if role.query and config.attention_scale == 1:
    stddev *= shape[-1] ** -0.5
  if role.kind == "table":
    stddev = 1.0 if role == ROLES["token/table"] else config.width**-0.5
  return stddev * jax.random.normal(key, leaf.shape, leaf.dtype)


def _xavier(key, role, leaf, shape, config) -> jax.Array:
  if role.kind == "table":
    return config.width**-0.5 * jax.random.normal(key, leaf.shape, leaf.dtype)
  limit = math.sqrt(6 / (math.prod(shape[: role.inputs]) + math.prod(shape[role.inputs :])))
  return jax.random.uniform(key, leaf.shape, leaf.dtype, -limit, limit)
