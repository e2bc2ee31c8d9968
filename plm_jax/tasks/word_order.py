"""Word-order task: were the words of a sentence shuffled? It needs no labelled text.

Half of the sentences are shuffled. Punctuation keeps its place, and so do tokens that are more than
a word, such as `self.epsilon` or `f(x)`; everything is in lower case. A bag of words scores at
chance. SentEval's "bigram shift", where two neighbours change places (Conneau et al. 2018,
arXiv:1805.01070), is a similar, harder task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from plm_jax.data.documents import Document
from plm_jax.errors import UserError
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.labelled_text import LabelledText
from plm_jax.tasks.table_files import SUFFIXES

CLASSES = ("in order", "shuffled")
FEWEST = 5  # different words of a sentence; the order of fewer tells too little
_WORD = re.compile(r"""(?<!\S)([(\["'`]*)(\w+)([.,;:!?)\]"'`]*)(?!\S)""")  # and its punctuation


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordOrder(LabelledText):
  """Are the words of a sentence in order, or shuffled? Any text, without labels."""

  name: ClassVar[str] = "word_order"
  has_labels: ClassVar[bool] = False

  per_class: int = 5000
  test_per_class: int = 1500

  @property
  def question(self) -> str:
    return "are the words of a sentence in order or shuffled?"

  def documents(self, cache: Path | None) -> Iterator[Document]:
    """Each row of a table is a document of one sentence; a .jsonl is a text."""
    if self.source.endswith(SUFFIXES) and not self.source.endswith(".jsonl"):
      items = Classify().read_file(self.source, labelled=False)
      return (Document(i.document, (" ".join(i.texts[0].split()),)) for i in items)
    return super().documents(cache)

  def labelled(self, documents: list[Document]) -> list[Document]:
    return [part for document in documents for part in by_word_order(document)]

  def check_splits(self, splits: dict[str, list[Document]]) -> None:
    if not all(splits.values()):
      raise UserError(
        f"The text {self.source!r} is too small for the word-order task: the "
        f"{next(name for name in splits if not splits[name])} split has no sentence with at least "
        f"{FEWEST} different words separated by spaces; give more text."
      )


def by_word_order(document: Document) -> list[Document]:
  """The intact sentences and the shuffled ones, as documents of the same name, without empty
  ones."""
  sentences = [example for text in document.sentences if (example := _example(text))]
  parts = [(name, tuple(s for s, label in sentences if label == name)) for name in CLASSES]
  return [Document(document.name, part, name) for name, part in parts if part]


def _example(text: str) -> tuple[str, str] | None:
  """The sentence and its class, a function of the sentence alone; None if it is unsuitable."""
  text = text.lower()
  words = [match[2] for match in _WORD.finditer(text)]
  if len(set(words)) < FEWEST:
    return None
  draws = np.frombuffer(hashlib.shake_128(text.encode()).digest(4 + 4 * len(words)), "<u4")
  if draws[0] % 2:
    return text, CLASSES[0]
  order = iter(np.argsort(draws[1:], kind="stable"))
  shuffled = _WORD.sub(lambda match: match[1] + words[next(order)] + match[3], text)
  return (shuffled, CLASSES[1]) if shuffled != text else None
