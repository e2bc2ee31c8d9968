"""Tables of examples: `.jsonl`, `.csv` and `.tsv` files, with or without a header, and which column
is which.

Columns are named by the user, or found by the names that data sets use, GLUE's among them, or by
their values; a line says which were chosen.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax.data.text_files import read_json
from plm_jax.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".tsv")
PAIRS = (
  ("text", "text2"),
  ("text1", "text2"),
  ("text_a", "text_b"),
  ("sentence1", "sentence2"),
  ("#1 string", "#2 string"),
  ("question1", "question2"),
  ("premise", "hypothesis"),
  ("question", "sentence"),
  ("question", "answer"),
  ("query", "passage"),
  ("query", "document"),
  ("query", "positive"),
  ("anchor", "positive"),
)
TEXT = ("text", "sentence", "review", "content", "comment", "tweet", "message", "utterance")
TEXT += ("query", "question", "title", *(first for first, _ in PAIRS))
LABEL = ("label", "gold_label", "is_duplicate", "quality", "class", "category", "intent")
LABEL += ("sentiment", "target", "score", "rating", "stars", "similarity", "labels")
NAME = ("id", "index", "idx", "guid", "pairid")
DOCUMENT = ("document_id", "doc_id", "document", "doc", "group")
KNOWN_NAMES = {*TEXT, *LABEL, *NAME, *DOCUMENT, *(second for _, second in PAIRS)}
_SAMPLE = 1000  # rows that are looked at to find a column


class Table(NamedTuple):
  """path; the names of the columns, "1", "2", ... without a header; (line, row) of every row.
  example: the name of a single example, which is in no file, for errors."""

  path: Path
  names: list[str]
  rows: list[tuple[int, dict[str, Any]]]
  header: bool
  example: str = ""

  def values(self, column: str) -> list[str]:
    """Of the first rows."""
    return [written(row.get(column)) for _, row in self.rows[:_SAMPLE]]

  @property
  def place(self) -> str:
    return self.example or f"The file {str(self.path)!r}"

  def at(self, line: int) -> str:
    return self.example or f"{self.place}, line {line},"

  def cell(self, line: int, row: dict[str, Any], column: str) -> str:
    """Errors: `UserError` for an empty cell."""
    value = written(row.get(column))
    if not value:
      raise self.empty(line, column)
    return value

  def empty(self, line: int, column: str) -> UserError:
    """The error for an empty cell."""
    advice = "give one" if self.example else "fill it in or leave the line out"
    return UserError(f'{self.at(line)} has no "{column}"; {advice}.')

  def lacking(self, what: str, field: str) -> UserError:
    """The error for a table without such a column, and the field of a task that names it."""
    advice = "" if self.example else f"; name one with --set=task.{field}=COLUMN"
    names = ", ".join(self.names)[:200]
    return UserError(f"{self.place} has no column {what}; it has {names}{advice}.")


def no_column(table: Table, column: str, field: str) -> UserError:
  """The error for a name that the user gave, with the nearest one."""
  lower = {name.lower(): name for name in table.names}
  near = difflib.get_close_matches(column.lower(), lower, n=1)
  meant = f"; did you mean {lower[near[0]]!r}?" if near else "."
  return UserError(
    f"{table.place} has no column {column!r} (task.{field}); it has "
    f"{', '.join(table.names)[:200]}{meant}"
  )


class Columns(NamedTuple):
  """The columns of an example. label, name, document: None if there is none. note: says which were
  chosen."""

  texts: tuple[str, ...]
  label: str | None
  name: str | None
  document: str | None
  note: str


def written(value: Any) -> str:
  """A cell as text without surrounding white space; "" for nothing, and for a number that is
  none."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value).strip() if isinstance(value, str | int | float) else ""


def object_of(line: str) -> dict[str, Any] | None:
  """The object of JSON in a line; None if it is plain text."""
  if not line.lstrip().startswith("{"):
    return None
  try:
    row = read_json(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) else None


