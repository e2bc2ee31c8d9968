"""A text with few documents, cut into pieces, so that some of it can be kept for evaluation.

A book without a blank line is one document. Its pieces are runs of consecutive sentences. Held-out
pieces then have neighbours in the training text, so the manifest records the cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from plm_jax.data.corpora import Source
from plm_jax.data.documents import Document

FEW = 20  # documents; texts with this many are split by document
_PIECES = 200  # target number of pieces, within the next two limits
_SHORTEST, _LONGEST = 8, 64  # sentences of a piece


def in_pieces(source: Source) -> "Source | Pieces":
  """The source itself, or its documents in pieces if there are fewer than `FEW`."""
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
    size = f"{self.whole} document{'s' * (self.whole != 1)}"
    return (
      f"The text has only {size}: cut into pieces of {self.length} sentences, some of "
      "them kept for evaluation (training sees their neighbours; blank lines separate documents)."
    )
