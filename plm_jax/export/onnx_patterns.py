"""Single ONNX operations in place of several: norms, GELU, softmax.

A pattern is a tuple (operation, input, ...). An input is a pattern, a number (a constant), or a
name for any tensor, the same one wherever the name is repeated. `Add` and `Mul` match in both
orders. Rules write a mean as a sum divided by a number and a square as `Mul(x, x)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from plm_jax.export.onnx_graph import Graph, Tensor

Pattern = Any
Matched = Mapping[str, Tensor]


def matches(graph: Graph, pattern: Pattern, tensor: Tensor, so_far: Matched) -> Iterator[Matched]:
  """All ways in which a tensor is an instance of a pattern."""
  if isinstance(pattern, str):
    if so_far.get(pattern, tensor).name == tensor.name:
      yield {**so_far, pattern: tensor}
    return
  if not isinstance(pattern, tuple):
    array = graph.value(tensor)
    if array is not None and array.size == 1 and math.isclose(array.item(), pattern, rel_tol=1e-5):
      yield so_far
    return
  node, (kind, *inputs) = graph.producer(tensor), pattern
  if node is None or node.kind != kind or len(node.inputs) != len(inputs):
    return
  orders = [node.inputs]
  if kind in ("Add", "Mul"):
    orders.append(node.inputs[::-1])
  for order in orders:
    yield from _all(graph, list(zip(inputs, order)), so_far)


def _all(graph: Graph, pairs: list, so_far: Matched) -> Iterator[Matched]:
  if not pairs:
    yield so_far
    return
  pattern, tensor = pairs[0]
  for matched in matches(graph, pattern, tensor, so_far):
    yield from _all(graph, pairs[1:], matched)


def _mean(of: Pattern) -> Pattern:
  return "Div", ("ReduceSum", of, "axes"), "count"


def _square(of: Pattern) -> Pattern:
  return "Mul", of, of


_RMS_NORM = "Mul", "x", ("Reciprocal", ("Sqrt", ("Add", _mean(_square("x")), "eps")))
_CENTRED = "Sub", "x", _mean("x")
_MEAN_SQUARE = "ReduceMean", ("Pow", _CENTRED, 2.0), "last"
_LAYER_NORM = "Mul", ("Div", _CENTRED, ("Sqrt", ("Add", _MEAN_SQUARE, "eps"))), "gain"
_BIASED = "Add", ("LayerNormalization", "x", "gain"), "bias"
_EXP = "Exp", ("Sub", "x", ("ReduceMax", "x", "axes"))
_SOFTMAX = "Div", _EXP, ("ReduceSum", _EXP, "axes")
_CUBIC = "Add", "x", ("Mul", 0.044715, ("Pow", "x", 3.0))
_TANH = "Add", 1.0, ("Tanh", ("Mul", math.sqrt(2 / math.pi), _CUBIC))
_GELU_TANH = "Mul", "x", ("Mul", 0.5, _TANH)
_ERF = "Add", 1.0, ("Erf", ("Mul", "x", math.sqrt(0.5)))
_GELU_ERF = "Mul", ("Mul", 0.5, "x"), _ERF


def _reads_last(graph: Graph, matched: Matched) -> bool:
  """Whether the sums are over the last axis, and means are divided by its size."""
  x, axes, count = matched["x"], graph.value(matched["axes"]), matched.get("count")
  if axes is None or axes.tolist() != [len(x.shape) - 1]:
    return False
  size = None if count is None else graph.value(count)
  return count is None or (size is not None and size.size == 1 and size.item() == x.shape[-1])


def _layer_norm(graph: Graph, matched: Matched, made: Tensor) -> Tensor | None:
  x, gain, eps = matched["x"], matched["gain"], graph.value(matched["eps"])
  if gain.shape != x.shape[-1:] or eps is None or not _reads_last(graph, matched):
    return None
  epsilon = float(eps.item())
  return graph.op("LayerNormalization", x, gain, shape=made.shape, axis=-1, epsilon=epsilon)


def _biased(graph: Graph, matched: Matched, made: Tensor) -> Tensor | None:
  x, gain, bias = (matched[name] for name in ("x", "gain", "bias"))
  if bias.shape != gain.shape or graph.value(bias) is None:
    return None
  inputs = graph.producer(made).inputs
  norm = next(node for t in inputs if (node := graph.producer(t)) and node.inputs == (x, gain))
  return graph.op(norm.kind, x, gain, bias, shape=made.shape, **dict(norm.attributes))


def _rms_norm(graph: Graph, matched: Matched, made: Tensor) -> Tensor | None:
  """The form that ONNX Runtime makes one kernel of, together with the gain that follows; also the
  last part of a layer norm."""
  x, eps = matched["x"], matched["eps"]
  if not _reads_last(graph, matched):
    return None
  narrow = (*x.shape[:-1], 1)
  square = graph.op("Pow", x, graph.constant(2.0, np.float32), shape=x.shape)
  last = graph.constant([-1], np.int64)
  mean = graph.op("ReduceMean", square, last, shape=narrow, keepdims=1)
  root = graph.op("Sqrt", graph.op("Add", mean, eps, shape=narrow), shape=narrow)
  return graph.op("Div", x, root, shape=made.shape)


def _softmax(graph: Graph, matched: Matched, made: Tensor) -> Tensor | None:
  if not _reads_last(graph, matched):
    return None
  return graph.op("Softmax", matched["x"], shape=made.shape, axis=-1)


def _without(neutral: float):
  """`x + 0`, `x * 1`, `x and True` or `x or False` as x."""

  def rewrite(graph: Graph, made: Tensor) -> Tensor | None:
    for x, other in (pair := graph.producer(made).inputs, pair[::-1]):
      array = graph.value(other)
      if array is not None and array.shape == () and array.item() == neutral:
        return x
    return None

  return rewrite


def _gelu(approximate: str):
  def build(graph: Graph, matched: Matched, made: Tensor) -> Tensor:
    return graph.op("Gelu", matched["x"], shape=made.shape, approximate=approximate)

  return build


def _bias_before_heads(graph: Graph, made: Tensor) -> Tensor | None:
  """`x.reshape(..., N, H) + bias` as `(x + bias).reshape`, so that the sum is beside the product
  that ONNX Runtime joins it with."""
  for x, bias in (pair := graph.producer(made).inputs, pair[::-1]):
    node, array = graph.producer(x), graph.value(bias)
    if node is None or node.kind != "Reshape" or array is None or array.ndim < 2:
      continue
    flat, split = node.inputs[0], len(array.shape)
    if flat.shape == (*x.shape[:-split], array.size) and x.shape[-split:] == array.shape:
      summed = graph.op("Add", flat, graph.constant(array.reshape(-1)), shape=flat.shape)
      return graph.reshape(summed, x.shape)
  return None


def _rewrite(pattern: Pattern, build):
  def rewrite(graph: Graph, made: Tensor) -> Tensor | None:
    for matched in matches(graph, pattern, made, {}):
      if (tensor := build(graph, matched, made)) is not None:
        return tensor
    return None

  return rewrite


def unwrapped(graph: Graph, at: Tensor) -> Tensor:
  """Indices before JAX adds the size of the axis to negative ones, which ONNX does itself."""
  pattern = "Where", ("Less", "at", 0), ("Add", "at", "size"), "at"
  return next((matched["at"] for matched in matches(graph, pattern, at, {})), at)


def _never(graph: Graph, made: Tensor) -> Tensor | None:
  """`x and False` as False."""
  inputs = graph.producer(made).inputs
  return next((x for x in inputs if (v := graph.value(x)) is not None and not v.any()), None)


REWRITES = {
  "And": [_without(True), _never],
  "Or": [_without(False)],
  "Add": [_without(0), _rewrite(_BIASED, _biased), _bias_before_heads],
  "Mul": [
    _without(1),
    _rewrite(_LAYER_NORM, _layer_norm),
    _rewrite(_RMS_NORM, _rms_norm),
    _rewrite(_GELU_TANH, _gelu("tanh")),
    _rewrite(_GELU_ERF, _gelu("none")),
  ],
  "Div": [_rewrite(_SOFTMAX, _softmax)],
}
