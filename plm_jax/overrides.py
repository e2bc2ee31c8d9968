"""Command-line settings, such as `--set optim.peak=2e-4`, for any tree of frozen dataclasses.

An override names a field by its path; the field's annotation, never the form of the text, decides
how it is read. Every edited dataclass is rebuilt with `dataclasses.replace`, so every
`__post_init__` validates again. All overrides of one command are validated together:
`model.width=96` and `model.heads=12` may come in any order.

`1_000` and `1e6` are integers, `true false yes no 1 0` booleans, `none` is None, `a,b` a tuple.
Elements of a tuple are addressed by index or `.name`: `objectives.mlm.rate=0.2`. A field that
takes dataclasses accepts `data.tokenizer=BytePairs(vocab_size=8192)`. Nothing is evaluated.
"""

import ast
import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from plm_jax.aliases import EPOCHS, fields_named
from plm_jax.config_tree import (
  describe,
  diff,
  element_names,
  field_types,
  from_json,
  has_default,
  is_group,
  join,
  places,
  show,
  to_json,
)
from plm_jax.errors import UserError

__all__ = ["apply", "to_json", "from_json", "diff", "describe", "show"]

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# Strictest first: in `int | str`, 12 is a number.
_STRICTEST_FIRST = (type(None), bool, int, float, tuple, str)


# --- --set ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Edit:
  """The overrides of one place of the tree: a new value, and then edits below it."""

  text: str | None = None
  below: dict[str, "_Edit"] = dataclasses.field(default_factory=dict)

  def flags(self, path: str) -> str:
    """The overrides at and below this place, as the user wrote them."""
    return " ".join(
      ([f"--set {path}={self.text}"] if self.text is not None else [])
      + [edit.flags(join(path, name)) for name, edit in self.below.items()]
    )


def canonical(settings: Iterable[str]) -> list[str]:
  """The settings in one spelling, for comparisons: 1, 1.0, "1" and 1_0e-1 are the same number."""
  return [
    f"{path.strip()}={_canonical(text)}" for path, _, text in (s.partition("=") for s in settings)
  ]


def _canonical(text: str) -> str:
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
    text = text[1:-1]
  with contextlib.suppress(ValueError):
    number = float(text)
    return f"{number:.0f}" if number.is_integer() else repr(number)
  return {"yes": "true", "no": "false", "True": "true", "False": "false"}.get(text, text)


def apply(config: Any, overrides: Iterable[str]) -> Any:
  """The configuration with every `path=value` applied; the later of two for one path wins.

  Errors: `UserError`, which names the override, for an unknown path (with the nearest one), a value
  that the field's annotation does not allow, and a value that a `__post_init__` refuses.
  """
  root = _Edit()
  for override in overrides:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
      raise UserError(f"--set takes path=value, such as --set optim.peak=2e-4, not {override!r}.")
    edit = root
    for name in path.split("."):
      edit = edit.below.setdefault(name, _Edit())
    edit.text = text.strip()
    edit.below.clear()  # a new value replaces earlier edits of its parts
  return _edited(config, type(config), root, "")


def _edited(value: Any, annotation: Any, edit: _Edit, path: str) -> Any:
  if edit.text is not None:
    try:
      value = _parse(edit.text, annotation, (value,))
    except UserError as error:
      raise UserError(f"--set {path}={edit.text}: {error}") from None
  if not edit.below:
    return value
  if dataclasses.is_dataclass(value):
    return _edited_dataclass(value, edit, path)
  if is_group(value):
    return _edited_tuple(value, annotation, edit, path)
  known = _classes(_members(annotation, (value,)), (value,))
  classes = " or ".join(f"{name}(...)" for name in known)
  hint = f"; first give it a value: --set {path}={classes}" if classes else ""
  raise UserError(f"{edit.flags(path)}: {path} is {show(value)} and has no fields{hint}.")


def _edited_dataclass(config: Any, edit: _Edit, path: str) -> Any:
  hints = field_types(type(config))
  changes = {}
  for name, below in edit.below.items():
    if name not in hints:
      raise _unknown(config, path, name, list(hints), below)
    changes[name] = _edited(getattr(config, name), hints[name], below, join(path, name))
  try:
    return dataclasses.replace(config, **changes)
  except UserError as error:
    raise UserError(f"{edit.flags(path)}: {error}") from None


