"""The ONNX form of each primitive of JAX.

A rule is `rule(graph, equation, *inputs)`: the output of the equation, or a list of outputs. Inputs
and outputs are tensors that broadcast to the shapes of the equation: a scalar or a mask `[B, 1, 1,
S]` is not expanded before an operation that needs it. `WHOLE` names the rules that do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from plm_jax.export import onnx_shapes as shapes
from plm_jax.export.onnx_graph import Graph, Shape, Tensor
from plm_jax.export.onnx_products import dot_general

LEAST = -1e29  # a constant below this, where a mask is False, makes a softmax 0


def broadcast(*shapes: Shape) -> Shape:
  """The shape of an elementwise operation in ONNX, as in numpy."""
  rank = max(map(len, shapes))
  aligned = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
  return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*aligned))


def narrow(graph: Graph, x: Tensor) -> Tensor:
  """A constant without its leading axes of size 1."""
  if graph.value(x) is None:
    return x
  shape = list(x.shape)
  while shape and shape[0] == 1:
    shape.pop(0)
  return graph.reshape(x, tuple(shape))


def elementwise(graph: Graph, kind: str, *inputs: Tensor, dtype: Any = None, **attributes: Any):
  """An operation whose inputs broadcast."""
  inputs = tuple(narrow(graph, x) for x in inputs)
  shape = broadcast(*(x.shape for x in inputs))
  return graph.op(kind, *inputs, shape=shape, dtype=dtype, **attributes)


def number(graph: Graph, value: float, like: Tensor) -> Tensor:
  return graph.constant(np.asarray(value, like.dtype))


# --- elementwise

NAMES = {
  "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos",
  "div": "Div", "erf": "Erf", "exp": "Exp", "floor": "Floor", "log": "Log", "logistic": "Sigmoid",
  "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "rem": "Mod",
  "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor",
}  # fmt: skip
COMPARISONS = {
  "eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less",
}  # fmt: skip
SAME = ("copy", "copy_p", "optimization_barrier", "reduce_precision", "sharding_constraint",
        "stop_gradient")  # fmt: skip


def _named(kind: str, graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  return elementwise(graph, kind, *inputs)


def _compared(kind: str, graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  return elementwise(graph, kind, *inputs, dtype=bool)


def _differs(graph: Graph, eqn: JaxprEqn, x: Tensor, y: Tensor) -> Tensor:
  return elementwise(graph, "Not", elementwise(graph, "Equal", x, y, dtype=bool))


def _same(graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> list[Tensor]:
  return list(inputs)


def _max(graph: Graph, eqn: JaxprEqn, x: Tensor, y: Tensor) -> Tensor:
  for a, b in ((x, y), (y, x)):  # softmax takes the larger of its maximum and -inf
    array = graph.value(a)
    if array is not None and array.size == 1 and array.item() == -np.inf:
      return b
  return elementwise(graph, "Max", x, y)


def _square(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return elementwise(graph, "Mul", x, x)


def _integer_pow(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  if eqn.params["y"] == 2:
    return _square(graph, eqn, x)
  return elementwise(graph, "Pow", x, number(graph, eqn.params["y"], x))


def _rsqrt(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return elementwise(graph, "Reciprocal", elementwise(graph, "Sqrt", x))


def _erfc(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return elementwise(graph, "Sub", number(graph, 1, x), elementwise(graph, "Erf", x))


def _log1p(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return elementwise(graph, "Log", elementwise(graph, "Add", x, number(graph, 1, x)))


def _expm1(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return elementwise(graph, "Sub", elementwise(graph, "Exp", x), number(graph, 1, x))


def _clamp(graph: Graph, eqn: JaxprEqn, least: Tensor, x: Tensor, most: Tensor) -> Tensor:
  return elementwise(graph, "Min", elementwise(graph, "Max", x, least), most)


def _convert(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return graph.cast(x, eqn.params["new_dtype"])


def _select(graph: Graph, eqn: JaxprEqn, which: Tensor, *cases: Tensor) -> Tensor:
  """A large negative number at masked scores is added to them, which gives the same softmax: all
  layers share the sum's small operand."""
  if which.dtype != bool or len(cases) != 2:
    raise NotImplementedError("select_n with more than two cases")
  otherwise, chosen = cases  # for False, for True
  if chosen.dtype == bool:  # ONNX Runtime has no Where of these
    kept = elementwise(graph, "And", which, chosen)
    rest = elementwise(graph, "And", elementwise(graph, "Not", which), otherwise)
    return elementwise(graph, "Or", kept, rest)
  fill = graph.value(narrow(graph, otherwise))
  is_mask = fill is not None and fill.size == 1 and fill.dtype == np.float32
  if is_mask and fill.item() < LEAST and len(which.shape) == 4:
    none = number(graph, 0, chosen)
    added = elementwise(graph, "Where", which, none, otherwise, dtype=chosen.dtype)
    return elementwise(graph, "Add", chosen, added)
  return elementwise(graph, "Where", which, chosen, otherwise, dtype=chosen.dtype)


