"""A graph of ONNX operations, built one node at a time.

Equal nodes are made once, reshapes and transposes that follow each other are joined, and nodes that
no output needs are not written. Dimensions are numbers or the symbolic ones of `jax.export`; an
expression of them is computed in the graph from the shapes of its inputs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

OPSET = 21  # has Gelu (20) and LayerNormalization (17)
IR_VERSION = 10  # the first with this opset
END = np.iinfo(np.int64).max  # the end of an axis, for Slice
INT64 = np.dtype(np.int64)

Dim = Any
"""A number, or a symbolic dimension."""
Shape = tuple[Dim, ...]


_ARITHMETIC: Mapping[type, str] = {
  ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow",
}  # fmt: skip
_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


class Tensor(NamedTuple):
  """The name, the shape and the dtype of an array of the graph."""

  name: str
  shape: Shape
  dtype: np.dtype


class Node(NamedTuple):
  """An operation with one output. attributes: sorted by name."""

  kind: str
  inputs: tuple[Tensor, ...]
  attributes: tuple[tuple[str, Any], ...]


Rewrite = Callable[["Graph", Tensor], Tensor | None]
"""A faster form of the tensor that a new node makes, or None."""


class Graph:
  """Inputs, constants, nodes and outputs. rewrites: tried on each new node, by its operation."""

  def __init__(self, rewrites: Mapping[str, Sequence[Rewrite]] | None = None):
    self.inputs: list[Tensor] = []
    self.outputs: dict[str, Tensor] = {}
    self.nodes: dict[str, Node] = {}  # by the name of the output, in an order that can be computed
    self.constants: dict[str, np.ndarray] = {}
    self.rewrites = rewrites or {}
    self._made: dict[Any, Tensor] = {}
    self._kept: list[Any] = []  # arrays whose id is a key of `_made`
    self._symbols: dict[str, tuple[Tensor, int]] = {}

  # --- inputs, constants, nodes

  def input(self, name: str, shape: Shape, dtype: np.dtype) -> Tensor:
    """A new input. Its axes define the symbols that are their sizes."""
    tensor = Tensor(name, shape, np.dtype(dtype))
    self.inputs.append(tensor)
    for axis, size in enumerate(shape):
      if not isinstance(size, int):
        self._symbols.setdefault(str(size), (tensor, axis))
    return tensor

  def constant(self, value: Any, dtype: Any = None) -> Tensor:
    """A constant; the same array, or an equal small one, is stored once."""
    key = id(value), dtype
    if key in self._made:
      return self._made[key]
    array = np.asarray(value, dtype)
    content = (array.shape, array.dtype.str, array.tobytes()) if array.size <= 4096 else None
    tensor = self._made.get(content) if content else None
    if tensor is None:
      tensor = Tensor(f"constant_{len(self.constants)}", array.shape, array.dtype)
      self.constants[tensor.name] = array
    if content:
      self._made[content] = tensor
    else:
      self._made[key] = tensor
      self._kept.append(value)
    return tensor

  def op(
    self, kind: str, *inputs: Tensor, shape: Shape, dtype: Any = None, **attributes: Any
  ) -> Tensor:
    """The output of a node. dtype: None is that of the first input."""
    node = Node(kind, inputs, tuple(sorted(attributes.items())))
    key = kind, tuple(tensor.name for tensor in inputs), node.attributes
    if key not in self._made:
      name = f"{kind.lower()}_{len(self.nodes)}"
      made = Tensor(name, tuple(shape), np.dtype(inputs[0].dtype if dtype is None else dtype))
      self.nodes[name] = node
      faster = (rewrite(self, made) for rewrite in self.rewrites.get(kind, ()))
      self._made[key] = next((tensor for tensor in faster if tensor is not None), made)
    return self._made[key]

  def producer(self, tensor: Tensor) -> Node | None:
    """The node that makes a tensor; None for inputs and constants."""
    return self.nodes.get(tensor.name)

  def value(self, tensor: Tensor) -> np.ndarray | None:
    """The array of a constant."""
    return self.constants.get(tensor.name)

  # --- shapes

  def dim(self, size: Dim) -> Tensor:
    """int64 `[1]`: the value of a dimension."""
    if isinstance(size, int | np.integer):
      return self.constant([int(size)], np.int64)
    return self._expression(ast.parse(str(size), mode="eval").body)

  def _expression(self, node: ast.expr) -> Tensor:
    """int64 `[1]` of an expression as `jax.export` prints it, such as `2*b + max(t, 3)`."""
    match node:
      case ast.Constant(value):
        return self.constant([value], np.int64)
      case ast.Name(symbol):
        tensor, axis = self._symbols[symbol]
        return self.op("Shape", tensor, shape=(1,), dtype=np.int64, start=axis, end=axis + 1)
      case ast.UnaryOp(ast.USub(), operand):
        return self.op("Neg", self._expression(operand), shape=(1,))
      case ast.BinOp(left, operation, right):
        kind = _ARITHMETIC[type(operation)]
      case ast.Call(ast.Name(function), [left, right]):
        kind = _FUNCTIONS[function]
      case _:
        raise NotImplementedError(f"the dimension {ast.unparse(node)}")
    return self.op(kind, self._expression(left), self._expression(right), shape=(1,))

  def dims(self, sizes: Sequence[Dim]) -> Tensor:
    """int64 `[n]`: the values of n dimensions."""
    if all(isinstance(size, int | np.integer) for size in sizes):
      return self.constant([int(size) for size in sizes], np.int64)
    parts = [self.dim(size) for size in sizes]
    return parts[0] if len(parts) == 1 else self.op("Concat", *parts, shape=(len(parts),), axis=0)

  # --- operations that are joined

  def reshape(self, x: Tensor, shape: Shape) -> Tensor:
    """x in another shape, from the tensor before all reshapes."""
    while (node := self.producer(x)) and node.kind == "Reshape":
      x = node.inputs[0]
    shape = tuple(shape)
    if x.shape == shape:
      return x
    if (array := self.value(x)) is not None:
      return self.constant(array.reshape(shape))
    # 0 copies the input's size, -1 is the rest: most shapes need no computation.
    sizes = [
      0 if axis < len(x.shape) and size == x.shape[axis] else size
      for axis, size in enumerate(shape)
    ]
    unknown = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(unknown) > 1:
      return self.op("Reshape", x, self.dims(shape), shape=shape, allowzero=1)
    if unknown:
      sizes[unknown[0]] = -1
    return self.op("Reshape", x, self.dims(sizes), shape=shape)

  def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
    """x with its axes in another order; a constant is transposed now."""
    order = tuple(order)
    if (node := self.producer(x)) and node.kind == "Transpose":
      x, before = node.inputs[0], dict(node.attributes)["perm"]
      order = tuple(before[axis] for axis in order)
    if order == tuple(range(len(order))):
      return x
    if (array := self.value(x)) is not None:
      return self.constant(np.ascontiguousarray(array.transpose(order)))
    return self.op("Transpose", x, shape=tuple(x.shape[axis] for axis in order), perm=order)

  def cast(self, x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype."""
    if x.dtype == dtype:
      return x
    return self.op("Cast", x, shape=x.shape, dtype=dtype, to=np.dtype(dtype))

  def expand(self, x: Tensor, shape: Shape) -> Tensor:
    """x broadcast to a shape."""
    if x.shape == tuple(shape):
      return x
    return self.op("Expand", x, self.dims(shape), shape=shape)

  def slice(
    self, x: Tensor, axis: int, start: Tensor, end: Tensor, size: Dim, step: int = 1
  ) -> Tensor:
    """The columns of one axis from start to end, int64 `[1]` each; their number is `size`."""
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    step_1 = self.constant([step], np.int64)
    return self.op("Slice", x, start, end, self.constant([axis], np.int64), step_1, shape=shape)

  # --- the end

  def needed(self) -> tuple[dict[str, Node], dict[str, np.ndarray]]:
    """The nodes and the constants that the outputs are computed from."""
    wanted = {tensor.name for tensor in self.outputs.values()}
    nodes = {}
    for name, node in reversed(self.nodes.items()):
      if name in wanted:
        nodes[name] = node
        wanted.update(tensor.name for tensor in node.inputs)
    constants = {name: array for name, array in self.constants.items() if name in wanted}
    return dict(reversed(nodes.items())), constants
