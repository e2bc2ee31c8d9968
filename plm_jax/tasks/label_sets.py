"""Several labels of an example in a table: a list in .jsonl, a text with separators, or a column of
0 and 1 for each label."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from typing import Any

from plm_jax.errors import UserError
from plm_jax.tasks.table_files import KNOWN_NAMES, LABEL, Table, number, written

SEPARATORS = (";", "|", ",")
LABELS = ("labels", "tags", "categories", "topics", "genres", "emotions")


def label_columns(table: Table, label: str | None) -> tuple[str, ...]:
  """The column of labels, or several of 0 and 1. label: the user's name, or names with commas
  between them; None finds them by the names of data sets, else by their values."""
  if label:
    return (label,) if label in table.names else tuple(n.strip() for n in label.split(","))
  if known := _known_column(table):
    return (known,)
  free = [name for name in table.names if name.lower() not in KNOWN_NAMES]
  for name in free:
    if isinstance(table.rows[0][1].get(name), dict | list):
      return (name,)
  binary = tuple(name for name in free if _is_binary(table.values(name)))
  return binary if len(binary) > 1 else ()


def _is_binary(values: list[str]) -> bool:
  """Whether the cells are 0 and 1, but for a few that `labels_in` will refuse."""
  wrong = sum(_bit(value) is None for value in values)
  return wrong <= max(1, len(values) // 10) and wrong < len(values) - wrong


def _bit(cell: Any) -> bool | None:
  """False for 0, 0.0 and False, True for 1, 1.0 and True, also as texts; None for others."""
  text = written(cell).lower()
  value = {"false": 0.0, "true": 1.0}.get(text, number(text))
  return value == 1 if value in (0, 1) else None


def _known_column(table: Table) -> str | None:
  present = {name.lower(): name for name in reversed(table.names)}
  return next((present[name] for name in (*LABELS, *LABEL) if name in present), None)


def has_label_lists(table: Table) -> bool:
  """Whether a column of labels has lists, and the text is no list of words."""
  row = table.rows[0][1]
  lists = [name for name, value in row.items() if isinstance(value, list)]
  return lists == [_known_column(table)]


def advice_on_sets(table: Table, label: str | None) -> str:
  """A line for the user if the examples seem to have several labels; else "". label: the column
  that a classification reads."""
  names = label_columns(table, None)
  if len(names) > 1:
    reason = f"the columns {', '.join(names)[:200]} are of 0 and 1"
  elif label and label.lower() in LABELS and (mark := separator_of(table.values(label))):
    reason = f"cells of the column {label!r} have a {mark!r}"
  else:
    return ""
  return f"{table.path.name}: {reason}; --task=multi reads several labels of an example"


def gathered(table: Table, label: str | None) -> Table:
  """The table with columns of 0 and 1 as one column "a,b,c", of {"a": cell, ...}; any other table
  unchanged."""
  names = label_columns(table, label)
  if len(names) < 2 or not set(names) <= set(table.names):
    return table
  joined = ",".join(names)
  rows = [
    (line, {**row, joined: {name: row.get(name) for name in names}}) for line, row in table.rows
  ]
  return table._replace(names=[*(n for n in table.names if n not in names), joined], rows=rows)


def labels_in(value: Any, separator: str, where: str) -> tuple[str, ...]:
  """The labels in a cell; an empty one has none. where: its place, for errors."""
  if value is None:
    raise UserError(f"{where} has no labels; an example without any has an empty list or text.")
  if isinstance(value, dict):
    return tuple(str(name) for name, cell in value.items() if _is_one(cell, name, where))
  if isinstance(value, str):
    listed = _as_list(value)
    if listed is None:
      listed = value.split(separator) if separator else [value]
    value = listed
  labels = value if isinstance(value, list) else [value]
  for label in labels:
    if not isinstance(label, str) and not written(label):
      raise UserError(f"{where} has {label!r} among its labels; expected a list of texts.")
  return tuple(dict.fromkeys(label for label in map(written, labels) if label))


def _is_one(cell: Any, name: str, where: str) -> bool:
  bit = _bit(cell)
  if bit is None:
    raise UserError(
      f"{where} has {cell!r} in the column {name!r}; expected 0 or 1 (--set=task.label=a,b,c names "
      "the columns of labels)."
    )
  return bit


def _as_list(text: str) -> list | None:
  """The list that is written in a cell, as JSON or as Python (pandas' to_csv) has it."""
  if not text.strip().startswith("["):
    return None
  for read in (json.loads, ast.literal_eval):
    try:
      value = read(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # or brackets without end
      continue
    return value if isinstance(value, list) else None
  return None


def separable(cells: Iterable[Any]) -> set[str]:
  """The cells that a separator can divide: texts that are no lists."""
  return {cell for cell in cells if isinstance(cell, str) and _as_list(cell) is None}


def separator_of(cells: Iterable[Any]) -> str:
  """The separator that gives the fewest different labels; "" if no cell has one."""
  texts = separable(cells)
  counts = {
    separator: len({label.strip() for text in texts for label in text.split(separator)})
    for separator in SEPARATORS
    if any(separator in text for text in texts)
  }
  return min(counts, key=lambda separator: counts[separator], default="")
