"""A configuration as a tree of frozen dataclasses: places, text, JSON and comparisons.

A place has a path such as `objectives.mlm.rate`: fields by name, elements of a tuple by their
`.name` or index. Values are written in the form that `--set` (`plm_jax.overrides`) reads.
"""

import dataclasses
import functools
import importlib
import sys
import typing
from collections.abc import Collection, Iterator
from typing import Any

from plm_jax.errors import UserError

# --- places --------------------------------------------------------------------------------------


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
  """Resolved annotations by field name, for the fields of the constructor."""
  hints = typing.get_type_hints(kind)
  return {name: hints[name] for name in field_names(kind)}


def field_names(kind: Any) -> list[str]:
  return [f.name for f in dataclasses.fields(kind) if f.init]


def places(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
  """Paths and values of a whole configuration, every dataclass before its fields."""
  if path:
    yield path, config
  if dataclasses.is_dataclass(config):
    parts = [(name, getattr(config, name)) for name in field_names(config)]
  else:
    parts = list(zip(element_names(config), config)) if is_group(config) else []
  for name, value in parts:
    yield from places(value, join(path, name))


def is_group(value: Any) -> bool:
  """Whether it is a tuple of dataclasses, whose elements are separate places."""
  return isinstance(value, tuple) and value != () and all(map(dataclasses.is_dataclass, value))


def element_names(elements: tuple) -> list[str]:
  """The names of a tuple's elements: their `.name` if it is unique, else the index."""
  names = [getattr(element, "name", None) for element in elements]
  return [
    name if isinstance(name, str) and names.count(name) == 1 else str(index)
    for index, name in enumerate(names)
  ]


def is_within(path: str, fields: Collection[str]) -> bool:
  """Whether a path is one of some fields or lies below one."""
  return any(path == field or path.startswith(field + ".") for field in fields)


def join(path: str, name: str) -> str:
  return f"{path}.{name}" if path else name


def has_default(field: dataclasses.Field) -> bool:
  missing = dataclasses.MISSING
  return field.default is not missing or field.default_factory is not missing


# --- for the reader ------------------------------------------------------------------------------


def diff(config: Any, base: Any, path: str = "") -> list[tuple[str, Any, Any]]:
  """The deepest differences of two configurations: (path, value in base, value in config)."""
  if type(config) is type(base) and dataclasses.is_dataclass(config):
    names = field_names(config)
    parts = [(getattr(config, n), getattr(base, n), join(path, n)) for n in names]
  elif is_group(config) and is_group(base) and [*map(type, config)] == [*map(type, base)]:
    parts = [(c, b, join(path, key)) for c, b, key in zip(config, base, element_names(config))]
  else:
    return [] if config == base else [(path, base, config)]
  return [difference for part in parts for difference in diff(*part)]


def describe(config: Any) -> str:
  """One aligned line per place: a dataclass as `Name(...)`, other values as `--set` reads them."""
  lines = [
    (path, f"{type(value).__name__}(...)" if dataclasses.is_dataclass(value) else show(value))
    for path, value in places(config)
    if not is_group(value)
  ]
  width = max((len(path) for path, _ in lines), default=0)
  return "\n".join(f"{path:<{width}}   {text}".rstrip() for path, text in lines)


def show(value: Any) -> str:
  """A value as `--set` reads it; a dataclass with the fields that differ from their defaults."""
  if dataclasses.is_dataclass(value):
    shown = []
    for f in dataclasses.fields(value):
      default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
      if f.init and (not has_default(f) or getattr(value, f.name) != default):
        shown.append(f)
    arguments = ", ".join(f"{f.name}={_shown_inside(getattr(value, f.name))}" for f in shown)
    return f"{type(value).__name__}({arguments})"
  if isinstance(value, tuple):
    return ",".join(map(show, value)) if value else "()"
  return value if isinstance(value, str) else str(value).lower()


def _shown_inside(value: Any) -> str:
  """As `show`, inside a call, where text has quotes and tuples have brackets."""
  if isinstance(value, tuple):
    return "(" + "".join(_shown_inside(element) + "," for element in value) + ")"
  return repr(value) if isinstance(value, str) else show(value)


# --- json ----------------------------------------------------------------------------------------

# Today's paths of classes in stored configurations.
_MOVED = {
  "plm_jax.experiment.Schedule": "plm_jax.experiment.Intervals",
  "plm_jax.train.adafactor.Adafactor": "plm_jax.optim.adafactor.Adafactor",
  "plm_jax.train.mesh.MeshShape": "plm_jax.sharding.MeshShape",
  "plm_jax.train.optim.AdamW": "plm_jax.optim.adamw.AdamW",
  "plm_jax.train.optim.LAMB": "plm_jax.optim.adamw.LAMB",
}
OWN_MODULES: set[str] = set()
"""Modules of a user that were imported for a run, and may have classes of its configuration."""
GIVE_AGAIN = "--task=FILE:CLASS, or plm_jax.load(DIR, task='FILE:CLASS')"
_OTHER_VERSION = "the run was made by another version; use that one, or start a new run."


def to_json(config: Any) -> Any:
  """A tree of dataclasses as plain JSON values; "type" is the class of a dataclass."""
  if dataclasses.is_dataclass(config):
    names = field_names(config)
    assert "type" not in names, f"{type(config).__name__} has a field 'type', which json needs"
    values = {name: to_json(getattr(config, name)) for name in names}
    return {"type": _class_name(type(config)), **values}
  if isinstance(config, tuple):
    return [to_json(element) for element in config]
  if config is None or isinstance(config, bool | int | float | str):
    return config
  raise TypeError(f"a configuration cannot hold {config!r}: it has no form in json")


def from_json(data: Any, classes: Collection[type] = ()) -> Any:
  """Rebuilds what `to_json` wrote, running every `__post_init__`.

  Only modules of plm_jax are imported; `classes` are allowed from elsewhere, and those of a user's
  files and cells that are imported already. A field that is newer
  than the file takes its default. Errors: `UserError` for unknown classes and fields.
  """
  if isinstance(data, list):
    return tuple(from_json(element, classes) for element in data)
  if not isinstance(data, dict):
    return data
  name = data.get("type")
  kind = {_class_name(c): c for c in classes}.get(str(name)) or _find_class(name)
  fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
  unknown = [key for key in data if key != "type" and key not in fields]
  missing = [key for key, f in fields.items() if key not in data and not has_default(f)]
  if unknown or missing:
    verb = f"sets {', '.join(unknown)}" if unknown else f"does not set {', '.join(missing)}"
    raise UserError(
      f"The stored configuration {verb} of {name}, unlike this version of plm_jax: {_OTHER_VERSION}"
    )
  return kind(**{key: from_json(data[key], classes) for key in fields if key in data})


def _class_name(kind: type) -> str:
  return f"{kind.__module__}.{kind.__qualname__}"


def _find_class(name: Any) -> type:
  module, _, attribute = _MOVED.get(str(name), str(name)).rpartition(".")
  kind = None
  if module.split(".")[0] == "plm_jax":
    try:
      kind = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
      if not module.startswith(str(error.name)):
        raise  # the module exists; one of its imports does not
  elif module == "__main__" or module.startswith("file:") or module in OWN_MODULES:
    kind = getattr(sys.modules.get(module), attribute, None)
    if kind is None:
      is_of_cell = module == "__main__"
      place = "a notebook or a script" if is_of_cell else module.removeprefix("file:")
      remedy = (
        "define it first, or move it into a file" if is_of_cell else f"give it again ({GIVE_AGAIN})"
      )
      raise UserError(
        f"The stored configuration has the class {attribute} of {place}, which is not loaded: "
        f"{remedy}."
      )
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    return kind
  raise UserError(
    f"The stored configuration names {name}, which this version of plm_jax lacks: {_OTHER_VERSION}"
  )
