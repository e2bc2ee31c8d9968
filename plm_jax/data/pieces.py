"""A text with few documents, cut into pieces, so that some of it can be kept for evaluation.

A book without a blank line is one document, and a split by document would have nothing to choose
from. Its pieces are runs of consecutive sentences. Honesty has a price here: what is held out has
the neighbours that are trained on, so the manifest says that the text was cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from plm_jax.data.corpora import Source
from plm_jax.data.documents import Document

FEW = 20  # documents; a split of more needs no help
_PIECES = 200  # pieces that are aimed at, within the next two limits
_SHORTEST, _LONGEST = 8, 64  # sentences of a piece


def in_pieces(source: Source) -> "Source | Pieces":
  """The source itself, or its documents in pieces if it has fewer than `FEW`."""
  documents = sentences = 0
  for document in source.documents():
    documents, sentences = documents + 1, sentences + len(document.sentences)
    if documents == FEW:
      return source
  length = min(_LONGEST, max(_SHORTEST, sentences // _PIECES))
  if all(len(document.sentences) <= length for document in source.documents()):
    return source
  return Pieces(source, documents, length)


@dataclass(frozen=True)
class Pieces:
  """The documents of a source in pieces of `length` sentences; the last one may be shorter."""

  source: Source
  whole: int  # documents before the cut
  length: int

  @property
  def size(self) -> int:
    return self.source.size

  def documents(self) -> Iterator[Document]:
    for name, sentences, label in self.source.documents():
      for start in range(0, len(sentences), self.length):
        yield Document(f"{name}+{start}", sentences[start : start + self.length], label)

  def fingerprint(self) -> str:
    return self.source.fingerprint()

  def record(self) -> dict:
    cut = {"documents before the cut": self.whole, "cut into pieces of sentences": self.length}
    return {**self.source.record(), **cut}

  def __str__(self) -> str:
    given = f"The text has only {self.whole} document{'s' * (self.whole != 1)}"
    return (
      f"{given}: cut into pieces of {self.length} sentences, of which some are kept for evaluation "
      "(their neighbours are trained on; documents are separated by blank lines)."
    )
