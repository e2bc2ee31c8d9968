"""Labelled examples: was a sentence shuffled, which package does it document, or the labels of a
user's table.

    task = read_task(LabelledText(...), tokenizer, documents)
    task.train, task.dev, task.test: Examples      task.classes: the names of the labels

Split by document: test documents are those that pretraining held out (by the same hash of the text,
`preparation.share_of`), so no model has read them, not even without labels. A second hash divides
the others into train and dev. Each row of a table is a document of one example.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from plm_jax.data.corpora import open_source
from plm_jax.data.documents import Document
from plm_jax.data.draws import permute
from plm_jax.data.pieces import in_pieces
from plm_jax.data.preparation import share_of
from plm_jax.data.tokenizers import Tokenizer, TokenizerConfig, WordPiece
from plm_jax.errors import UserError
from plm_jax.tasks.tables import TABLES, read_table
from plm_jax.tasks.word_order import FEWEST, by_word_order

SPLITS = ("train", "dev", "test")
INSTALLED_TEXT = "tfds:installed_text"
MOST_DOCUMENTS = 100_000  # all are held in memory
_MOST = {"label": (1000, 300), "word_order": (5000, 1500)}  # training, test examples of a class
_SUBSET, _CAP = 1, 2  # salts for drawing the labelled subset, and the examples of a capped class


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledText:
  """Labelled text and its rows.

  source: "tfds:NAME", a .jsonl, .csv or .tsv file with the columns "text" and "label", or, for
    word order, any text that can be pretrained on; at most the first 100,000 documents. dev, test:
    files with "text" and "label"; None takes a share of `source`.
  task: "label" asks for the label of a text, which in tfds:installed_text is the package that it
    documents; "word_order" asks whether its words were shuffled. None is "label" for tables and for
    other tfds:NAME, else "word_order".
  examples: the number of training examples, drawn by the seed; None is all.
  length: tokens per row, special tokens included; longer examples are cut.
  shortest: the fewest tokens of an example of tfds:NAME; shorter ones are dropped.
  held_out, dev_share: the test split's share of the documents, and the dev split's share of the
    others. held_out None: the share that pretraining held out, else 0.1.
  per_class, test_per_class: the most training examples of a class, and the most dev and test
    examples; None is 1,000 and 300, for word order 5,000 and 1,500.
  least: the fewest training and test documents of a class; classes with fewer are dropped.
  """

  source: str = INSTALLED_TEXT
  task: Literal["label", "word_order"] | None = None
  dev: str | None = None
  test: str | None = None
  tokenizer: TokenizerConfig = WordPiece(vocab_size=4096)  # noqa: RUF009  frozen
  examples: int | None = None
  length: int = 40
  shortest: int = 8
  held_out: float | None = None
  dev_share: float = 0.1
  per_class: int | None = None
  test_per_class: int | None = None
  least: int = 5
  workers: int = 0

  def __post_init__(self):
    if self.length < 4:
      raise UserError(f"data.length is {self.length}; a row needs at least 4 tokens.")
    if self.task not in (None, "label", "word_order"):
      raise UserError(f'data.task is {self.task!r}; it must be "label" or "word_order".')
    for name in ("per_class", "test_per_class", "least", "examples"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(f"data.{name} is {value}; it must be at least 1.")
    for name, share in (("held_out", self.held_out), ("dev_share", self.dev_share)):
      if share is not None and not 0 < share <= 0.5:
        raise UserError(
          f"data.{name} is {share}; it is a share of the documents, above 0 and at most 0.5."
        )
    if self.workers < 0 or self.shortest < 1:
      raise UserError("data.workers must be at least 0 and data.shortest at least 1.")

  def resolved(self) -> LabelledText:
    """This, with `task`, `per_class` and `test_per_class` filled in where they are None."""
    has_labels = self.is_table or (
      self.source.startswith("tfds:") and self.source != INSTALLED_TEXT
    )
    task = self.task or ("label" if has_labels else "word_order")
    most = _MOST[task]
    return dataclasses.replace(
      self,
      task=task,
      per_class=self.per_class or most[0],
      test_per_class=self.test_per_class or most[1],
    )

  @property
  def is_table(self) -> bool:
    """Whether `source` is a file of labelled rows; for word order a .jsonl is a text."""
    is_text = self.task == "word_order" and self.source.endswith(".jsonl")
    return self.source.endswith(TABLES) and not is_text


class Examples(NamedTuple):
  """One split. ids: the tokens of every example, without special tokens. label: int32 [N]."""

  texts: list[str]
  ids: list[np.ndarray]
  label: np.ndarray
  documents: list[str]

  def take(self, rows: np.ndarray) -> Examples:
    """The examples numbered `rows`."""
    return Examples(
      [self.texts[i] for i in rows],
      [self.ids[i] for i in rows],
      self.label[rows],
      [self.documents[i] for i in rows],
    )


class Task(NamedTuple):
  """A labelled data set. left_out: class -> why it was dropped."""

  classes: tuple[str, ...]
  train: Examples
  dev: Examples
  test: Examples
  left_out: dict[str, str]

  def record(self) -> dict[str, Any]:
    """The data's entry in config.json, which identifies it."""
    splits = {}
    for name in SPLITS:
      examples = getattr(self, name)
      counts = np.bincount(examples.label, minlength=len(self.classes)).tolist()
      splits[name] = {
        "documents": len(set(examples.documents)),
        "examples": dict(zip(self.classes, counts)),
        "sha256": _digest(examples),
      }
    return {"splits": splits, "left out": self.left_out}

  def few(self, examples: int | None, seed: int) -> Task:
    """The task with `examples` training examples, drawn by the seed, the same for every arm."""
    total = len(self.train.texts)
    if examples is None:
      return self
    if examples > total:
      raise UserError(
        f"{examples} labelled examples were requested, but the training split has {total}; "
        f"give a smaller number in --labels, or more text."
      )
    rows = permute(np.arange(examples), total, seed, _SUBSET)
    return self._replace(train=self.train.take(rows))


