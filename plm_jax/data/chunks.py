"""Chunks of a text: what a worker process gets, reads and encodes at once, and what it returns.

A chunk of files holds their bytes, cut between documents, so that splitting them into documents
and sentences is the worker's part. Other texts, and stretches of files without a place to cut, are
chunks of documents that were read before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plm_jax.data.corpora import Source, TextFiles
from plm_jax.data.documents import Document, share_of
from plm_jax.data.store import Documents, token_type
from plm_jax.data.text_blocks import parts_of
from plm_jax.data.text_files import documents_of
from plm_jax.data.text_parts import Part
from plm_jax.data.tokenizers import Tokenizer


class Place(NamedTuple):
  """A place in a text: the number of a file, bytes or row groups and lines or rows of it before the
  place, and documents after these. A text that is no file has only documents."""

  file: int = 0
  offset: int = 0
  line: int = 1
  documents: int = 0


class Chunk(NamedTuple):
  """Consecutive parts of files and documents. after: the place after them."""

  items: tuple[Part | Document, ...]
  after: Place

  def documents(self) -> Iterator[Document]:
    for item in self.items:
      if isinstance(item, Part):
        yield from documents_of(item)
      else:
        yield item

  def read(self) -> "Chunk":
    """The same with documents only."""
    return self._replace(items=tuple(self.documents()))


def size_of(document: Document) -> int:
  """Characters."""
  return sum(map(len, document.sentences)) + len(document.sentences)


def chunks_of(source: Source, place: Place, size: int) -> Iterator[Chunk]:
  """The chunks from a place on, of about `size` bytes or characters; one part may be larger."""
  items, total, after = [], 0, place
  for item, weight, after in _items(source, place, size):
    items.append(item)
    total += weight
    if total >= size:
      yield Chunk(tuple(items), after)
      items, total = [], 0
  if items:
    yield Chunk(tuple(items), after)


Items = Iterator[tuple[Part | Document, int, Place]]


def _items(source: Source, place: Place, size: int) -> Items:
  """The parts and documents from a place on, their size, and the place after each."""
  if texts := getattr(source, "texts", ()):
    for text in texts:
      yield from _items(text, Place(), size)
  elif isinstance(source, TextFiles):
    for number in range(place.file, len(source.files)):
      start = source.whole(number)._replace(offset=place.offset, line=place.line)
      yield from _items_of_file(start, number, place.documents, size)
      place = Place()
  else:
    yield from _streamed(source.documents(), Place(), place.documents)


def _items_of_file(start: Part, number: int, skip: int, size: int) -> Items:
  if skip:  # of a stretch that is read as a stream
    yield from _streamed(documents_of(start), Place(number, start.offset, start.line), skip)
    return
  for part, left in parts_of(start, size):
    if left is None:
      yield from _streamed(documents_of(part), Place(number, part.offset, part.line), 0)
    else:
      # A part that was cut is a whole chunk; small files share one.
      weight = len(part.data) if part.data and len(part.data) < size // 2 else size
      yield part, weight, Place(number, left.offset, left.line)


def _streamed(documents: Iterable[Document], start: Place, skip: int) -> Items:
  for count, document in enumerate(documents, 1):
    if count > skip:
      yield document, size_of(document), start._replace(documents=count)


class Encoded(NamedTuple):
  """The documents of a chunk by split, (train, valid), the numbers of what was dropped, by reason,
  and the characters of the chunk."""

  splits: tuple[Documents, Documents]
  dropped: dict[str, int]
  size: int


@dataclass(frozen=True)
class Encoding:
  """The job of a worker: from a chunk to token ids. held_out: the share of the split "valid"."""

  tokenizer: Tokenizer
  held_out: float

  def __call__(self, chunk: Chunk) -> Encoded:
    documents = list(chunk.documents())
    sentences = [sentence for document in documents for sentence in document.sentences]
    ids, lengths = self.tokenizer.encode_flat(sentences)
    ids = ids.astype(token_type(self.tokenizer.vocab.size))
    document = np.repeat(np.arange(len(documents)), [len(d.sentences) for d in documents])
    kept = np.bincount(document[lengths > 0], minlength=len(documents))  # sentences of each
    is_valid = np.array([share_of(d, b"split") < self.held_out for d in documents], bool)
    splits = []
    for side in (False, True):
      here = (is_valid == side)[document]
      names = [
        f"{' '.join(d.name.split())}\t{' '.join(d.label.split())}\n".encode()
        for d, valid, count in zip(documents, is_valid, kept, strict=True)
        if valid == side and count
      ]
      splits.append(
        Documents(
          ids[np.repeat(here, lengths)],
          lengths[here & (lengths > 0)].astype(np.int32),
          kept[(is_valid == side) & (kept > 0)],
          b"".join(names),
          np.array([len(name) for name in names], np.int64),
        )
      )
    dropped = {
      "sentences without a token": int((lengths == 0).sum()),
      "documents without a token": int((kept == 0).sum()),
    }
    return Encoded((splits[0], splits[1]), dropped, sum(map(size_of, documents)))
