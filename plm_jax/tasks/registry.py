"""All tasks by name. A new task is a file in this folder and a line here."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path

from plm_jax import cli
from plm_jax.errors import UserError
from plm_jax.tasks.answer import Answer
from plm_jax.tasks.choose import Choose
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.glue_suite import Glue
from plm_jax.tasks.label import Label
from plm_jax.tasks.label_sets import advice_on_sets, has_label_lists
from plm_jax.tasks.labelled_text import INSTALLED_TEXT
from plm_jax.tasks.multi import Multi
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.similar import Similar
from plm_jax.tasks.suite import Suite
from plm_jax.tasks.table_files import SUFFIXES, columns, number, pair_of, read_table
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.task import Task
from plm_jax.tasks.word_order import WordOrder
from plm_jax.tasks.write import Write
from plm_jax.train.processes import say

TASKS: dict[str, type[Task]] = {
  task.name: task
  for task in (
    *(Classify, Pairs, Multi, Regress, Similar, Tag, Answer, Choose, Write),
    *(WordOrder, Label),
  )
}
SUITES: dict[str, type[Suite]] = {suite.name: suite for suite in (Glue,)}
_MANY = 20  # different numbers; with more they are values, not classes


def chosen_task(name: str | Task | Suite | type[Task] | None, source: str | None) -> Task | Suite:
  """The task or suite named `name`, else the task that the data suggests. name: also FILE:CLASS,
  the class, or the task itself. Errors: `UserError` for an unknown name, and for missing files."""
  if isinstance(name, Task | Suite):
    return name if source is None else dataclasses.replace(name, source=source)
  if isinstance(name, type):
    kind: type[Task | Suite] = name
  else:
    kind = task_class(name) if name else guessed(source)
  if source is None and not kind().source:
    raise UserError(f"--task={name} needs --data=PATH, a file or a folder.")
  return kind() if source is None else kind(source=source)


def task_class(name: str) -> type[Task | Suite]:
  """The class of a task's name, or of a user's FILE:CLASS."""
  if ":" in name:
    return cli.load_class(name, Task)
  kinds: dict[str, type[Task | Suite]] = {**TASKS, **SUITES}
  if name not in kinds:
    near = difflib.get_close_matches(name, kinds, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise UserError(
      f"there is no task {name!r}{meant} The tasks are {', '.join(kinds)}, and FILE:CLASS is one "
      "of your own."
    )
  return kinds[name]


def guessed(source: str | None) -> type[Task]:
  """Word order for a text, labels for tfds:NAME, and for a table what its columns look like; prints
  a line if an example may have several labels."""
  if source is None or source == INSTALLED_TEXT:
    return WordOrder
  if source.startswith("tfds:"):
    return Label
  path = Path(os.path.expanduser(source))
  if path.is_dir():
    known = {suffix for kind in TASKS.values() for suffix in kind.files}
    path = next((p for p in sorted(path.glob("train*")) if p.suffix in known), path)
  if path.suffix not in SUFFIXES:
    return next((kind for kind in TASKS.values() if path.suffix in kind.files), WordOrder)
  table = read_table(path)
  if has_label_lists(table):
    return Multi
  label, pair = columns(table, texts=1).label, pair_of(table.names)
  if pair and label in (None, *pair):
    return Similar
  if advice := advice_on_sets(table, label):
    say(advice)
  if label is None:
    return WordOrder
  numbers = {number(value) for value in table.values(label)}
  if None not in numbers and (len(numbers) > _MANY or not all(n.is_integer() for n in numbers)):
    return Regress
  return Pairs if pair else Classify
