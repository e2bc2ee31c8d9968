"""From a function of JAX to an ONNX graph, by way of its jaxpr.

`convert` traces the function with symbolic dimensions. An equation whose inputs are all constants
is computed now, so that reshaped and transposed kernels are constants of the graph. Every other one
is mapped by its rule in plm_jax/export/onnx_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from plm_jax.errors import UserError
from plm_jax.export.onnx_graph import Graph, Tensor
from plm_jax.export.onnx_patterns import REWRITES
from plm_jax.export.onnx_rules import RULES, WHOLE

# The parameter that has the jaxpr of a primitive that calls one, once.
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LOOPS = ("scan", "while", "cond")


def convert(
  function: Callable[..., Mapping[str, jax.Array]],
  params: Any,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> Graph:
  """The graph of `function(params, **inputs)`.

  inputs: int32 or float32, with dimensions of `jax.export.symbolic_shape`. Whole numbers are int64
  in the graph, as in transformers. Errors: `UserError` for an operation without a rule.
  """
  traced = jax.make_jaxpr(lambda p, x: function(p, **x), return_shape=True)
  with jax.default_matmul_precision("float32"):
    closed, shapes = traced(params, dict(inputs))
  graph = Graph(REWRITES)
  names = sorted(inputs)  # the order of a dict's leaves
  tensors = {name: _input(graph, name, inputs[name]) for name in inputs}
  values = [*jax.tree.leaves(params), *(tensors[name] for name in names)]
  with jax.default_matmul_precision("float32"):
    made = _run(graph, closed.jaxpr, closed.consts, values)
  leaves = jax.tree.leaves(shapes)
  whole = [_whole(graph, x, leaf.shape) for x, leaf in zip(made, leaves, strict=True)]
  graph.outputs = dict(zip(sorted(shapes), whole, strict=True))
  return graph


def _input(graph: Graph, name: str, struct: jax.ShapeDtypeStruct) -> Tensor:
  is_whole = np.issubdtype(struct.dtype, np.integer)
  tensor = graph.input(name, tuple(struct.shape), np.int64 if is_whole else struct.dtype)
  return graph.cast(tensor, struct.dtype)


def _whole(graph: Graph, x: Any, shape: tuple) -> Tensor:
  """A tensor of exactly this shape."""
  tensor = x if isinstance(x, Tensor) else graph.constant(x)
  return graph.expand(tensor, tuple(shape))


def _run(graph: Graph, jaxpr: Jaxpr, consts: list, inputs: list) -> list:
  """The outputs of a jaxpr: tensors, or arrays if they are constants."""
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

  def read(atom):
    return atom.val if isinstance(atom, Literal) else values[atom]

  for eqn in jaxpr.eqns:
    made = _equation(graph, eqn, [read(atom) for atom in eqn.invars])
    values.update(zip(eqn.outvars, made, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, eqn, inputs: list) -> list:
  name, params = eqn.primitive.name, eqn.params
  called = next((params[key] for key in CALLS if key in params and name not in LOOPS), None)
  if called is not None:
    is_closed = isinstance(called, ClosedJaxpr)
    jaxpr, consts = (called.jaxpr, called.consts) if is_closed else (called, [])
    return _run(graph, jaxpr, consts, inputs)
  if _is_constant(eqn, inputs):
    made = eqn.primitive.bind(*inputs, **params)
    return made if eqn.primitive.multiple_results else [made]
  if name not in RULES:
    raise UserError(
      f"the operation {name} of JAX has no rule for ONNX, so this model cannot be exported to it; "
      "export stablehlo instead, or add a rule to plm_jax/export/onnx_rules.py."
    )
  avals = [atom.aval for atom in eqn.invars]
  tensors = [
    x if isinstance(x, Tensor) else graph.constant(x, aval.dtype) for x, aval in zip(inputs, avals)
  ]
  if name in WHOLE:
    tensors = [_whole(graph, x, aval.shape) for x, aval in zip(tensors, avals)]
  try:
    made = RULES[name](graph, eqn, *tensors)
  except NotImplementedError as error:
    raise UserError(
      f"ONNX has no form of {error}, so this model cannot be exported to it; export stablehlo "
      "instead."
    ) from None
  return made if isinstance(made, list) else [made]


def _is_constant(eqn, inputs: list) -> bool:
  """Whether an equation can be computed now."""
  sizes = [size for var in eqn.outvars for size in var.aval.shape]
  return (
    eqn.primitive.name != "dim_as_value"
    and not any(isinstance(x, Tensor) for x in inputs)
    and all(isinstance(size, int) for size in sizes)
  )
