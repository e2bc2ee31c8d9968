"""The modules of transformers that an adapter of PEFT changes, and our linear maps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.names import Entry, names_of
from plm_jax.export.pretrained import Pretrained, tops
from plm_jax.models.parameters import named
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Sizes


def entries_of(base: Pretrained) -> list[Entry]:
  return hf.entries_of(base.family, base.config, base.heads, bool(tops(base.heads)))


class Place(NamedTuple):
  """A linear map of one layer: our path, the index of the layer, and its part of a joint map."""

  path: str
  layer: tuple[int, ...]
  part: int
  parts: int


def places_of(base: Pretrained) -> dict[str, list[Place]]:
  """Module of transformers -> the linear maps that it consists of, in order."""
  shapes = {path: leaf.shape for path, leaf in named(base.params)}
  places: dict[str, list[Place]] = {}
  for entry in entries_of(base):
    if not entry.ours.endswith("/kernel") or not entry.theirs:
      continue
    names = names_of(entry, shapes[entry.ours])
    for layer in np.ndindex(names.shape):
      name, _, at = names[layer].partition("#")
      part, parts = map(int, at.split("/")) if at else (0, 1)
      module, path = name.removesuffix(".weight"), entry.ours.removesuffix("/kernel")
      places.setdefault(module, []).append(Place(path, layer, part, parts))
  return {module: sorted(each, key=lambda place: place.part) for module, each in places.items()}


def taken(tensors: dict[str, np.ndarray], endings: tuple[str, ...]) -> dict[str, dict]:
  """Module -> ending -> tensor, for the tensors with one of these endings, which are removed."""
  taken: dict[str, dict[str, np.ndarray]] = {}
  for name in sorted(tensors):
    for ending in endings:
      if name.endswith(f".{ending}"):
        taken.setdefault(name.removesuffix(f".{ending}"), {})[ending] = tensors.pop(name)
  return taken


def placed(
  modules: Mapping[str, Any], base: Pretrained
) -> list[tuple[str, Place, Sizes, dict[str, np.ndarray]]]:
  """Every linear map of the modules with its tensors. Errors: `UserError` for a module that the
  base does not have."""
  places, linears = places_of(base), adapted.linears(base.params)
  placed = []
  for module, tensors in modules.items():
    if module not in places or places[module][0].path not in linears:
      known = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in places)
      raise UserError(
        f"the adapter changes {module}, which is no linear map of the base's "
        f"{base.architecture}; it has {', '.join(known)}."
      )
    placed += [(module, place, linears[place.path][1], tensors) for place in places[module]]
  return placed


def refuse_shape(name: str, array: np.ndarray, *shape: int | None) -> None:
  fits = len(array.shape) == len(shape) and all(
    wanted in (None, size) for wanted, size in zip(shape, array.shape)
  )
  if not fits:
    wanted = ", ".join("r" if size is None else str(size) for size in shape)
    raise UserError(
      f"{name} of the adapter has the shape {list(array.shape)}, and the base needs [{wanted}]: it "
      "belongs to another base."
    )


def part_of(array: np.ndarray, place: Place) -> np.ndarray:
  """The rows of one of several joint maps."""
  return np.split(array, place.parts)[place.part]


def as_arrays(added: Mapping) -> dict[str, dict[str, jax.Array]]:
  return {path: {n: jnp.asarray(x) for n, x in arrays.items()} for path, arrays in added.items()}
