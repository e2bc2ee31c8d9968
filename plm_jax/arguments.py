"""Arguments of the Python interface that do not fit their annotations, in a sentence."""

from __future__ import annotations

import functools
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from plm_jax.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
_ACCEPTED = {Path: os.PathLike, int: typing.SupportsIndex, float: typing.SupportsFloat}


def checked(function: F) -> F:
  """The function, which refuses arguments of other types than its annotations. Errors: `UserError`
  with the argument, its value and the types."""
  code = function.__code__
  names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    hints = typing.get_type_hints(function)
    for name, value in (*zip(names, args), *kwargs.items()):
      if name in names and name in hints and not _fits(value, hints[name]):
        raise UserError(
          f"{name}={reprlib.repr(value)} was given to {function.__name__}; expected "
          f"{_written(hints[name])}."
        )
    return function(*args, **kwargs)

  return typing.cast(F, call)


def _fits(value: Any, hint: Any) -> bool:
  """Whether a value is of an annotation's type. The elements of lists and tuples count, those of
  others such as a pandas column do not."""
  kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
  if kind is Any:
    return True
  if kind in (typing.Union, types.UnionType):
    return any(_fits(value, member) for member in arguments)
  if kind is typing.Literal:  # its values have their own errors
    return type(value) in map(type, arguments)
  if kind is Sequence:
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    elements = value if isinstance(value, list | tuple) else ()
    return is_list and all(_fits(element, arguments[0]) for element in elements)
  if isinstance(value, bool) and kind in (int, float):
    return False
  return isinstance(value, _ACCEPTED.get(kind, kind))


def _written(hint: Any) -> str:
  """An annotation without the names of modules."""
  text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
  return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
