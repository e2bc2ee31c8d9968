"""Tokenised text on disk: `TokenStore` reads it, memory-mapped, `StoreWriter` writes it.

A store is one split of a corpus in one directory, as flat little-endian arrays:

    SPLIT.tokens      uint16 (vocabularies up to 65536) or uint32 [N]   no special tokens
    SPLIT.sentences   int64 [S + 1]   offsets into tokens
    SPLIT.documents   int64 [D + 1]   offsets into sentences
    SPLIT.names       UTF-8, "NAME\\tLABEL\\n" per document
    SPLIT.name_ends   int64 [D + 1]   offsets into names
    SPLIT.counts      int64 [V]       frequency of each token
"""

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARTS = {"sentences": "<i8", "documents": "<i8", "name_ends": "<i8", "names": "u1"}


def token_type(vocab_size: int) -> np.dtype:
  """The smallest type for the ids of a vocabulary."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenStore:
  """One split of a prepared corpus. Pickles as its path, so worker processes map the same pages."""

  def __init__(self, directory: str | Path, split: str, vocab_size: int):
    self.directory, self.split, self.vocab_size = Path(directory), split, vocab_size

  def __reduce__(self):
    return TokenStore, (self.directory, self.split, self.vocab_size)

  def __repr__(self):
    return f"TokenStore({str(self.directory)!r}, {self.split!r}): {len(self.tokens)} tokens"

  def _map(self, part: str, dtype: str | np.dtype) -> np.ndarray:
    return np.memmap(self.directory / f"{self.split}.{part}", dtype=dtype, mode="r")

  @cached_property
  def tokens(self) -> np.ndarray:
    return self._map("tokens", token_type(self.vocab_size))

  @cached_property
  def sentence_starts(self) -> np.ndarray:
    return self._map("sentences", PARTS["sentences"])

  @cached_property
  def document_starts(self) -> np.ndarray:
    return self._map("documents", PARTS["documents"])

  @cached_property
  def counts(self) -> np.ndarray:
    """int64 [V]: the frequency of each token, for the unigram baseline."""
    return self._map("counts", "<i8")

  @property
  def documents(self) -> int:
    return len(self.document_starts) - 1

  @property
  def sentences(self) -> int:
    return len(self.sentence_starts) - 1

  def name_and_label(self, document: int) -> list[str]:
    """The name of a document, and the origin of its text."""
    text, ends = (self._map(part, PARTS[part]) for part in ("names", "name_ends"))
    return bytes(text[ends[document] : ends[document + 1] - 1]).decode().split("\t")


class Documents(NamedTuple):
  """Consecutive documents of a split. ids [N]: of all sentences; lengths int [S]: those of the
  sentences, none zero; sentences int [D]: of each document; names: "NAME\\tLABEL\\n" each, and
  name_sizes int [D] their bytes."""

  ids: np.ndarray
  lengths: np.ndarray
  sentences: np.ndarray
  names: bytes
  name_sizes: np.ndarray


class StoreWriter:
  """Appends documents to the files of one split.

  lengths: the valid bytes of each file; bytes that a killed writer left after them are cut off.
  """

  def __init__(self, directory: Path, split: str, lengths: dict[str, int], vocab_size: int):
    types = {"tokens": token_type(vocab_size), **PARTS}
    self.types = {part: np.dtype(type_) for part, type_ in types.items()}
    self.buffers = {part: [] for part in types}
    self.files = {part: (directory / f"{split}.{part}").open("ab") for part in types}
    self._hashes = {}
    for part, file in self.files.items():
      file.truncate(lengths.get(part, 0))
      with open(file.name, "rb") as written:
        self._hashes[part] = hashlib.file_digest(written, "sha256")
    size = {part: lengths.get(part, 0) // type_.itemsize for part, type_ in self.types.items()}
    self.tokens, self.names = size["tokens"], size["names"]
    self.sentences = max(0, size["sentences"] - 1)
    if not lengths:
      for part in ("sentences", "documents", "name_ends"):
        self.buffers[part].append(np.zeros(1, np.int64))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    for file in self.files.values():
      file.close()

  def hashes(self) -> dict[str, str]:
    """The sha256 of what each file has on disk."""
    return {part: digest.hexdigest() for part, digest in self._hashes.items()}

  def add(self, documents: Documents) -> None:
    """Appends documents."""
    ends = {
      "sentences": self.tokens + np.cumsum(documents.lengths, dtype=np.int64),
      "documents": self.sentences + np.cumsum(documents.sentences, dtype=np.int64),
      "name_ends": self.names + np.cumsum(documents.name_sizes, dtype=np.int64),
    }
    self.tokens += len(documents.ids)
    self.sentences += len(documents.lengths)
    self.names += len(documents.names)
    self.buffers["tokens"].append(documents.ids)
    self.buffers["names"].append(np.frombuffer(documents.names, np.uint8))
    for part, values in ends.items():
      self.buffers[part].append(values)

  def sync(self) -> dict[str, int]:
    """Writes the buffers to disk and returns the lengths of the files, for the journal."""
    lengths = {}
    for part, file in self.files.items():
      if self.buffers[part]:
        written = np.concatenate(self.buffers[part]).astype(self.types[part]).tobytes()
        file.write(written)
        self._hashes[part].update(written)
        self.buffers[part] = []
      file.flush()
      os.fsync(file.fileno())
      lengths[part] = os.fstat(file.fileno()).st_size
    return lengths
