"""The files of GLUE (Wang et al. 2019, arXiv:1804.07461): columns, labels, metrics, submission.

The files have no quoting, some have a byte-order mark or no line end at the end, CoLA has no line
of names except in test.tsv, and QQP has lines without all columns, which are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from plm_jax.errors import UserError
from plm_jax.tasks.examples import Example
from plm_jax.tasks.table_files import number, text_of

_MOST_MALFORMED = 0.05  # of the lines of a file


class Part(NamedTuple):
  """A task of GLUE.

  folder: its folder, and its file in a submission. texts: its columns. label: the column, the last
  of a file. classes: its labels in the order of T5's words; empty for numbers. metrics: their mean
  is its score. names: T5's names of the texts. columns: those of files without names.
  """

  folder: str
  texts: tuple[str, ...]
  label: str
  classes: tuple[str, ...] = ("0", "1")
  metrics: tuple[str, ...] = ("accuracy",)
  names: tuple[str, ...] = ("sentence1", "sentence2")
  columns: tuple[str, ...] = ()


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
PARTS = {
  "cola": Part(
    "CoLA", ("sentence",), "label", metrics=("mcc",), names=("sentence",),
    columns=("source", "label", "mark", "sentence"),
  ),
  "sst2": Part("SST-2", ("sentence",), "label", names=("sentence",)),
  "mrpc": Part("MRPC", ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1")),
  "stsb": Part("STS-B", _SENTENCES, "score", (), ("pearson", "spearman")),
  "qqp": Part(
    "QQP", ("question1", "question2"), "is_duplicate", metrics=("accuracy", "f1"),
    names=("question1", "question2"),
  ),
  "mnli": Part(
    "MNLI", _SENTENCES, "gold_label", ("entailment", "neutral", "contradiction"),
    ("accuracy", "accuracy_mm"), ("premise", "hypothesis"),
  ),
  "qnli": Part(
    "QNLI", ("question", "sentence"), "label", _ENTAILMENT, names=("question", "sentence"),
  ),
  "rte": Part("RTE", _SENTENCES, "label", _ENTAILMENT),
  "wnli": Part("WNLI", _SENTENCES, "label"),
}  # fmt: skip
MISMATCHED = "dev_mismatched.tsv"
# The diagnostic set, which MNLI's model predicts: the names of its folder, and of its file.
DIAGNOSTIC = ("AX", "diagnostic")
_DIAGNOSTIC_FILES = ("test.tsv", "ax.tsv", "diagnostic.tsv")


class Submitted(NamedTuple):
  """A file of a submission: its name, the part whose model predicts it, and the names that its
  folder and its test file may have."""

  title: str
  part: str
  folders: tuple[str, ...]
  files: tuple[str, ...] = ("test.tsv",)


SUBMISSIONS = [
  *(Submitted(p.folder, name, (p.folder,)) for name, p in PARTS.items() if name != "mnli"),
  Submitted("MNLI-m", "mnli", ("MNLI",), ("test_matched.tsv",)),
  Submitted("MNLI-mm", "mnli", ("MNLI",), ("test_mismatched.tsv",)),
  Submitted("AX", "mnli", DIAGNOSTIC, _DIAGNOSTIC_FILES),
]


def test_file(place: Path, submitted: Submitted) -> Path | None:
  """The file whose lines are predicted, if the folder of GLUE has it."""
  folder = folder_of(place, *submitted.folders)
  files = sorted(folder.iterdir()) if folder else []
  return next((path for path in files if path.name.lower() in submitted.files), None)


def folder_of(place: Path, *names: str) -> Path | None:
  """The folder of a part, whatever the case and the hyphens of its name."""

  def plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")

  folders = (p for p in sorted(place.iterdir()) if p.is_dir())
  return next((p for p in folders if plain(p.name) in map(plain, names)), None)


class GlueFile(NamedTuple):
  """The examples of a file, and the lines that were left out."""

  items: list[Example]
  left_out: list[int]


def read_glue(path: Path, part: Part, labelled: bool) -> GlueFile:
  """With `labelled` lines without all columns or without a known label are left out. Without it
  there is an example for every line, because a submission needs one. Errors: `UserError` for
  missing columns, or too many lines that are left out."""
  if not path.is_file():
    raise UserError(f"The file {str(path)!r} does not exist: GLUE's {part.folder} needs it.")
  lines = [line.removesuffix("\r") for line in text_of(path).split("\n")]
  lines = lines[: len(lines) - (lines[-1] == "")]
  names = [name.strip() for name in lines[0].split("\t")] if lines else []
  has_names = part.texts[0] in names
  if not has_names:
    names = list(part.columns)
  needed = (*part.texts, part.label) if labelled else part.texts
  if missing := [name for name in needed if name not in names]:
    raise UserError(
      f"The file {str(path)!r} has no column {missing[0]!r}, which GLUE's {part.folder} has; its "
      f"first line is {lines[0][:80] if lines else ''!r}."
    )
  places = [names.index(name) for name in part.texts]
  named = names[0] if names[0] in ("index", "id") else None
  items, left_out = [], []
  for line, cells in enumerate((row.split("\t") for row in lines[has_names:]), 1 + has_names):
    where = f"{path.name}:{line}"
    if not labelled:
      texts = tuple(cells[p].strip() if p < len(cells) else "" for p in places)
      index = cells[0] if named else str(line - 1 - has_names)
      items.append(Example(texts, None, index, where))
      continue
    target = cells[names.index(part.label)].strip() if len(cells) == len(names) else None
    texts = tuple(cells[p].strip() for p in places) if target is not None else ("",)
    known = target in part.classes if part.classes else number(target or "") is not None
    if not known or not all(texts):
      left_out.append(line)
      continue
    items.append(Example(texts, target if part.classes else number(target), where, where))
  if len(left_out) > max(_MOST_MALFORMED * len(lines), 1):
    raise UserError(
      f"{len(left_out):,} of {len(lines):,} lines of {str(path)!r} lack a column or a label of "
      f"GLUE's {part.folder}, the first is line {left_out[0]}; is it the right file?"
    )
  return GlueFile(items, left_out)


def submission(part: Part, items: list[Example], answers: list[str | float]) -> str:
  """A file of a submission: GLUE's label strings, or numbers from 0 to 5 with three decimals."""
  lines = ["index\tprediction"]
  for item, answer in zip(items, answers, strict=True):
    if not part.classes:
      answer = f"{min(max(float(answer), 0.0), 5.0):.3f}"
    lines.append(f"{item.name}\t{answer}")
  return "\n".join(lines) + "\n"
