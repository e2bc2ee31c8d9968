"""The ONNX form of JAX's product of two arrays."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from plm_jax.export.onnx_graph import Graph, Tensor


class Side(NamedTuple):
  """An operand, the order of its axes for MatMul, and the number of its free axes."""

  x: Tensor
  order: tuple[int, ...]
  free: int


def dot_general(graph: Graph, eqn: JaxprEqn, left: Tensor, right: Tensor) -> Tensor:
  """A `MatMul` of the operands in the order that transposes fewer of them."""
  contracted, batch = eqn.params["dimension_numbers"]
  straight = _sides(left, right, contracted, batch)
  swapped = _sides(right, left, contracted[::-1], batch[::-1])
  sizes, n = tuple(eqn.outvars[0].aval.shape), len(batch[0])
  if _transposes(graph, straight) <= _transposes(graph, swapped):
    return graph.reshape(_product(graph, straight, n), sizes)
  made = _product(graph, swapped, n)
  free = len(left.shape) - n - len(contracted[0])
  made = graph.reshape(made, (*sizes[:n], *sizes[n + free :], *sizes[n : n + free]))
  rest = len(sizes) - n - free
  return graph.transpose(made, (*range(n), *range(n + rest, len(sizes)), *range(n, n + rest)))


def _sides(left: Tensor, right: Tensor, contracted, batch) -> tuple[Side, Side]:
  sides = []
  for x, inner, outer in zip((left, right), contracted, batch):
    free = tuple(n for n in range(len(x.shape)) if n not in (*inner, *outer))
    is_left = not sides
    order = (*outer, *free, *inner) if is_left else (*outer, *inner, *free)
    sides.append(Side(x, order, len(free)))
  return sides[0], sides[1]


def _transposes(graph: Graph, sides: tuple[Side, Side]) -> int:
  """The number of operands that must be transposed when the graph runs."""
  return sum(order != tuple(range(len(order))) and graph.value(x) is None for x, order, _ in sides)


def _product(graph: Graph, sides: tuple[Side, Side], batch: int) -> Tensor:
  """`[*batch, *free of left, *free of right]`. A right side without batch axes is one matrix, and
  the left side keeps its axes."""
  (x, x_order, x_free), (w, w_order, w_free) = sides
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
