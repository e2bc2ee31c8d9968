"""Parallel text: files line by line ("test.de,test.en"), or two columns of a table.

Later files of a list are further references. In a table an object of JSON may have a list of
targets, and several rows may have the same source; both are references, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plm_jax.errors import UserError
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.table_files import Table, no_column, number, read_table, text_of, written

SOURCES = ("source", "src", "mr", "meaning_representation", "article", "document", "dialogue")
SOURCES += ("input", "question", "text", "sentence")
TARGETS = ("target", "targets", "tgt", "ref", "reference", "references", "human_reference")
TARGETS += ("summary", "highlights", "output", "translation", "answer", "label")
_NOT_PREDICTED = ("test", "index", "id", "idx", "guid")


class Columns(NamedTuple):
  """The columns of source and target; target is None in a table without one."""

  source: str
  target: str | None

  def note(self, table: Table) -> str:
    return (
      f"{table.path.name}: columns: text = {self.source!r}, target = {self.target!r} "
      "(--set=task.text=... changes it)"
    )


def is_lines(path: str) -> bool:
  """Whether a --data is a list of files that belong together line by line."""
  return "," in path and not Path(os.path.expanduser(path)).exists()


def read_lines(path: str) -> list[Example]:
  """The lines of a list of files. Errors: `UserError` for files of different length."""
  paths = [Path(os.path.expanduser(part.strip())) for part in path.split(",")]
  for one in paths:
    if not one.is_file():
      raise UserError(
        f"The file {str(one)!r} does not exist: parallel text is a list of files, such as "
        "--data=train.de,train.en, the source first."
      )
  files = [text_of(one).removesuffix("\n").split("\n") for one in paths]
  counts = [len(lines) for lines in files]
  if len(set(counts)) > 1:
    sizes = ", ".join(f"{one.name} {count:,}" for one, count in zip(paths, counts))
    raise UserError(f"Parallel files must have the same number of lines, and they have: {sizes}.")
  items = []
  for line, (source, *targets) in enumerate(zip(*files), 1):
    source, *targets = (text.strip() for text in (source, *targets))
    where = f"{paths[0].name}:{line}"
    # One side of a corpus may lack a line's translation.
    items += [Example((source,), t, where, source) for t in targets if t and source]
  if not items:
    raise UserError(f"{path!r} has no line with a source and a target.")
  return items


def columns_of(table: Table, source: str | None, target: str | None) -> Columns:
  """The user's columns, else those of data sets, else the first two of text. Errors: `UserError`
  without a column of sources, or for an unknown one."""
  if source and source not in table.names:
    raise no_column(table, source, "text")
  present = {name.lower(): name for name in reversed(table.names)}
  guesses_target = target is None

  def known(names: tuple[str, ...], taken: str | None) -> str | None:
    return next((present[n] for n in names if n in present and present[n] != taken), None)

  source = source or known(SOURCES, target)
  target = target or known(TARGETS, source)
  free = [n for n in table.names if n not in (source, target) and _is_text(table, n)]
  source = source or (free.pop(0) if free else None)
  if source is None:
    raise table.lacking("of text", "text")
  target = target if target in table.names else None
  if target is None and guesses_target:
    target = free.pop(0) if free else None
  return Columns(source, target)


def _is_text(table: Table, name: str) -> bool:
  if name.lower() in _NOT_PREDICTED:
    return False
  return not all(number(value) is not None for value in table.values(name))


def read_columns(path: str | Path, header: bool | None) -> Table:
  """A table; {"translation": {"de": ..., "en": ...}} becomes two columns."""
  table = read_table(path, header)
  if not any(isinstance(row.get("translation"), dict) for _, row in table.rows[:1]):
    return table
  rows = [(line, row | row["translation"]) for line, row in table.rows
          if isinstance(row.get("translation"), dict)]  # fmt: skip
  return table._replace(rows=rows, names=list(rows[0][1]["translation"]))


def examples_in(table: Table, chosen: Columns, labelled: bool) -> list[Example]:
  """An example for every target, or for every row without `labelled`."""
  if labelled and chosen.target is None:
    raise table.lacking("of targets", "target")
  items = []
  for line, row in table.rows:
    source = table.cell(line, row, chosen.source)
    name = written(row.get("id")) or f"{table.path.name}:{line}"
    targets: Sequence[Any] = [None]
    if labelled:
      targets = [t for t in _targets(row.get(chosen.target)) if t]
      if not targets:
        raise table.empty(line, chosen.target)
    items += [Example((source,), target, name, source) for target in targets]
  return items


def _targets(cell: Any) -> Iterator[str]:
  yield from map(written, cell if isinstance(cell, list) else [cell])


def references(item: Example) -> tuple[str, ...]:
  """The targets of an example."""
  return (item.target,) if isinstance(item.target, str) else tuple(item.target)


def merged(items: Sequence[Example]) -> list[Example]:
  """One example for each source, with all its references, in the order of the first."""
  by_source: dict[tuple[str, ...], list[Example]] = {}
  for item in items:
    by_source.setdefault(item.texts, []).append(item)
  return [_joined(same) for same in by_source.values()]


def _joined(same: list[Example]) -> Example:
  targets = [target for item in same if item.target is not None for target in references(item)]
  if not targets:
    return same[0]
  return same[0]._replace(target=targets[0] if len(targets) == 1 else targets)


def merged_examples(examples: Examples) -> Examples:
  """As `merged`, for examples with the tokens of their targets."""
  places: dict[tuple[str, ...], list[int]] = {}
  for place, item in enumerate(examples.items):
    places.setdefault(item.texts, []).append(place)
  first = examples.take([rows[0] for rows in places.values()])
  targets = examples.targets["target"]
  joined = [padded([row for n in rows for row in targets[n]]) for rows in places.values()]
  return Examples(merged(examples.items), first.ids, {"target": joined})


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
  """int32 [rows, tokens]: the tokens of each row, -1 after its end."""
  rows = [np.asarray(row) for row in rows]
  rows = [row[row >= 0] for row in rows]
  array = np.full((len(rows), max(map(len, rows))), -1, np.int32)
  for place, row in enumerate(rows):
    array[place, : len(row)] = row
  return array


def files_in_folder(folder: Path, names: dict[str, str], sides: list[str]) -> dict[str, str]:
  """split -> "train.de,train.en" for the stems (patterns) in `names`. sides: suffixes, source
  first; those that are not named are taken in alphabetical order."""
  chosen = {}
  for split, stem in names.items():
    files = {p.suffix[1:]: p for p in sorted(folder.iterdir())
             if p.suffix and re.fullmatch(stem, p.stem.lower())}  # fmt: skip
    wanted = [*sides, *(suffix for suffix in files if suffix not in sides)][:2]
    if len(wanted) == 2 and all(suffix in files for suffix in wanted):
      chosen[split] = ",".join(str(files[suffix]) for suffix in wanted)
  return chosen
