"""The ONNX form of JAX's primitives that change shapes, and of look-ups."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from plm_jax.export.onnx_graph import END, Graph, Shape, Tensor
from plm_jax.export.onnx_patterns import unwrapped


def shape_of(eqn: JaxprEqn) -> Shape:
  """The shape of an equation's first output."""
  return tuple(eqn.outvars[0].aval.shape)


def reshape(graph: Graph, eqn: JaxprEqn, x: Tensor, *sizes: Tensor) -> Tensor:
  return graph.reshape(x, shape_of(eqn))


def broadcast_in_dim(graph: Graph, eqn: JaxprEqn, x: Tensor, *sizes: Tensor) -> Tensor:
  """x with axes of size 1 for the new ones, which later operations broadcast."""
  if not x.shape:
    return x
  axes = eqn.params["broadcast_dimensions"][-len(x.shape) :]  # x may lack leading axes of size 1
  shape = [1] * (len(shape_of(eqn)) - axes[0])
  for axis, size in zip(axes, x.shape):
    shape[axis - axes[0]] = size
  return graph.reshape(x, tuple(shape))


def transpose(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  return graph.transpose(x, eqn.params["permutation"])


def iota(graph: Graph, eqn: JaxprEqn, *sizes: Tensor) -> Tensor:
  """The numbers of one axis; the other axes are broadcast."""
  shape, axis = shape_of(eqn), eqn.params["dimension"]
  dtype = np.dtype(eqn.params["dtype"])
  end = graph.cast(graph.reshape(graph.dim(shape[axis]), ()), dtype)
  first, step = (graph.constant(np.asarray(x, dtype)) for x in (0, 1))
  row = graph.op("Range", first, end, step, shape=(shape[axis],))
  return graph.reshape(row, (shape[axis],) + (1,) * (len(shape) - axis - 1))


def dim_as_value(graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  value = graph.reshape(graph.dim(eqn.params["dim"]), ())
  return graph.cast(value, eqn.outvars[0].aval.dtype)


def concatenate(graph: Graph, eqn: JaxprEqn, *inputs: Tensor) -> Tensor:
  return graph.op("Concat", *inputs, shape=shape_of(eqn), axis=eqn.params["dimension"])


def slice(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
  steps = eqn.params["strides"] or (1,) * len(starts)
  for axis, (start, limit, step, size) in enumerate(zip(starts, limits, steps, shape_of(eqn))):
    if size != x.shape[axis] or step != 1:
      end = graph.constant([END]) if limit == x.shape[axis] else graph.dim(limit)
      x = graph.slice(x, axis, graph.dim(start), end, size, step)
  return x


def split(graph: Graph, eqn: JaxprEqn, x: Tensor) -> list[Tensor]:
  axis, start, parts = eqn.params["axis"], 0, []
  for size in eqn.params["sizes"]:
    parts.append(graph.slice(x, axis, graph.dim(start), graph.dim(start + size), size))
    start = start + size
  return parts


def reverse(graph: Graph, eqn: JaxprEqn, x: Tensor) -> Tensor:
  for axis in eqn.params["dimensions"]:
    first, end = graph.constant([-1], np.int64), graph.constant([-END], np.int64)
    x = graph.slice(x, axis, first, end, x.shape[axis], -1)
  return x


def _sliced(graph: Graph, x: Tensor, axis: int, start: Tensor, size: Any) -> Tensor:
  """`size` columns from `start` on."""
  start = graph.reshape(graph.cast(start, np.int64), (1,))
  end = graph.op("Add", start, graph.dim(size), shape=(1,))
  return graph.slice(x, axis, start, end, size)


def dynamic_slice(graph: Graph, eqn: JaxprEqn, x: Tensor, *starts: Tensor) -> Tensor:
  for axis, size in enumerate(eqn.params["slice_sizes"]):
    if size != x.shape[axis]:
      x = _sliced(graph, x, axis, starts[axis], size)
  return x


def pad(graph: Graph, eqn: JaxprEqn, x: Tensor, value: Tensor) -> Tensor:
  low, high, inner = zip(*eqn.params["padding_config"])
  if any(size != 0 for size in inner):
    raise NotImplementedError("pad between elements")
  return graph.op("Pad", x, graph.dims([*low, *high]), value, shape=shape_of(eqn))


def gather(graph: Graph, eqn: JaxprEqn, x: Tensor, at: Tensor) -> Tensor:
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
    index = graph.reshape(graph.cast(index, np.int64), at.shape)
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