# --- reductions


def _reduced(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  axes = tuple(eqn.params["axes"])
  kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
  made = graph.op(kind, x, graph.constant(axes, np.int64), shape=kept, keepdims=1)
  return graph.reshape(made, shapes.shape_of(eqn))


def _reduced_bool(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return graph.cast(_reduced(kind, graph, eqn, graph.cast(x, np.int32)), bool)


def _arg(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  (axis,) = eqn.params["axes"]
  made = graph.op(kind, x, shape=shapes.shape_of(eqn), dtype=np.int64, axis=axis, keepdims=0)
  return graph.cast(made, eqn.params["index_dtype"])


def _cumsum(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  axis = graph.constant(np.asarray(eqn.params["axis"], np.int64))
  return graph.op("CumSum", x, axis, shape=x.shape, reverse=int(eqn.params["reverse"]))


Rule = Callable[..., Tensor | list[Tensor]]
WHOLE: dict[str, Rule] = {
  "argmax": partial(_arg, "ArgMax"),
  "argmin": partial(_arg, "ArgMin"),
  "concatenate": shapes.concatenate,
  "cumsum": _cumsum,
  "dot_general": dot_general,
  "dynamic_slice": shapes.dynamic_slice,
  "expand_dims": shapes.reshape,
  "gather": shapes.gather,
  "pad": shapes.pad,
  "reduce_and": partial(_reduced_bool, "ReduceMin"),
  "reduce_max": partial(_reduced, "ReduceMax"),
  "reduce_min": partial(_reduced, "ReduceMin"),
  "reduce_or": partial(_reduced_bool, "ReduceMax"),
  "reduce_prod": partial(_reduced, "ReduceProd"),
  "reduce_sum": partial(_reduced, "ReduceSum"),
  "reshape": shapes.reshape,
  "rev": shapes.reverse,
  "slice": shapes.slice,
  "split": shapes.split,
  "squeeze": shapes.reshape,
  "transpose": shapes.transpose,
}
RULES: dict[str, Rule] = {
  **{name: partial(_named, kind) for name, kind in NAMES.items()},
  **{name: partial(_compared, kind) for name, kind in COMPARISONS.items()},
  **dict.fromkeys(SAME, _same),
  "broadcast_in_dim": shapes.broadcast_in_dim,
  "clamp": _clamp,
  "convert_element_type": _convert,
  "dim_as_value": shapes.dim_as_value,
  "erfc": _erfc,
  "expm1": _expm1,
  "integer_pow": _integer_pow,
  "iota": shapes.iota,
  "log1p": _log1p,
  "max": _max,
  "ne": _differs,
  "rsqrt": _rsqrt,
  "select_n": _select,
  "square": _square,
  **WHOLE,
}
