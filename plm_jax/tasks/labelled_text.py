"""Sentences of documents with a label for each: the base of `label` and `word_order`.

Split by document: test documents are those that pretraining held out (by the same hash of the text,
`preparation.share_of`), so no model has read them, not even without labels. A second hash divides
the others into train and dev.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from plm_jax.data.corpora import open_source
from plm_jax.data.documents import Document, share_of
from plm_jax.data.draws import permute
from plm_jax.data.pieces import in_pieces
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.runs import RunInfo, history
from plm_jax.tasks.classification import LabelTask
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import SPLITS, Example, Examples, Splits
from plm_jax.tasks.table_files import SUFFIXES
from plm_jax.tasks.task import Context

INSTALLED_TEXT = "tfds:installed_text"
MOST_DOCUMENTS = 100_000  # all are held in memory
_LONGEST = 40  # tokens of a row
_CAP = 2  # salt for drawing the examples of a capped class


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledText(LabelTask):
  """Labelled sentences of documents.

  source: "tfds:NAME" or a text that can be pretrained on; at most the first 100,000 documents.
  length: tokens per row, special tokens included; longer examples are cut. None is 40, or the
    length of the rows of pretraining if it is less.
  shortest: the fewest tokens of an example of tfds:NAME; shorter ones are dropped.
  held_out, dev_share: the test split's share of the documents, and the dev split's share of the
    others. held_out None: the share that pretraining held out, else 0.1.
  per_class, test_per_class: the most training examples of a class, and the most dev and test
    examples.
  least: the fewest training and test documents of a class; classes with fewer are dropped.
  """

  files: ClassVar[tuple[str, ...]] = SUFFIXES
  has_labels: ClassVar[bool] = True  # in the source's documents

  source: str = INSTALLED_TEXT
  shortest: int = 8
  held_out: float | None = None
  dev_share: float = 0.1
  per_class: int = 1000
  test_per_class: int = 300
  least: int = 5

  def __post_init__(self):
    super().__post_init__()
    for name in ("per_class", "test_per_class", "least", "shortest"):
      if getattr(self, name) < 1:
        raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 1.")
    for name, share in (("held_out", self.held_out), ("dev_share", self.dev_share)):
      if share is not None and not 0 < share <= 0.5:
        raise UserError(
          f"task.{name} is {share}; it is a share of the documents, above 0 and at most 0.5."
        )

  @property
  def place(self) -> str:
    return "" if self.source == INSTALLED_TEXT else super().place

  def read(self, context: Context) -> tuple[Self, Splits]:
    """The sentences in three splits. Errors: `UserError` if labels are missing, or fewer than two
    classes have enough documents."""
    length = self.length or min(_LONGEST, context.source.experiment.data.length)
    held_out = held_out_share(self, context.source, context.cache)
    task = dataclasses.replace(self, length=length, held_out=held_out)
    return task.split(context.tokenizer, task.documents(context.cache))

  def documents(self, cache: Path | None) -> Iterator[Document]:
    """The first `MOST_DOCUMENTS` documents of the source, as pretraining reads them."""
    source = in_pieces(open_source(self.source, cache))
    return itertools.islice(source.documents(), MOST_DOCUMENTS)

  def labelled(self, documents: list[Document]) -> list[Document]:
    """The documents of one split with labels."""
    return documents

  def check_splits(self, splits: dict[str, list[Document]]) -> None:
    """Errors: `UserError` for a text that is too small for the task."""

  def split(self, tokenizer: Tokenizer, documents: Iterable[Document]) -> tuple[Self, Splits]:
    """The examples of the documents. Errors: as `read`."""
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for document in documents:
      if self.has_labels and not document.label:
        raise UserError(
          f"The document {document.name} of {self.source!r} has no label: every text of this task "
          "needs one; a .jsonl, .csv or .tsv file with labels is for --task=classify."
        )
      splits[side_of(document, self)].append(document)
    splits = {name: self.labelled(splits[name]) for name in SPLITS}
    self.check_splits(splits)
    classes, left_out = _classes(self, splits)
    examples = {name: _examples(splits[name], classes, tokenizer, self) for name in SPLITS}
    examples = _without_repeats(examples)
    for name, cap in zip(SPLITS, (self.per_class, self.test_per_class, self.test_per_class)):
      examples[name] = _capped(examples[name], cap, len(classes))
      missing = set(range(len(classes))) - set(examples[name].targets["label"].tolist())
      if missing:
        raise UserError(
          f"The class {classes[min(missing)]!r} of {self.source!r} has no example in the {name} "
          f"split that is at least task.shortest={self.shortest} tokens long and occurs only "
          "there: give more text, raise task.least, or set task.dev_share or task.held_out."
        )
    note = (
      f"at most {self.per_class} training and {self.test_per_class} test examples per class; "
      f"texts are cut at {self.length} tokens"
    )
    task = dataclasses.replace(self, labels=tuple(classes))
    return task, Splits(**examples, notes=(note,), left_out=left_out)

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    return Classify().read_file(path, labelled)

  def parse(self, line: str, name: str) -> Example:
    return Classify().parse(line, name)


def side_of(document: Document, task: LabelledText) -> str:
  """The name of a document's split, a function of its text alone."""
  if share_of(document, b"split") < task.held_out:
    return "test"
  if share_of(document, b"dev") < task.dev_share:
    return "dev"
  return "train"


