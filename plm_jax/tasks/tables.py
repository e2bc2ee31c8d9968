"""A user's labelled text: `.jsonl`, `.csv` and `.tsv` files with a "text" and a "label"."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plm_jax.data.corpora import read_json
from plm_jax.data.documents import Document
from plm_jax.errors import UserError

TABLES = (".jsonl", ".csv", ".tsv")
_COLUMNS = ("text", "label")
_HINT = "(the word-order task needs no labels: --set=data.task=word_order)"


def read_table(path: str | Path, labelled: bool = True) -> list[Document]:
  """A document of one sentence for every row, white space collapsed. labelled: whether labels are
  read. Errors: `UserError` naming the line that has no text or no label."""
  path = Path(os.path.expanduser(path))
  if not path.is_file():
    raise UserError(
      f"The labelled text {str(path)!r} does not exist: give a {', '.join(TABLES)} file with a "
      '"text" and a "label", or tfds:NAME.'
    )
  text = _text_of(path)
  rows = _from_json(path, text) if path.suffix == ".jsonl" else _from_columns(path, text, labelled)
  documents = []
  columns = _COLUMNS if labelled else _COLUMNS[:1]
  for line, row in rows:
    values = []
    for column in columns:
      value = row.get(column)
      if isinstance(value, (int, float)):  # labels are often numbers
        value = str(value)
      if not isinstance(value, str) or not value.strip():
        raise UserError(
          f'{_at(path, line)} has no "{column}": expected a "text" and a "label" {_HINT}.'
        )
      values.append(" ".join(value.split()))
    documents.append(Document(f"{path.name}:{line}", (values[0],), *values[1:]))
  if not documents:
    raise UserError(f"The file {str(path)!r} is empty: expected a text and a label per line.")
  return documents


def _text_of(path: Path) -> str:
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"The file {str(path)!r} is not UTF-8 (byte at offset {error.start}). Convert it, for "
      "example with `iconv -f latin1 -t utf-8`."
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
      raise UserError(f"{_at(path, number)} is not JSON ({error}).") from None
    if not isinstance(row, dict):
      raise UserError(f'{_at(path, number)} is not an object with a "text" and a "label".')
    yield number, row


def _from_columns(path: Path, text: str, labelled: bool) -> Iterator[tuple[int, dict]]:
  """Quotes are as in RFC 4180 in a .csv file, and literal characters in a .tsv file."""
  tabs = path.suffix == ".tsv"
  settings: dict[str, Any] = (
    {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
  )
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a text may be long
  reader = csv.DictReader(io.StringIO(text, newline=""), **settings)
  try:
    for column in _COLUMNS if labelled else _COLUMNS[:1]:
      if column not in (reader.fieldnames or ()):
        raise UserError(
          f'The first line of {str(path)!r} has no column "{column}": expected a header with '
          f'"text" and "label" {_HINT}, and found '
          f"{', '.join(reader.fieldnames or ['nothing'])[:80]}."
        )
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise UserError(f"{_at(path, reader.line_num)} cannot be read: {error}.") from None


def _at(path: Path, line: int) -> str:
  return f"The file {str(path)!r}, line {line},"
