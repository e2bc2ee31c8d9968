"""The forms in which a run's parameters are stored: float32, bfloat16, int8 and int4.

A form maps a tree of parameters to a smaller tree with the same calls. Models know nothing of it,
so it works for every family, for scanned and unrolled layers, and for layers that ALBERT shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.compression.quantised import (
  DynamicInt8,
  Int8Embedding,
  StaticInt8,
  WeightOnlyInt4,
  WeightOnlyInt8,
)
from plm_jax.errors import UserError
from plm_jax.models.layers import Embedding, Linear
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import role, roles_of
from plm_jax.peft.adapted import linears, replaced, with_kernel

SMALLEST = 4096  # weights of a table: smaller ones stay float32
_TABLES = (("vocab", "width"), ("positions", "width"))  # the axes of tables that become int8


def bfloat16(params: Parameters) -> Parameters:
  """All float32 parameters in bfloat16; layers compute in the dtype of their input, as before."""

  def cast(leaf):
    return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf

  return jax.tree.map(cast, params)


def quantised(params: Parameters, linear_form: Any) -> Parameters:
  """Linear maps as `linear_form` and large tables in int8. Heads, biases and norms stay as they
  are. Errors: `UserError` for sizes that the form does not have."""
  chosen, roles = linears(params), roles_of(params)

  def linear(path: str, module: Linear):
    return linear_form.of(module, chosen[path][1]) if path in chosen else module

  def table(path: str, module: Embedding):
    rows = module.table
    is_large = role(f"{path}/table", roles).axes in _TABLES and rows.size >= SMALLEST
    return Int8Embedding.of(module) if is_large and rows.ndim == 2 else module

  return replaced(replaced(params, Linear, linear), Embedding, table)


FORMS: dict[str, Callable[[Parameters], Parameters]] = {
  "bf16": bfloat16,
  "int8": lambda params: quantised(params, DynamicInt8),
  "static8": lambda params: quantised(params, StaticInt8),
  "w8": lambda params: quantised(params, WeightOnlyInt8),
  "w4": lambda params: quantised(params, WeightOnlyInt4),
}


def stored_as(form: str | None, params: Parameters) -> Parameters:
  """The parameters in a form; None is as the model makes them. Errors: `UserError` for an unknown
  form."""
  if form is None:
    return params
  if form not in FORMS:
    raise UserError(f"there is no form of parameters {form!r}; there are {', '.join(FORMS)}")
  return FORMS[form](params)


def expanded(params: Parameters, like: Parameters) -> Parameters:
  """The parameters in the structure and the dtypes of `like`, a model of float32 or its shapes,
  with the rounding that their form has."""
  kinds = (DynamicInt8, WeightOnlyInt8, WeightOnlyInt4, Int8Embedding)

  def full(wanted: Any, module):
    if not isinstance(module, kinds):
      return jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), wanted, module)
    if isinstance(module, Int8Embedding):
      changed = jax.tree.map(lambda leaf: leaf, wanted)
      changed.table = nnx.Param(module.table)
      return changed
    return with_kernel(wanted, module.kernel, module.bias)

  is_module = lambda node: isinstance(node, Linear | Embedding)  # noqa: E731
  return jax.tree.map(full, like, params, is_leaf=is_module)


def bytes_of(params: Parameters) -> int:
  """Bytes of all arrays in memory."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
