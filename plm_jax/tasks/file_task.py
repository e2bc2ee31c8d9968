"""Tasks on a user's own files: splits, row length, and tables of one or two texts."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.errors import UserError
from plm_jax.runs import row_limit
from plm_jax.tasks.augmentation import Augmentation
from plm_jax.tasks.examples import SPLITS, Example, Splits
from plm_jax.tasks.rows import frame_of
from plm_jax.tasks.table_files import (
  FIELDS,
  SUFFIXES,
  Columns,
  Table,
  columns,
  no_column,
  object_of,
  read_table,
  table_of,
)
from plm_jax.tasks.task import Context, Task

_SPLIT = 3  # salt for the user's examples in the own splits
_SHARE_THAT_FITS = 99  # percent of the training rows that are not cut
TYPES = (*SUFFIXES, ".json", ".conll", ".conllu")  # known; text may have any other suffix
STEMS = {
  "train": r"train(ing)?",
  "dev": r"(dev|valid|validation|val)(_matched)?",
  "test": r"test(_matched)?",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTask(Task):
  """Examples in files.

  source: the training file, or a folder with train, dev and test files. dev, test: files that are
    taken whole. Without a test file the dev file is the test split; without both, shares of
    `source` are: the same for every seed, grouped by document, with the classes in proportion.
  length: tokens per row, special tokens included; None fits 99% of the training examples, as far as
    the model has positions.
  test_share, dev_share: of the examples of `source`.
  by_length: whether training batches have rows of similar length, which saves padding.
  packed: whether examples of a training batch share rows, which saves nearly all padding and takes
    the place of by_length. A token sees its own example only: the loss is the same.
  """

  files: ClassVar[tuple[str, ...]] = SUFFIXES
  # What happens to examples that are longer than a row.
  longer: ClassVar[str] = "are cut"
  row: ClassVar[str] = "examples"  # what a row holds, for the user
  longest: ClassVar[int] = 512  # tokens of a row whose length the data decides

  dev: str | None = None
  test: str | None = None
  dev_share: float = 0.1
  test_share: float = 0.1
  by_length: bool = True
  packed: bool = False

  def __post_init__(self):
    super().__post_init__()
    for name in ("dev_share", "test_share"):
      if not 0 < getattr(self, name) <= 0.5:
        raise UserError(f"task.{name} is {getattr(self, name)}; it must be above 0, at most 0.5.")

  def read(self, context: Context) -> tuple[Self, Splits]:
    """The files' examples in three splits, and the task with all that reading them decided."""
    task, items, notes = self.read_files()
    splits = Splits(*(task.encode(items[name], context.tokenizer) for name in SPLITS))
    length, said = fitting_length(task, splits, context)
    return dataclasses.replace(task, length=length), splits._replace(notes=(*notes, *said))

  def read_files(self) -> tuple[Self, dict[str, list[Example]], list[str]]:
    """The task with all that its files decide, the examples of each split, and lines for the user.
    No tokenizer is needed."""
    task, notes = self._in_folder()
    for path in filter(None, (task.source, task.dev, task.test)):
      task.check_type(path)
    task = task.with_columns()
    items = {}
    for name, path in (("train", task.source), ("dev", task.dev), ("test", task.test)):
      if path:
        items[name], said = task.read_noted(path)
        notes += said
    notes += _complete(items, task)
    task = task.fitted(items["train"])
    for name in SPLITS:
      if not items[name]:
        raise UserError(f"the {name} split of {task.source!r} is empty; give more examples.")
    return task, items, notes

  def check_type(self, path: str) -> None:
    """Errors: `UserError` for a file of a type that other tasks read."""
    suffix = Path(path).suffix
    if suffix in TYPES and suffix not in self.files:
      raise UserError(
        f"--task={self.name} reads {', '.join(self.files)} files, and {path!r} is a {suffix} file: "
        "give another file, or another --task (docs/finetuning.md has the types of each)."
      )

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    """The labelled examples of a file, and lines for the user about it."""
    return self.read_file(path, labelled=True), []

  def with_columns(self) -> Self:
    """The task with the columns of its training file, which all its files have."""
    return self

  def has_targets(self, path: Path) -> bool:
    """Whether a file of a folder can be scored; GLUE's test files cannot."""
    return True

  def fitted(self, items: list[Example]) -> Self:
    """The task with what its training examples decide, such as labels. Errors: `UserError` for
    examples that cannot be learnt."""
    return self

  def in_rows(self, ids: Sequence[tuple[np.ndarray, ...]]) -> Sequence[tuple[np.ndarray, ...]]:
    """The texts of each row, of the texts of each example."""
    return ids

  def stratum(self, item: Example) -> Any:
    """Examples of one stratum are spread over the own splits in proportion."""
    return None

  def _in_folder(self) -> tuple[Self, list[str]]:
    """The task with the files of a folder."""
    folder = Path(os.path.expanduser(self.source))
    if not folder.is_dir():
      return self, []
    files = sorted(p for p in folder.iterdir() if p.suffix in self.files)
    chosen, notes = {}, []
    for name, stem in STEMS.items():
      matches = [p for p in files if re.fullmatch(stem, p.stem.lower())]
      chosen[name] = str(matches[0]) if matches else None
    if chosen["train"] is None:
      raise UserError(
        f"The folder {str(folder)!r} has no train{'|'.join(self.files)}; it has "
        f"{', '.join(p.name for p in files) or 'no such file'}."
      )
    task = dataclasses.replace(self, source=chosen["train"]).with_columns()
    if chosen["test"] and not task.has_targets(Path(chosen["test"])):
      notes.append(f"{Path(chosen['test']).name} has no labels and is not read")
      chosen["test"] = None
    dev, test = self.dev or chosen["dev"], self.test or chosen["test"]
    return dataclasses.replace(task, dev=dev, test=test), notes