def table_of(row: dict[str, Any], name: str) -> Table:
  """A table with one row. name: of the example, for errors."""
  return Table(Path(name), list(row), [(1, row)], True, name)


# --- which column is which ------------------------------------------------------------------------


FIELDS = ("text", "text2", "label", "id", "document")


def columns(table: Table, texts: int, negative: str | None = None, **wanted: str | None) -> Columns:
  """The columns by the user's names (`wanted`, for some of `FIELDS`), else by those of data sets,
  else by values. negative: a column that is none of these. Errors: `UserError` if a column of text
  is missing; labels may be."""
  wanted = {field: wanted.get(field) for field in FIELDS}
  for field, column in wanted.items():
    if column and column not in table.names and field in ("text", "text2"):
      raise no_column(table, column, field)
  present = {name.lower(): name for name in reversed(table.names)}

  def chosen(field: str, names: tuple[str, ...]) -> str | None:
    if wanted[field]:
      return wanted[field] if wanted[field] in table.names else None
    return next((present[name] for name in names if name in present), None)

  label, name = chosen("label", LABEL), chosen("id", NAME)
  document = chosen("document", DOCUMENT)
  taken = [column for column in (label, name, document, negative) if column]
  chosen_texts = _texts(table, wanted, texts, present, taken)
  if label is None and not wanted["label"]:
    label = _fewest_values(table, [*chosen_texts, *taken])
  parts = [f"text = {chosen_texts[0]!r}", *(f"text2 = {t!r}" for t in chosen_texts[1:])]
  parts += [f"{field} = {column!r}" for field, column in
            (("negative", negative), ("label", label), ("id", name), ("document", document))
            if column]  # fmt: skip
  header = "" if table.header else "no header; "
  read = {*chosen_texts, negative, label, name, document}
  others = [repr(column) for column in table.names if column not in read]
  unread = f"; not read: {', '.join(others)[:200]}" if others else ""
  note = f"{table.path.name}: {header}columns: {', '.join(parts)}{unread} (--set=task.text=... "
  note += "and task.text2=... change it)"
  return Columns(chosen_texts, label, name, document, note)


def pair_of(names: list[str]) -> tuple[str, str] | None:
  """The two text columns that a known data set would have."""
  present = {name.lower(): name for name in names}
  pairs = (pair for pair in PAIRS if pair[0] in present and pair[1] in present)
  return next(((present[a], present[b]) for a, b in pairs), None)


def _texts(table: Table, wanted, count: int, present, taken: list[str]) -> tuple[str, ...]:
  fields = ("text", "text2")[:count]
  known = pair_of(table.names) if count == 2 else None
  if known is None and count == 1:
    known = next(((present[name],) for name in TEXT if name in present), None)
  texts = [wanted[field] or (known[i] if known else None) for i, field in enumerate(fields)]
  free = [name for name in table.names if name not in (*taken, *texts)]
  if None in texts:  # the longest values
    lengths = {name: sum(map(len, table.values(name))) for name in free}
    longest = sorted(free, key=lambda name: -lengths[name])[: texts.count(None)]
    longest = [name for name in free if name in longest and not _is_number(table, name)]
    texts = [text or (longest.pop(0) if longest else None) for text in texts]
  if None in texts:
    missing = fields[texts.index(None)]
    raise table.lacking(f"for {missing}: this task needs {count} of text", missing)
  return tuple(text for text in texts if text)


def _is_number(table: Table, column: str) -> bool:
  return all(number(value) is not None for value in table.values(column))


