"""A frozen model with a few trained parameters beside it. Models know nothing of it.

A method (`Peft`) maps a tree of parameters to a tree of parameters:

    added = method.init(key, base)            path of a module -> name -> array
    model = method.apply(base, added, noise)  the base with other modules at these paths

A replaced module has the call of the original, so the forward pass, the layer loop (scanned or
unrolled, shared or not) and generation are the base's. In training the parameters are an
`AdaptedModel`: the frozen leaves of the base, its trained leaves, and the added ones.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.dropout import Noise
from plm_jax.models.layers import Linear
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role, named, path_name, role, roles_of

Added = Mapping[str, Mapping[str, jax.Array]]
LARGEST = 1 << 20  # rows or columns of an added array
FROZEN = ("base/*",)  # the paths of an `AdaptedModel` without gradient, moments and checkpoint

# Small matrices, equal on all devices. The longest end of a path decides its row, so those of
# queries are a row each: a model may divide the scores by scaling its queries.
_MATRIX = Role(("features", "features"), "kernel", "layer")
_VECTOR = Role(("features",), "bias", "layer")
_TABLE = Role(("features", "features"), "table", "embedding")
ROLES: dict[str, Role] = {
  "lora_a": _MATRIX,
  "lora_b": _MATRIX,
  "query/lora_b": _MATRIX._replace(query=True),
  "lora_magnitude": Role(("features",), "gain", "layer"),
  "query/lora_magnitude": Role(("features",), "gain", "layer", query=True),
  "lora_seed": Role((), "bias", "layer"),
  "input_gain": Role(("features",), "gain", "layer"),
  "output_gain": Role(("features",), "gain", "layer"),
  "adapter_down": _MATRIX,
  "adapter_down_bias": _VECTOR,
  "adapter_up": _MATRIX,
  "adapter_up_bias": _VECTOR,
  "prefix_keys": _MATRIX,
  "prefix_values": _MATRIX,
  "prefix_table": _TABLE,
  "prefix_up": _MATRIX,
  "prefix_up_bias": _VECTOR,
  "prefix_down": _MATRIX,
  "prefix_down_bias": _VECTOR,
  "read_keys": Role(("positions", "heads", "head_width"), "kernel", "layer"),
  "read_values": Role(("positions", "heads", "head_width"), "kernel", "layer"),
  "prompt_table": _TABLE,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peft:
  """A method of parameter-efficient tuning.

  train: path patterns of the base's own parameters that are trained besides, such as "classes/*";
    none is the heads with labels, which the task adds.
  """

  train: tuple[str, ...] | None = None
  merges: ClassVar[bool] = False  # whether the result is a model of the base's structure

  @property
  def columns(self) -> int:
    """The positions of a row that the method takes."""
    return 0

  def init(self, key: jax.Array, base: Parameters) -> Added:
    """The added parameters before training. Errors: `UserError` for targets that are not there."""
    return {}

  def fitted(self, base: Parameters, added: Added) -> Added:
    """The added parameters before training, if they depend on the base's values."""
    return added

  def apply(self, base: Parameters, added: Added, noise: Noise | None = None) -> Parameters:
    """The model that computes with both."""
    return base

  def merged(self, base: Parameters, added: Added) -> Parameters:
    """A model of the base's structure that computes the same, if the method `merges`."""
    raise NotImplementedError

  def trains(self, path: str, role: Role) -> bool:
    """Whether a parameter of the base is trained, besides those of `train`."""
    return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedModel:
  """The parameters of a training. base, trained: two trees of the base's structure, of which one
  has None at every leaf."""

  ROLES: ClassVar[dict[str, Role]] = ROLES

  base: Parameters
  trained: Parameters
  added: Added
  peft: Peft = dataclasses.field(metadata={"static": True})

  @property
  def whole(self) -> Parameters:
    """The base with all its leaves."""
    return jax.tree.map(
      lambda frozen, trained: trained if frozen is None else frozen,
      self.base,
      self.trained,
      is_leaf=_is_none,
    )

  def on(self, base: Parameters) -> AdaptedModel:
    """The same method on another base, before training."""
    added = self.peft.fitted(base, self.added)
    parts = {"base": _as_in(self.base, base), "trained": _as_in(self.trained, base)}
    return dataclasses.replace(self, **parts, added=added)

  def applied(self, noise: Noise | None = None) -> Parameters:
    """The model that computes."""
    return self.peft.apply(self.whole, self.added, noise)

  def result(self) -> Parameters:
    """The model after training: of the base's structure if the method merges."""
    return self.peft.merged(self.whole, self.added) if self.peft.merges else self.applied()

  def share(self) -> str:
    """A sentence with the numbers of trained and of all parameters."""
    frozen, trained, added = (
      sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
      for part in (self.base, self.trained, self.added)
    )
    total = frozen + trained + added
    return (
      f"{type(self.peft).__name__} trains {trained + added:,} of {total:,} parameters "
      f"({(trained + added) / total:.2%}): {added:,} added, {trained:,} of the model"
    )

  def encoder(self) -> Parameters:
    return self.applied().encoder()

  def masked_lm(self) -> Parameters | None:
    return self.applied().masked_lm()


def _is_none(node: Any) -> bool:
  return node is None


def _as_in(part: Parameters, whole: Parameters) -> Parameters:
  """The leaves of `whole` where `part` has one, and None elsewhere."""
  return jax.tree.map(lambda old, new: None if old is None else new, part, whole, is_leaf=_is_none)


