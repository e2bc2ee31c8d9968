"""Our parameter paths <-> the tensor names of a published checkpoint, and their layouts.

A family's file lists `Entry`s. The names decide the layout: a `kernel` [*inputs, *outputs] of ours
is a torch Linear's weight [outputs, inputs], or a Conv1D's [inputs, outputs] (GPT-2); all else has
our layout, with heads side by side. Layers are one array here and separate tensors there.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.models.parameters import path_name


class Entry(NamedTuple):
  """ours: a path such as "blocks/attention/query/kernel". theirs: a name with one "{}" for every
  leading axis of ours, followed by "#0/3" for the first of three parts side by side; "" if
  there is no such tensor because ours is zero. convolution: the weight is a Conv1D's. later: the
  first layer has no such tensor, and reads none of ours."""

  ours: str
  theirs: str
  convolution: bool = False
  later: bool = False


def linear(ours: str, theirs: str, bias: bool = True, convolution: bool = False) -> list[Entry]:
  """Kernel and bias of a linear map."""
  entries = [Entry(f"{ours}/kernel", f"{theirs}.weight", convolution)]
  return entries + ([Entry(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def norm(ours: str, theirs: str, bias: bool = True) -> list[Entry]:
  """Gain and bias of a norm."""
  entries = [Entry(f"{ours}/gain", f"{theirs}.weight")]
  return entries + ([Entry(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def table(ours: str, theirs: str) -> list[Entry]:
  return [Entry(f"{ours}/table", f"{theirs}.weight")]


def under(prefix: str, entries: Iterable[Entry]) -> list[Entry]:
  """The entries with `prefix` before their names."""
  return [entry._replace(theirs=prefix + entry.theirs) for entry in entries]


def to_ours(entries: list[Entry], model: Any, tensors: Mapping[str, np.ndarray], where: str) -> Any:
  """The model's parameters from a checkpoint's tensors, as float32.

  model: real or abstract, for its paths and shapes. tensors: exactly those that the entries name.
  Errors: `UserError` naming missing and surplus tensors, and those of another shape.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(model)
  shapes = {path_name(path): leaf.shape for path, leaf in leaves}
  by_path = _by_path(entries, shapes)
  zeros = {path: np.zeros(shapes[path], np.float32) for path in shapes if path not in by_path}
  tensors = _in_parts(entries, tensors)
  for path, entry in by_path.items():
    layers = math.prod(shapes[path][: entry.theirs.count("{}")])
    if layers > len(tensors):  # before all these names are made
      raise UserError(
        f"the weights in {where} do not fit: config.json asks for {layers} tensors named "
        f"{entry.theirs.partition('#')[0]}, and there are {len(tensors)} in all."
      )
  names = {path: names_of(entry, shapes[path]) for path, entry in by_path.items()}
  expected = {
    name: _their_shape(by_path[path], shapes[path])
    for path in names
    for name in names[path].flat
    if name
  }
  _refuse_misfits(expected, tensors, where)
  arrays = {
    path: _stacked(by_path[path], [tensors.get(name) for name in names[path].flat], shapes[path])
    for path in names
  }
  return jax.tree.unflatten(tree, [(arrays | zeros)[path] for path in shapes])


def to_theirs(entries: list[Entry], model: Any) -> dict[str, np.ndarray]:
  """{name: float32 array} of all parameters of a model; the inverse of `to_ours`, bit for bit."""
  arrays = {
    path_name(path): np.asarray(leaf, np.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model)
  }
  tensors = {}
  by_path = _by_path(entries, {path: a.shape for path, a in arrays.items()})
  for path in arrays.keys() - by_path.keys():
    if arrays[path].any():
      raise UserError(f"{path} is not zero, and transformers' model has no such parameter.")
  for path, entry in by_path.items():
    names = names_of(entry, arrays[path].shape)
    single = arrays[path].reshape(names.size, *arrays[path].shape[names.ndim :])
    shape = _their_shape(entry, arrays[path].shape)
    for name, array in zip(names.flat, single, strict=True):
      if path.endswith("/kernel") and not entry.convolution:
        array = array.reshape(shape[::-1]).T
      if name:
        tensors[name] = array.reshape(shape)
  return _whole(tensors, entries)


