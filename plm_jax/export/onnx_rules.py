"""The ONNX form of each primitive of JAX.

A rule is `rule(graph, equation, *inputs)`: the output of the equation, or a list of outputs. Inputs
and outputs are tensors that broadcast to the shapes of the equation: a scalar or a mask `[B, 1, 1,
S]` is not expanded before an operation that needs it. `WHOLE` names the rules that do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from plm_jax.export.onnx_graph import END, Graph, Shape, Tensor
from plm_jax.export.onnx_patterns import unwrapped

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
  return cast(graph, x, eqn.params["new_dtype"])


def cast(graph: Graph, x: Tensor, dtype: Any) -> Tensor:
  """x in another dtype."""
  if x.dtype == dtype:
    return x
  return graph.op("Cast", x, shape=x.shape, dtype=dtype, to=np.dtype(dtype))


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


# --- shapes


def _shape_out(eqn: JaxprEqn) -> Shape:
  return tuple(eqn.outvars[0].aval.shape)


def _reshape(graph: Graph, eqn: JaxprEqn, x: Tensor, *sizes: Tensor) -> Tensor:
  return graph.reshape(x, _shape_out(eqn))


def _broadcast_in_dim(graph: Graph, eqn: JaxprEqn, x: Tensor, *sizes: Tensor) -> Tensor:
  """x with axes of size 1 for the new ones, which later operations broadcast."""
  if not x.shape:
    return x
  axes = eqn.params["broadcast_dimensions"][-len(x.shape) :]  # x may lack leading axes of size 1
  shape = [1] * (len(_shape_out(eqn)) - axes[0])
  for axis, size in zip(axes, x.shape):
    shape[axis - axes[0]] = size
  return graph.reshape(x, tuple(shape))


def _transpose(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return graph.transpose(x, eqn.params["permutation"])


def _iota(graph: Graph, eqn: JaxprEqn, *sizes: Tensor) -> Tensor:
  """The numbers of one axis; the other axes are broadcast."""
  shape, axis = _shape_out(eqn), eqn.params["dimension"]
  dtype = np.dtype(eqn.params["dtype"])
  end = cast(graph, graph.reshape(graph.dim(shape[axis]), ()), dtype)
  first, step = (graph.constant(np.asarray(x, dtype)) for x in (0, 1))
  row = graph.op("Range", first, end, step, shape=(shape[axis],))
  return graph.reshape(row, (shape[axis],) + (1,) * (len(shape) - axis - 1))


def _dim_as_value(graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  value = graph.reshape(graph.dim(eqn.params["dim"]), ())
  return cast(graph, value, eqn.outvars[0].aval.dtype)


def _concatenate(graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  return graph.op("Concat", *inputs, shape=_shape_out(eqn), axis=eqn.params["dimension"])


def _slice(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
  steps = eqn.params["strides"] or (1,) * len(starts)
  for axis, (start, limit, step, size) in enumerate(zip(starts, limits, steps, _shape_out(eqn))):
    if size != x.shape[axis] or step != 1:
      end = graph.constant([END]) if limit == x.shape[axis] else graph.dim(limit)
      x = graph.slice(x, axis, graph.dim(start), end, size, step)
  return x


def _split(graph: Graph, eqn: JaxprEqn, x: Tensor) -> list[Tensor]:
  axis, start, parts = eqn.params["axis"], 0, []
  for size in eqn.params["sizes"]:
    parts.append(graph.slice(x, axis, graph.dim(start), graph.dim(start + size), size))
    start = start + size
  return parts


def _reverse(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  for axis in eqn.params["dimensions"]:
    first, end = graph.constant([-1], np.int64), graph.constant([-END], np.int64)
    x = graph.slice(x, axis, first, end, x.shape[axis], -1)
  return x


def _sliced(graph: Graph, x: Tensor, axis: int, start: Tensor, size: Any) -> Tensor:
  """`size` columns from `start` on."""
  start = graph.reshape(cast(graph, start, np.int64), (1,))
  end = graph.op("Add", start, graph.dim(size), shape=(1,))
  return graph.slice(x, axis, start, end, size)


def _dynamic_slice(graph: Graph, eqn: JaxprEqn, x: Tensor, *starts: Tensor) -> Tensor:
  for axis, size in enumerate(eqn.params["slice_sizes"]):
    if size != x.shape[axis]:
      x = _sliced(graph, x, axis, starts[axis], size)
  return x


def _pad(graph: Graph, eqn: JaxprEqn, x: Tensor, value: Tensor) -> Tensor:
  low, high, inner = zip(*eqn.params["padding_config"])
  if any(size != 0 for size in inner):
    raise NotImplementedError("pad between elements")
  return graph.op("Pad", x, graph.dims([*low, *high]), value, shape=_shape_out(eqn))


def _gather(graph: Graph, eqn: JaxprEqn, x: Tensor, at: Tensor) -> Tensor:
  """Whole slices at the indices of one axis, or one part of x. Indices are within x, as JAX
  promises or checks."""
  d, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
  batch = tuple(d.operand_batching_dims)
  if len(at.shape) == 1 and not batch and not d.collapsed_slice_dims:
    return _part(graph, x, at, d.start_index_map, sizes)
  (axis,) = d.start_index_map if len(d.start_index_map) == 1 else (None,)
  rest = [n for n in range(len(x.shape)) if n != axis and n not in batch]
  is_whole = axis is not None and all(sizes[n] == x.shape[n] for n in rest)
  if not is_whole or tuple(d.collapsed_slice_dims) != (axis,):
    raise NotImplementedError("gather of parts of slices")
  index = unwrapped(graph, graph.reshape(at, at.shape[:-1]))
  after = x.shape[axis + 1 :]
  if not batch:
    shape = (*x.shape[:axis], *index.shape, *after)
    made, first = graph.op("Gather", x, index, shape=shape, axis=axis), axis
  elif (*batch, axis) == tuple(range(axis + 1)) and tuple(d.start_indices_batching_dims) == batch:
    index = graph.reshape(cast(graph, index, np.int64), at.shape)
    shape, batches = (*at.shape[:-1], *after), len(batch)
    made, first = graph.op("GatherND", x, index, shape=shape, batch_dims=batches), 0
  else:
    raise NotImplementedError("gather with batch axes that are not the first")
  indices = list(range(first, first + len(at.shape) - 1))
  slices = [n for n in range(len(made.shape)) if n not in indices]
  order = [(slices if n in d.offset_dims else indices).pop(0) for n in range(len(made.shape))]
  return graph.transpose(made, order)


def _part(graph: Graph, x: Tensor, at: Tensor, axes, sizes) -> Tensor:
  """The part of x that begins at one index; so JAX writes a slice with symbolic sizes."""
  for number, axis in enumerate(axes):
    start = graph.slice(at, 0, graph.dim(number), graph.dim(number + 1), 1)
    x = _sliced(graph, x, axis, start, sizes[axis])
  return x


# --- reductions


def _reduced(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  axes = tuple(eqn.params["axes"])
  kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
  made = graph.op(kind, x, graph.constant(axes, np.int64), shape=kept, keepdims=1)
  return graph.reshape(made, _shape_out(eqn))


def _reduced_bool(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return cast(graph, _reduced(kind, graph, eqn, cast(graph, x, np.int32)), bool)


def _arg(kind: str, graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  (axis,) = eqn.params["axes"]
  made = graph.op(kind, x, shape=_shape_out(eqn), dtype=np.int64, axis=axis, keepdims=0)
  return cast(graph, made, eqn.params["index_dtype"])


def _cumsum(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  axis = graph.constant(np.asarray(eqn.params["axis"], np.int64))
  return graph.op("CumSum", x, axis, shape=x.shape, reverse=int(eqn.params["reverse"]))


# --- products


def _dot_general(graph: Graph, eqn: JaxprEqn, left: Tensor, right: Tensor) -> Tensor:
  """A `MatMul` of the operands in the order that transposes fewer of them."""
  contracted, batch = eqn.params["dimension_numbers"]
  straight = _sides(graph, left, right, contracted, batch)
  swapped = _sides(graph, right, left, contracted[::-1], batch[::-1])
  sizes, n = _shape_out(eqn), len(batch[0])
  if _transposes(graph, *straight) <= _transposes(graph, *swapped):
    return graph.reshape(_product(graph, *straight, n), sizes)
  made = _product(graph, *swapped, n)
  free = len(left.shape) - n - len(contracted[0])
  made = graph.reshape(made, (*sizes[:n], *sizes[n + free :], *sizes[n : n + free]))
  rest = len(sizes) - n - free
  return graph.transpose(made, (*range(n), *range(n + rest, len(sizes)), *range(n, n + rest)))


def _sides(graph: Graph, left: Tensor, right: Tensor, contracted, batch) -> list:
  """(operand, the order of its axes for MatMul, the number of its free axes) of both operands."""
  sides = []
  for x, inner, outer in zip((left, right), contracted, batch):
    free = tuple(n for n in range(len(x.shape)) if n not in (*inner, *outer))
    is_left = not sides
    order = (*outer, *free, *inner) if is_left else (*outer, *inner, *free)
    sides.append((x, order, len(free)))
  return sides


def _transposes(graph: Graph, *sides) -> int:
  """The number of operands that must be transposed when the graph runs."""
  return sum(order != tuple(range(len(order))) and graph.value(x) is None for x, order, _ in sides)


def _product(graph: Graph, left, right, batch: int) -> Tensor:
  """`[*batch, *free of left, *free of right]`. A right side without batch axes is one matrix, and
  the left side keeps its axes."""
  (x, x_order, x_free), (w, w_order, w_free) = left, right
  x, w = graph.transpose(x, x_order), graph.transpose(w, w_order)
  outer, inner = x.shape[:batch], x.shape[batch + x_free :]
  rows, columns = x.shape[batch : batch + x_free], w.shape[len(w.shape) - w_free :]
  if not batch and len(inner) == 1:
    x = _before_reshape(graph, x)
    rows = x.shape[:-1]
  elif x_free != 1 or len(inner) != 1:
    x = graph.reshape(x, (*outer, prod(rows), prod(inner)))
    rows = (prod(rows),)
  if w_free != 1 or len(inner) != 1:
    w = graph.reshape(w, (*outer, prod(inner), prod(columns)))
  return graph.op("MatMul", x, w, shape=(*outer, *rows, w.shape[-1]))


def _before_reshape(graph: Graph, x: Tensor) -> Tensor:
  """`[..., K]` for x `[R, K]` whose rows were joined by a reshape."""
  node = graph.producer(x)
  if node is None or node.kind != "Reshape":
    return x
  source, width = node.inputs[0], x.shape[-1]
  for axis in range(1, len(source.shape)):
    if prod(source.shape[axis:]) == width:
      return graph.reshape(source, (*source.shape[:axis], width))
  return x


Rule = Callable[..., Tensor | list[Tensor]]
WHOLE: dict[str, Rule] = {
  "argmax": partial(_arg, "ArgMax"),
  "argmin": partial(_arg, "ArgMin"),
  "concatenate": _concatenate,
  "cumsum": _cumsum,
  "dot_general": _dot_general,
  "dynamic_slice": _dynamic_slice,
  "expand_dims": _reshape,
  "gather": _gather,
  "pad": _pad,
  "reduce_and": partial(_reduced_bool, "ReduceMin"),
  "reduce_max": partial(_reduced, "ReduceMax"),
  "reduce_min": partial(_reduced, "ReduceMin"),
  "reduce_or": partial(_reduced_bool, "ReduceMax"),
  "reduce_prod": partial(_reduced, "ReduceProd"),
  "reduce_sum": partial(_reduced, "ReduceSum"),
  "reshape": _reshape,
  "rev": _reverse,
  "slice": _slice,
  "split": _split,
  "squeeze": _reshape,
  "transpose": _transpose,
}
RULES: dict[str, Rule] = {
  **{name: partial(_named, kind) for name, kind in NAMES.items()},
  **{name: partial(_compared, kind) for name, kind in COMPARISONS.items()},
  **dict.fromkeys(SAME, _same),
  "broadcast_in_dim": _broadcast_in_dim,
  "clamp": _clamp,
  "convert_element_type": _convert,
  "dim_as_value": _dim_as_value,
  "erfc": _erfc,
  "expm1": _expm1,
  "integer_pow": _integer_pow,
  "iota": _iota,
  "log1p": _log1p,
  "max": _max,
  "ne": _differs,
  "rsqrt": _rsqrt,
  "select_n": _select,
  "square": _square,
  **WHOLE,
}
