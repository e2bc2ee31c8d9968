"""Initial weights whose size depends on what a kernel does.

Sources: google-research/mesh, mesh_tensorflow transformer_layers.py and t5/models/gin (T5: what
attention does not divide by is in the kernels); tensorflow/tensor2tensor, models/transformer.py
(Vaswani: `uniform_unit_scaling`, tables at 1 / sqrt(D)).
"""

from __future__ import annotations

import math
from typing import Literal

import jax
from flax import nnx

from plm_jax.models.layers import STDDEV, normal_kernels, scaled_kernels

Initializer = Literal["truncated_normal", "normal", "t5", "xavier"]
_HEADS = ("pooler", "classes", "token_classes", "span")  # of fine-tuning: 0.02 whatever the model


def initialised(model: nnx.Module, key: jax.Array, kind: Initializer, stddev: float) -> nnx.Module:
  """The model with every kernel and table rescaled (`truncated_normal`) or drawn anew.

  normal: with one standard deviation. t5: tokens N(0, 1), queries N(0, 1 / (D H)), all else
  N(0, 1 / fan-in). xavier: kernels uniform, variance 2 / (fan-in + fan-out); tables N(0, 1 / D).
  """
  if kind == "truncated_normal":
    return scaled_kernels(model, stddev / STDDEV)
  if kind == "normal":
    return normal_kernels(model, key, stddev)
  draw = _t5 if kind == "t5" else _xavier
  leaves, treedef = jax.tree_util.tree_flatten_with_path(model)
  drawn = []
  for number, (path, leaf) in enumerate(leaves):
    names = [name for name in (getattr(entry, "name", None) for entry in path) if name != "value"]
    if names[-1] in ("kernel", "table") and not set(names) & set(_HEADS):
      shape = leaf.shape[1:] if "blocks" in names else leaf.shape
      leaf = draw(jax.random.fold_in(key, number), names, leaf, shape, model.config)
    drawn.append(leaf)
  return jax.tree_util.tree_unflatten(treedef, drawn)


def _t5(key, names, leaf, shape, config) -> jax.Array:
  stddev = math.prod(shape[: 2 if names[-2] == "output" else 1]) ** -0.5
  if names[-2] == "query" and config.attention_scale == 1:
    stddev *= shape[-1] ** -0.5
  if names[-1] == "table":
    stddev = 1.0 if names[-2] == "token" else config.width**-0.5
  return stddev * jax.random.normal(key, leaf.shape, leaf.dtype)


def _xavier(key, names, leaf, shape, config) -> jax.Array:
  if names[-1] == "table":
    return config.width**-0.5 * jax.random.normal(key, leaf.shape, leaf.dtype)
  inputs = 2 if names[-2] == "output" else 1
  limit = math.sqrt(6 / (math.prod(shape[:inputs]) + math.prod(shape[inputs:])))
  return jax.random.uniform(key, leaf.shape, leaf.dtype, -limit, limit)