def read_task(config: LabelledText, tokenizer: Tokenizer, documents: Iterable[Document]) -> Task:
  """The task of `config`, from the documents of its source. Errors: `UserError` if labels are
  missing, or fewer than two classes have enough documents."""
  config = config.resolved()
  splits = {name: [] for name in SPLITS}
  for name in ("dev", "test"):
    if path := getattr(config, name):
      splits[name] = read_table(path, config.task == "label")
  for document in documents:
    if config.task == "label" and not document.label:
      raise UserError(
        f"The document {document.name} of {config.source!r} has no label: every text of a "
        'task needs one; give a .jsonl, .csv or .tsv file with "text" and "label".'
      )
    splits[side_of(document, config)].append(document)
  if config.task == "word_order":
    splits = {name: [part for d in splits[name] for part in by_word_order(d)] for name in SPLITS}
    if not all(splits.values()):
      raise UserError(
        f"The text {config.source!r} is too small for the word-order task: the "
        f"{next(name for name in SPLITS if not splits[name])} split has no sentence with at least "
        f"{FEWEST} different words separated by spaces; give more text."
      )
  classes, left_out = _classes(config, splits)
  examples = {name: _examples(splits[name], classes, tokenizer, config) for name in SPLITS}
  examples = _without_repeats(examples)
  for name, cap in zip(SPLITS, (config.per_class, config.test_per_class, config.test_per_class)):
    examples[name] = _capped(examples[name], cap, len(classes))
    missing = set(range(len(classes))) - set(examples[name].label.tolist())
    if missing:
      raise UserError(
        f"The class {classes[min(missing)]!r} of {config.source!r} has no example in the {name} "
        f"split that is at least data.shortest={config.shortest} tokens long and occurs only "
        "there: give more text, raise data.least, or set data.dev_share or data.held_out."
      )
  return Task(tuple(classes), left_out=left_out, **examples)