def number(text: str) -> float | None:
  """The finite number in a text; None if it is another text."""
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _fewest_values(table: Table, taken: list[str]) -> str | None:
  """The column without gaps that has the fewest different values, two at least."""
  counts = {}
  for name in table.names:
    values = table.values(name)
    if name not in taken and all(values) and 1 < len(set(values)) <= max(2, len(values) // 2):
      counts[name] = len(set(values))
  return min(counts, key=lambda name: counts[name], default=None)


# --- reading --------------------------------------------------------------------------------------


def read_table(path: str | Path, header: bool | None = None) -> Table:
  """header: whether the first line names the columns; None finds out. Errors: `UserError` naming
  the line that cannot be read."""
  path = Path(os.path.expanduser(path))
  if path.suffix not in SUFFIXES:
    raise UserError(
      f"The file {str(path)!r} has an unknown suffix: expected one of {', '.join(SUFFIXES)}."
    )
  if not path.is_file():
    raise UserError(f"The file {str(path)!r} does not exist: give a {', '.join(SUFFIXES)} file.")
  text = text_of(path)
  if path.suffix == ".jsonl":
    rows = list(_from_json(path, text))
    names = list(dict.fromkeys(name for _, row in rows[:_SAMPLE] for name in row))
    table = Table(path, names, rows, True)
  else:
    table = _from_columns(path, text, header)
  if not table.rows:
    raise UserError(f"The file {str(path)!r} is empty: expected an example per line.")
  return table


def text_of(path: Path) -> str:
  """The text of a file in UTF-8. Errors: `UserError` for another encoding."""
  data = b""
  try:
    data = path.read_bytes()
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    source = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
    raise UserError(
      f"The file {str(path)!r} is not UTF-8 (byte at offset {error.start}). Convert it, for "
      f"example with `iconv -f {source} -t utf-8`."
    ) from None
  except OSError as error:
    raise UserError(f"The file {str(path)!r} cannot be read: {error.strerror}.") from None


def _from_json(path: Path, text: str) -> Iterator[tuple[int, dict]]:
  # Not splitlines, which would cut a JSON string at U+2028.
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      row = read_json(line)
    except ValueError as error:
      raise UserError(f"The file {str(path)!r}, line {number}, is not JSON ({error}).") from None
    if not isinstance(row, dict):
      raise UserError(f'The file {str(path)!r}, line {number}, is not an object with a "text".')
    yield number, row


def _from_columns(path: Path, text: str, header: bool | None) -> Table:
  """Quotes are as in RFC 4180 in a .csv file, and literal characters in a .tsv file."""
  tabs = path.suffix == ".tsv"
  settings: dict[str, Any] = (
    {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
  )
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a text may be long
  reader = csv.reader(io.StringIO(text, newline=""), **settings)
  try:
    lines = [(reader.line_num, cells) for cells in reader if cells]
  except csv.Error as error:
    where = f"The file {str(path)!r}, line {reader.line_num},"
    raise UserError(f"{where} cannot be read: {error}.") from None
  if not lines:
    return Table(path, [], [], False)
  header = _has_header([cells for _, cells in lines[:_SAMPLE]]) if header is None else header
  first = [cell.strip() for cell in lines[0][1]]
  names = first if header else [str(n) for n in range(1, len(first) + 1)]
  rows = []
  for line, cells in lines[header:]:
    if len(cells) != len(names):
      raise UserError(
        f"The file {str(path)!r}, line {line}, has {len(cells)} columns where the first line has "
        f"{len(names)}; correct it or leave it out."
      )
    rows.append((line, dict(zip(names, cells, strict=True))))
  return Table(path, names, rows, header)


def _has_header(lines: list[list[str]]) -> bool:
  """Whether the first line names columns: by a known name; else if none of its cells is a number,
  long, empty, or a value of the same column in another line."""
  first = [cell.strip() for cell in lines[0]]
  if any(cell.lower() in KNOWN_NAMES for cell in first):
    return True
  later = [{line[i].strip() for line in lines[1:] if i < len(line)} for i in range(len(first))]
  return all(
    cell and number(cell) is None and len(cell.split()) <= 3 and cell not in values
    for cell, values in zip(first, later)
  )