def _complete(items: dict[str, list[Example]], task: FileTask) -> list[str]:
  """Adds the splits that no file has; lines for the user."""
  notes = []
  if "test" not in items and "dev" in items:
    items["test"] = items["dev"]
    notes.append("no test file: the scores are those of the dev file")
  shares = {n: share for n, share in (("test", task.test_share), ("dev", task.dev_share))
            if n not in items}  # fmt: skip
  if shares:
    items |= own_splits(items["train"], shares, task.stratum)
    taken = " and ".join(f"{share:.0%} for {name}" for name, share in shares.items())
    notes.append(f"{Path(task.source).name} is split here: {taken}")
  else:
    known = {item.texts for item in items["train"]}
    if repeated := sum(item.texts in known for item in items["test"]):
      notes.append(f"{repeated:,} of {len(items['test']):,} test examples are training examples")
  return notes


def own_splits(
  items: Sequence[Example], shares: dict[str, float], stratum: Callable[[Example], Any]
) -> dict[str, list[Example]]:
  """The examples by split, in their order: a share of each stratum, the rest is "train". Examples
  of a document, and equal examples, stay together. A stratum of one document is in "train"."""
  joined: dict[str, str] = {}  # document -> another one that has an example of it

  def first_of(document: str) -> str:
    while joined.get(document, document) != document:
      document = joined[document]
    return document

  first_with: dict[tuple[str, ...], str] = {}
  for item in items:
    joined[first_of(item.document)] = first_of(first_with.setdefault(item.texts, item.document))
  groups: dict[str, list[int]] = {}
  for number, item in enumerate(items):
    groups.setdefault(first_of(item.document), []).append(number)
  strata: dict[Any, list[list[int]]] = {}
  for group in groups.values():
    strata.setdefault(stratum(items[group[0]]), []).append(group)
  place = {}
  for index, members in enumerate(strata.values()):
    size, first = len(members), 0
    order = permute(np.arange(size), size, _SPLIT, index)
    for name, share in shares.items():
      count = min(max(round(share * size), 1), max(size - 1 - first, 0))
      place |= {row: name for g in order[first : first + count] for row in members[g]}
      first += count
  parts: dict[str, list[Example]] = {"train": [], **{name: [] for name in shares}}
  for number, item in enumerate(items):
    parts[place.get(number, "train")].append(item)
  return parts