def documents_of(config: LabelledText, cache) -> Iterator[Document]:
  """The first `MOST_DOCUMENTS` documents of the source, as pretraining reads them; each row of a
  table is a document of one sentence."""
  config = config.resolved()
  if config.is_table:
    return iter(read_table(config.source, config.task == "label"))
  source = in_pieces(open_source(config.source, cache))
  return itertools.islice(source.documents(), MOST_DOCUMENTS)


def side_of(document: Document, config: LabelledText) -> str:
  """The name of a document's split, a function of its text alone."""
  if config.test is None and share_of(document, b"split") < config.held_out:
    return "test"
  if config.dev is None and share_of(document, b"dev") < config.dev_share:
    return "dev"
  return "train"


def _classes(config: LabelledText, splits) -> tuple[list[str], dict[str, str]]:
  """The classes with enough documents in every split, and why others are dropped."""
  counts = {name: Counter(d.label for d in splits[name]) for name in SPLITS}
  kept, left_out = [], {}
  for label in sorted(set().union(*counts.values())):
    too_few = [
      f"{counts[name][label]} {name}"
      for name, least in zip(SPLITS, (config.least, 1, config.least))
      if counts[name][label] < least
    ]
    if too_few:
      left_out[label] = " and ".join(too_few) + " documents"
    else:
      kept.append(label)
  if len(kept) < 2:
    why = "; ".join(f"{label}: {why}" for label, why in list(left_out.items())[:5])
    raise UserError(
      f"The labelled text {config.source!r} has {len(kept)} class{'es' * (len(kept) != 1)} with at "
      f"least data.least={config.least} documents to train and to test on, and two are needed "
      f"({why or 'it is empty'}): give more text, another data.held_out, or a lower data.least."
    )
  return kept, left_out


def _examples(documents, classes: list[str], tokenizer: Tokenizer, config) -> Examples:
  number = {label: i for i, label in enumerate(classes)}
  sentences = [
    (s, number[d.label], d.name) for d in documents if d.label in number for s in d.sentences
  ]
  ids = tokenizer.encode_batch([text for text, _, _ in sentences])
  shortest = config.shortest if config.source.startswith("tfds:") else 1
  rows = [i for i, tokens in enumerate(ids) if len(tokens) >= shortest]
  return Examples(
    [sentences[i][0] for i in rows],
    [ids[i][: config.length - 2] for i in rows],
    np.array([sentences[i][1] for i in rows], np.int32),
    [sentences[i][2] for i in rows],
  )


def _without_repeats(examples: dict[str, Examples]) -> dict[str, Examples]:
  """Drops repeated rows of token ids; a row of the test split is in no other split."""
  seen: set[bytes] = set()
  kept = {}
  for name in reversed(SPLITS):
    keys = [tokens.tobytes() for tokens in examples[name].ids]
    new = [i for i, key in enumerate(keys) if not (key in seen or seen.add(key))]
    kept[name] = examples[name].take(np.array(new, np.int64))
  return kept


def _capped(examples: Examples, cap: int, classes: int) -> Examples:
  """At most `cap` examples of each class, drawn from all of its documents, the same for every
  seed."""
  rows = []
  for label in range(classes):
    of_class = np.flatnonzero(examples.label == label)
    if len(of_class) > cap:
      of_class = of_class[np.sort(permute(np.arange(cap), len(of_class), _CAP, label))]
    rows.append(of_class)
  return examples.take(np.sort(np.concatenate(rows)))


def _digest(examples: Examples) -> str:
  digest = hashlib.sha256(examples.label.astype("<i4").tobytes())
  for tokens in examples.ids:
    digest.update(tokens.astype("<i4").tobytes() + b"\xff")
  return digest.hexdigest()