def _by_path(entries: list[Entry], shapes: Mapping[str, tuple]) -> dict[str, Entry]:
  by_path = {entry.ours: entry for entry in entries}
  unnamed = shapes.keys() ^ by_path.keys()
  assert not unnamed, f"the family's table and the model differ in {sorted(unnamed)}"
  return {path: by_path[path] for path in shapes if by_path[path].theirs}


def _in_parts(entries: list[Entry], tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors; one that several entries name parts of is cut along the axis of its outputs."""
  whole = _parts(entries)
  cut = {}
  for name, array in tensors.items():
    count, axis = whole.get(re.sub(r"\d+", "{}", name), (0, 0))
    if not count or not array.ndim or array.shape[axis] % count:
      cut[name] = array
      continue
    for i, part in enumerate(np.split(array, count, axis=axis)):
      cut[f"{name}#{i}/{count}"] = part
  return cut


def _parts(entries: list[Entry]) -> dict[str, tuple[int, int]]:
  """Name with "{}" for numbers -> (parts, axis of the outputs)."""
  return {
    re.sub(r"\d+|{}", "{}", e.theirs.partition("#")[0]): (
      int(e.theirs[-1]),
      -1 if e.convolution else 0,
    )
    for e in entries
    if "#" in e.theirs
  }


def _whole(tensors: dict[str, np.ndarray], entries: list[Entry]) -> dict[str, np.ndarray]:
  """The inverse of `_in_parts`."""
  whole = _parts(entries)
  joined: dict[str, list[np.ndarray]] = {}
  for name in sorted(tensors):
    joined.setdefault(name.partition("#")[0], []).append(tensors[name])
  return {
    name: arrays[0]
    if len(arrays) == 1
    else np.concatenate(arrays, axis=whole[re.sub(r"\d+", "{}", name)][1])
    for name, arrays in joined.items()
  }


def names_of(entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
  """The names of an entry's tensors, with one axis for each leading axis of ours."""
  leading = shape[: entry.theirs.count("{}")]
  names = [entry.theirs.format(*index) for index in itertools.product(*map(range, leading))]
  names[0] = "" if entry.later else names[0]
  return np.array(names, object).reshape(leading)


def _their_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  shape = shape[entry.theirs.count("{}") :]
  *_, layer, kind = entry.ours.split("/")
  if kind == "bias":
    return (math.prod(shape),)
  if kind != "kernel":
    return shape
  inputs = 2 if layer == "output" else 1  # attention's output contracts heads and their width
  sizes = math.prod(shape[:inputs]), math.prod(shape[inputs:])
  return sizes if entry.convolution else sizes[::-1]


def _stacked(entry: Entry, arrays: list[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
  if entry.ours.endswith("/kernel") and not entry.convolution:
    arrays = [array.T for array in arrays]
  single = shape[entry.theirs.count("{}") :]
  rows = [
    np.ones(single, np.float32) if array is None else np.asarray(array, np.float32).reshape(single)
    for array in arrays
  ]
  return np.stack(rows).reshape(shape)


def _refuse_misfits(expected: dict[str, tuple], tensors: Mapping, where: str) -> None:
  wrong = [f"{name} is missing" for name in expected if name not in tensors]
  wrong += [f"{name} has no place in the model" for name in sorted(tensors.keys() - expected)]
  wrong += [
    f"{name} has the shape {list(tensors[name].shape)} and config.json asks for {list(shape)}"
    for name, shape in expected.items()
    if name in tensors and tensors[name].shape != shape
  ]
  wrong += [
    f"{name} has the dtype {tensors[name].dtype}, which weights never have"
    for name in expected
    if name in tensors and tensors[name].dtype.kind not in "fV"
  ]
  wrong = list(dict.fromkeys(re.sub(r"#\d/\d", "", line) for line in wrong))
  if wrong:
    more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise UserError(f"the weights in {where} do not fit: {'; '.join(wrong[:5])}{more}.")