def fitting_length(task: FileTask, splits: Splits, context: Context) -> tuple[int, list[str]]:
  """Tokens per row, and a line about the examples that are longer."""
  source = context.source
  frame = frame_of(source.config, context.tokenizer)
  sizes = {}
  for name in SPLITS:
    tokens = [sum(map(len, texts)) + len(frame[0]) + len(frame[2]) + len(frame[1]) *
              (len(texts) - 1) for texts in task.in_rows(getattr(splits, name).ids)]  # fmt: skip
    sizes[name] = np.array(tokens)
  chosen = task.length
  if chosen is None:
    fits = int(np.percentile(sizes["train"], _SHARE_THAT_FITS, method="higher"))
    chosen = min(max(-(-fits // 8) * 8, 8), task.longest, row_limit(source))
  every = np.concatenate(list(sizes.values()))
  cut = int((every > chosen).sum())
  why = ""
  if task.length is None and chosen < task.longest and chosen == row_limit(source):
    why = " (the checkpoint has no longer ones)"
  note = (
    f"rows of {chosen} tokens{why}; {cut:,} of {len(every):,} {task.row} are longer and "
    f"{task.longer}"
  )
  return chosen, [note + (f" (the longest has {every.max():,})" if cut else "")]


# --- tables ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableTask(FileTask):
  """Examples in the rows of `.csv`, `.tsv` and `.jsonl` files.

  text, text2, label, id, document: the names of columns, or their numbers from 1 in a file without
    a header; None finds the column in the training file by its name or its values.
  header: whether the first line of a .csv or .tsv file names the columns; None finds out.
  augment: changes of the words of training texts.
  """

  text: str | None = None
  text2: str | None = None
  label: str | None = None
  id: str | None = None
  document: str | None = None
  header: bool | None = None
  augment: Augmentation = Augmentation()  # noqa: RUF009  frozen

  @property
  def texts(self) -> int:
    """The number of texts of an example."""
    return 1

  def target(self, cell: str, where: str) -> Any:
    """The target in a cell. Errors: `UserError`, naming the place, for another kind of value."""
    return cell

  def table(self, path: str | Path) -> Table:
    return read_table(path, self.header)

  def target_in(self, table: Table, line: int, row: dict[str, Any], column: str) -> Any:
    """The target of a row. Errors: `UserError` for none, or as `target`."""
    return self.target(table.cell(line, row, column), table.at(line))

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    table = self.table(path)
    chosen = self._columns(table)
    return self._items(table, chosen, labelled=True), [chosen.note]

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    table = self.table(path)
    return self._items(table, self._columns(table), labelled)

  def with_columns(self) -> Self:
    table = self.table(self.source)
    for field in FIELDS:
      if (column := getattr(self, field)) and column not in table.names:
        raise no_column(table, column, field)
    texts, label, name, document, _ = self._columns(table)
    fields = dict(zip(("text", "text2"), texts)) | {
      "label": self.label or label,
      "id": self.id or name,
      "document": self.document or document,
      "header": self.header if table.path.suffix == ".jsonl" else table.header,
    }
    return dataclasses.replace(self, **fields)

  def has_targets(self, path: Path) -> bool:
    return self.label in self.table(path).names

  @property
  def line(self) -> str:
    return "a text" if self.texts == 1 else "two texts with a tab between them"

  def parse(self, line: str, name: str) -> Example:
    """A text, or as many as the task has with a tab between them; or an object of JSON."""
    if (row := object_of(line)) is not None:
      table = table_of(row, name)
      return self._items(table, self._columns(table), labelled=False)[0]._replace(name=name)
    texts = tuple(line.split("\t")) if self.texts > 1 else (line,)
    if not all(text.strip() for text in texts):
      raise UserError(f"{name} is empty, or one of its texts is.")
    if len(texts) != self.texts:
      raise UserError(
        f"{name} has {len(texts)} texts, and this task reads {self.texts}: separate them by a tab."
      )
    return Example(texts, None, name, name)

  def _columns(self, table: Table) -> Columns:
    return columns(table, self.texts, **{field: getattr(self, field) for field in FIELDS})

  def _items(self, table: Table, chosen: Columns, labelled: bool) -> list[Example]:
    if labelled and chosen.label is None:
      if self.label:
        raise no_column(table, self.label, "label")
      raise table.lacking("of labels", "label")
    items = []
    for line, row in table.rows:
      texts = tuple(table.cell(line, row, column) for column in chosen.texts)
      target = None
      if labelled:
        target = self.target_in(table, line, row, chosen.label)
      where = f"{table.path.name}:{line}"
      name = table.cell(line, row, chosen.name) if chosen.name else where
      document = table.cell(line, row, chosen.document) if chosen.document else where
      items.append(Example(texts, target, name, document))
    return items