def _edited_tuple(elements: tuple, annotation: Any, edit: _Edit, path: str) -> tuple:
  keys = element_names(elements)
  edited = list(elements)
  for name, below in edit.below.items():
    if name in keys:
      index = keys.index(name)
    elif name.isdecimal() and int(name) < len(elements):
      index = int(name)
    else:
      raise _unknown(elements, path, name, keys, below)
    element = _element_annotation(annotation, index)
    edited[index] = _edited(edited[index], element, below, join(path, name))
  return tuple(edited)


def _unknown(owner: Any, path: str, name: str, names: list[str], edit: _Edit) -> UserError:
  """The error for an unknown name, with its field if it is an alias, else with the nearest name
  here, else with the nearest anywhere below."""
  paths = {join(path, place) for place, _ in places(owner)}
  for field in fields_named(name):
    if field in paths:
      unit = f" {EPOCHS}" if "epoch" in name else ""
      return UserError(
        f"{edit.flags(join(path, name))}: {name} is called {field} here;{unit} write "
        f"--set {field}=VALUE."
      )
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
  if not near:
    ends = {p.rpartition(".")[2]: p for p, _ in reversed(list(places(owner)))}
    near = [ends[end] for end in difflib.get_close_matches(name, ends, n=1, cutoff=0.7)]
  meant = f" Did you mean {join(path, near[0])!r}?" if near else ""
  where = f"{path} ({type(owner).__name__})" if path else type(owner).__name__
  return UserError(
    f"{edit.flags(join(path, name))}: there is no {name!r} in {where}.{meant} "
    f"There is: {', '.join(names)}."
  )


# --- text to value -------------------------------------------------------------------------------


class _Refused(Exception):
  """This type does not accept the text; another member of the union may."""


def _parse(text: str, annotation: Any, current: tuple) -> Any:
  """Reads `text` according to the annotation.

  current: the present values (for a tuple, all elements). Their types are used if the annotation
  gives none (`Any`, a protocol), and their classes are always allowed.
  """
  members = _members(annotation, current)
  classes = _classes(members, current)
  call = _call(text, classes)
  if call:
    return _construct(classes[call.name], call.arguments)
  for kind in (*filter(_is_literal, members), *_STRICTEST_FIRST):
    for member in members:
      if member is kind or (kind is tuple and _is_tuple(member)):
        try:
          return _scalar(text, member, current)
        except _Refused:
          pass
  raise UserError(f"expected {_expected(members, classes)}.")


def _scalar(text: str, kind: Any, current: tuple) -> Any:
  if _is_literal(kind):
    for member in typing.get_args(kind):
      if show(member) == text or (not isinstance(member, str) and text.lower() == show(member)):
        return member
  elif _is_tuple(kind):
    return _tuple(text, kind, current)
  elif kind is type(None) and text.lower() == "none":
    return None
  elif kind is bool and text.lower() in _BOOLEANS:
    return _BOOLEANS[text.lower()]
  elif kind is int:
    return _integer(text)
  elif kind is float:
    return _real(text)
  elif kind is str:
    return text
  raise _Refused


def _integer(text: str) -> int:
  try:
    number = Decimal(text)
  except InvalidOperation:
    raise _Refused from None
  # The bound keeps 1e999999999 from being written out.
  if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
    raise _Refused
  return int(number)