def adapted(peft: Peft, base: Parameters, key: jax.Array, heads: tuple[str, ...]) -> AdaptedModel:
  """The base split into what is frozen and what is trained, with the method's parameters.

  heads: patterns of the heads that are trained if `peft.train` is None. Errors: `UserError` for a
  pattern that fits nothing, and for a method that would train nothing of this model.
  """
  patterns = heads if peft.train is None else peft.train
  roles, paths = roles_of(base), [path for path, _ in named(base)]
  for pattern in peft.train or ():
    if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
      kinds = dict.fromkeys("/".join(path.split("/")[:-1]) + "/*" for path in paths)
      raise UserError(f"peft.train={pattern} fits no parameter; the model has {', '.join(kinds)}")

  def is_trained(path: str) -> bool:
    listed = any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    return listed or peft.trains(path, role(path, roles))

  def part(wanted: bool) -> Parameters:
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf if is_trained(path_name(path)) is wanted else None, base
    )

  added = peft.init(key, base)
  return AdaptedModel(part(False), part(True), peft.fitted(base, added), peft)


# --- modules of a tree ----------------------------------------------------------------------------

Module = TypeVar("Module")


class Sizes(NamedTuple):
  """The sizes of a linear map: leading axes of layers, and the numbers of inputs and outputs."""

  layers: tuple[int, ...]
  inputs: int
  outputs: int


def modules(model: Parameters, kind: type[Module]) -> dict[str, Module]:
  """Path -> module of a class, such as "blocks/attention/query" -> `Linear`."""
  is_kind = lambda node: isinstance(node, kind)  # noqa: E731
  nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_kind)
  return {_module_path(path): node for path, node in nodes if is_kind(node)}


def replaced(
  model: Parameters, kind: type[Module], make: Callable[[str, Module], Any]
) -> Parameters:
  """The model with `make(path, module)` in place of every module of a class."""
  is_kind = lambda node: isinstance(node, kind)  # noqa: E731
  put = lambda path, node: make(_module_path(path), node) if is_kind(node) else node  # noqa: E731
  return jax.tree_util.tree_map_with_path(put, model, is_leaf=is_kind)


def _module_path(key_path) -> str:
  """Unlike `path_name`, with a last name `value`: attention has a module of that name."""
  return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def linears(model: Parameters) -> dict[str, tuple[Linear, Sizes]]:
  """The linear maps of a model by their paths, without those of heads."""
  roles, chosen = roles_of(model), {}
  for path, linear in modules(model, Linear).items():
    row = role(f"{path}/kernel", roles)
    if row.depth != "head":
      chosen[path] = linear, _sizes(linear, row)
  return chosen


def targets(model: Parameters, patterns: tuple[str, ...]) -> dict[str, Sizes]:
  """The sizes of the linear maps whose path fits a pattern, or ends in one.

  Errors: `UserError` listing the linear maps for a pattern that fits none, and without patterns.
  """
  inner, chosen = linears(model), {}
  check_not_empty(patterns, inner)
  for pattern in patterns:
    fitting = {path: sizes for path, (_, sizes) in inner.items() if fits(path, pattern)}
    if not fitting:
      raise UserError(
        f"peft.targets: {pattern} fits no linear map of the model; it has {', '.join(inner)}"
      )
    chosen |= fitting
  return chosen


def check_not_empty(patterns: tuple[str, ...], modules: Mapping[str, Any]) -> None:
  if not patterns:
    raise UserError(
      "peft.targets is empty, so that the method would train nothing of the model; name some of "
      f"{', '.join(modules)}"
    )


def check_sizes(least: int, **sizes: int | None) -> None:
  """A `UserError` for a size of a method that is out of bounds."""
  for name, size in sizes.items():
    if size is not None and not least <= size <= LARGEST:
      bound = f"must be at least {least}" if size < least else f"is more than {LARGEST:,}"
      raise UserError(f"peft.{name}={size} {bound}")


def fits(path: str, pattern: str) -> bool:
  """Whether a pattern describes a path or the end of it: "query" fits "blocks/attention/query"."""
  return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


def _sizes(linear: Linear, row: Role) -> Sizes:
  shape = linear.kernel.shape
  layers = len(shape) - len(row.axes)
  inputs, outputs = shape[layers : layers + linear.axes], shape[layers + linear.axes :]
  return Sizes(shape[:layers], math.prod(inputs), math.prod(outputs))


def matrix(linear: Linear, sizes: Sizes) -> jax.Array:
  """The kernel as `[*layers, inputs, outputs]`."""
  return linear.kernel[...].reshape(*sizes.layers, sizes.inputs, sizes.outputs)


def with_kernel(linear: Linear, kernel: jax.Array, bias: jax.Array | None = None) -> Linear:
  """The linear map with another kernel, of any shape with as many elements, and another bias."""
  changed = jax.tree.map(lambda leaf: leaf, linear)  # a copy
  changed.kernel = nnx.Param(kernel.reshape(linear.kernel.shape))
  if bias is not None:
    changed.bias = nnx.Param(bias.reshape(linear.bias.shape))
  return changed


def flat(x: jax.Array, axes: int) -> jax.Array:
  """The input of a linear map with its contracted axes as one."""
  return x.reshape(*x.shape[: x.ndim - axes], -1)


def as_outputs(y: jax.Array, like: jax.Array) -> jax.Array:
  """`[..., outputs]` in the shape and dtype of a linear map's output."""
  return y.reshape(like.shape).astype(like.dtype)


def number_of(path: str) -> int:
  """A number that tells the random numbers of one module from those of another."""
  return zlib.crc32(path.encode()) & 0x7FFFFFFF  # an int32