def _classes(task: LabelledText, splits) -> tuple[list[str], dict[str, str]]:
  """The classes with enough documents in every split, and why others are dropped."""
  counts = {name: Counter(d.label for d in splits[name]) for name in SPLITS}
  kept, left_out = [], {}
  for label in sorted(set().union(*counts.values())):
    too_few = [
      f"{counts[name][label]} {name}"
      for name, least in zip(SPLITS, (task.least, 1, task.least))
      if counts[name][label] < least
    ]
    if too_few:
      left_out[label] = " and ".join(too_few) + " documents"
    else:
      kept.append(label)
  if len(kept) < 2:
    why = "; ".join(f"{label}: {why}" for label, why in list(left_out.items())[:5])
    raise UserError(
      f"The labelled text {task.source!r} has {len(kept)} class{'es' * (len(kept) != 1)} with at "
      f"least task.least={task.least} documents to train and to test on, and two are needed "
      f"({why or 'it is empty'}): give more text, another task.held_out, or a lower task.least."
    )
  return kept, left_out


def _examples(
  documents: list[Document], classes: list[str], tokenizer: Tokenizer, task: LabelledText
) -> Examples:
  number = {label: i for i, label in enumerate(classes)}
  items = [
    Example((sentence,), d.label, d.name, d.name)
    for d in documents
    if d.label in number
    for sentence in d.sentences
  ]
  ids = tokenizer.encode_batch([item.texts[0] for item in items])
  shortest = task.shortest if task.source.startswith("tfds:") else 1
  rows = [i for i, tokens in enumerate(ids) if len(tokens) >= shortest]
  return Examples(
    [items[i] for i in rows],
    [(ids[i][: task.length - 2],) for i in rows],
    {"label": np.array([number[items[i].target] for i in rows], np.int32)},
  )


def _without_repeats(examples: dict[str, Examples]) -> dict[str, Examples]:
  """Drops repeated rows of token ids; a row of the test split is in no other split."""
  seen: set[bytes] = set()
  kept = {}
  for name in reversed(SPLITS):
    keys = [tokens.tobytes() for (tokens,) in examples[name].ids]
    new = [i for i, key in enumerate(keys) if not (key in seen or seen.add(key))]
    kept[name] = examples[name].take(np.array(new, np.int64))
  return kept


def _capped(examples: Examples, cap: int, classes: int) -> Examples:
  """At most `cap` examples of each class, drawn from all of its documents, the same for every
  seed."""
  rows = []
  for label in range(classes):
    of_class = np.flatnonzero(examples.targets["label"] == label)
    if len(of_class) > cap:
      of_class = of_class[np.sort(permute(np.arange(cap), len(of_class), _CAP, label))]
    rows.append(of_class)
  return examples.take(np.sort(np.concatenate(rows)))


def held_out_share(task: LabelledText, source: RunInfo, cache: Path) -> float:
  """The share of documents to test on: no document that pretraining read."""
  read = []
  for run in history(source):
    whole = run.document.get("text", {})
    read += [(run, text["source"]) for text in (whole, *whole.get("texts", {}).values())
             if text.get("source")]  # fmt: skip
  fingerprint = open_source(task.source, cache).fingerprint()
  share = 1.0
  for run, pretrained in read:
    same = fingerprint == pretrained.get("fingerprint")
    if not same and task.source not in (pretrained.get("given"), run.experiment.data.source):
      continue
    if not same:
      print(
        f"note: {task.source} has changed since {run.path} was pretrained (other versions of the "
        "packages?); a document that changed may have been read in pretraining",
        file=sys.stderr,
      )
    share = min(share, run.experiment.data.held_out)
  if task.held_out is not None and task.held_out > share:
    raise UserError(
      f"task.held_out={task.held_out} is more than the {share} that {source.path} held out, so the "
      "test split would contain documents that pretraining has read; leave it out, or pretrain "
      f"with --set=data.held_out={task.held_out}."
    )
  return task.held_out or (share if share < 1 else 0.1)