def _real(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    raise _Refused from None
  if math.isnan(number):
    raise _Refused
  return number


def _tuple(text: str, annotation: Any, current: tuple) -> tuple:
  parts = _split(text)
  arguments = typing.get_args(annotation)
  is_fixed = bool(arguments) and arguments[-1] is not Ellipsis
  if is_fixed and len(parts) != len(arguments):
    raise UserError(f"expected {len(arguments)} values with commas between them.")
  elements = tuple(e for value in current if isinstance(value, tuple) for e in value)
  return tuple(
    _parse(part, _element_annotation(annotation, index), elements)
    for index, part in enumerate(parts)
  )


def _split(text: str) -> list[str]:
  """The parts of `a,b`, `(a,b)` or `[a,b]`; commas inside brackets or quotes do not separate."""
  if text[:1] + text[-1:] in ("()", "[]"):
    text = text[1:-1]
  parts, depth, quote = [""], 0, ""
  for character in text:
    if quote:
      quote = "" if character == quote else quote
    elif character in "'\"":
      quote = character
    elif character in "([":
      depth += 1
    elif character in ")]":
      depth -= 1
    if character == "," and depth == 0 and not quote:
      parts.append("")
    else:
      parts[-1] += character
  parts = [part.strip() for part in parts]
  if parts[-1] == "":  # `a,` is one element, as in Python
    parts.pop()
  quoted = [len(p) > 1 and p[0] == p[-1] and p[0] in "'\"" for p in parts]
  return [p[1:-1] if q else p for p, q in zip(parts, quoted)]


class _Call(NamedTuple):
  name: str
  arguments: dict[str, str]


def _call(text: str, classes: dict[str, type]) -> _Call | None:
  """The name and argument texts of `Name` or `Name(field=value, ...)`; None for other text."""
  name = text.partition("(")[0].strip()
  if name not in classes:
    return None
  try:
    node = ast.parse(text, mode="eval").body
  except (SyntaxError, ValueError):
    raise UserError(
      f"this cannot be read; write {name}(field=value, ...) with text values in quotes."
    ) from None
  if isinstance(node, ast.Name):
    return _Call(node.id, {})
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
    return None
  arguments = {keyword.arg: _source(keyword.value) for keyword in node.keywords if keyword.arg}
  if node.args or len(arguments) < len(node.keywords):
    raise UserError(f"fields are given by name: {name}(field=value, ...).")
  return _Call(node.func.id, arguments)


def _source(node: ast.expr) -> str:
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  return ast.unparse(node)


def _construct(kind: type, arguments: dict[str, str]) -> Any:
  hints = field_types(kind)
  fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
  values = {}
  for name, text in arguments.items():
    if name not in fields:
      near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
      meant = f" Did you mean {near[0]!r}?" if near else ""
      raise UserError(f"{kind.__name__} has no field {name!r}.{meant} It has: {', '.join(fields)}.")
    default = fields[name].default
    try:
      values[name] = _parse(text, hints[name], () if default is dataclasses.MISSING else (default,))
    except UserError as error:
      raise UserError(f"{name}={text}: {error}") from None
  missing = [name for name, f in fields.items() if name not in values and not has_default(f)]
  if missing:
    raise UserError(f"{kind.__name__} also needs: {', '.join(missing)}.")
  return kind(**values)


# --- annotations ---------------------------------------------------------------------------------


def _members(annotation: Any, current: tuple) -> list[Any]:
  """The members of a union, flat; the types of `current` are added to members such as `Any`."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return [m for part in typing.get_args(annotation) for m in _members(part, current)]
  is_specific = annotation in _STRICTEST_FIRST or _is_literal(annotation) or _is_tuple(annotation)
  if is_specific or dataclasses.is_dataclass(annotation):
    return [annotation]
  return [annotation, *map(type, current)]


def _classes(members: list[Any], current: tuple) -> dict[str, type]:
  """The allowed dataclasses: the annotation's, their subclasses, and those of `current`."""
  kinds = [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
  for kind in kinds:  # grows during the loop: subclasses of subclasses
    kinds.extend(s for s in kind.__subclasses__() if dataclasses.is_dataclass(s))
  kinds.extend(type(value) for value in current if dataclasses.is_dataclass(value))
  return {kind.__name__: kind for kind in kinds}


def _element_annotation(annotation: Any, index: int) -> Any:
  for member in filter(_is_tuple, _members(annotation, ())):
    arguments = typing.get_args(member)
    if arguments and arguments[-1] is Ellipsis:
      return arguments[0]
    if index < len(arguments):
      return arguments[index]
  return Any


def _expected(members: list[Any], classes: dict[str, type]) -> str:
  names: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
  }
  names[type(None)] = "none"
  options = [f"{name}(...)" for name in classes]
  for member in members:
    if _is_literal(member):
      options.extend(show(value) for value in typing.get_args(member))
    elif _is_tuple(member):
      options.append("values with commas between them")
    elif member in names:
      options.append(names[member])
  return " or ".join(dict.fromkeys(options)) or "a value that a command line cannot give"


def _is_literal(annotation: Any) -> bool:
  return typing.get_origin(annotation) is Literal


def _is_tuple(annotation: Any) -> bool:
  return annotation is tuple or typing.get_origin(annotation) is tuple
