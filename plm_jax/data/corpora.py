"""Text sources: the user's files and prepared TFDS data sets.

`open_source(source)` takes

- a `.txt` file: a blank line between documents, a sentence or a paragraph per line;
- a `.jsonl` file: one object with a "text" per line, a document each;
- a `.tsv` file: a source, a tab and its target per line; each line is a document of two sentences,
  which are never split; text after a second tab is ignored;
- any of them with `.gz` or `.zst` appended;
- a `.parquet` file with a column "text", a document per row;
- a folder of them: read recursively, in the order of the sorted paths;
- `tfds:NAME[/CONFIG][:SPLIT]`: a TFDS data set (see `plm_jax.data.tfds_text`);
- `controlled:NAME/DIAL[/DOCUMENTS]`: a controlled language (see `plm_jax.data.controlled`).

With `lines` a sentence is a line as it is, with its break and its indentation, for code and verse.
Otherwise `plm_jax.data.layout` divides lines into sentences and documents. A text with fewer than
20 documents is later cut into pieces (see `plm_jax.data.pieces`).

Everything is read as a stream: memory holds one document; a document ends after
`LONGEST_DOCUMENT` characters at the latest.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from plm_jax.data.controlled import PREFIX, open_controlled
from plm_jax.data.documents import Document
from plm_jax.data.text_files import documents_of
from plm_jax.data.text_parts import SUFFIXES, Part, bytes_of_text
from plm_jax.data.tfds_text import open_tfds
from plm_jax.errors import UserError

_HASHED_WHOLE = 1 << 30  # bytes; larger corpora are fingerprinted by sizes, times and samples


class Source(Protocol):
  """A text that can be read again and again in the same order."""

  size: int  # approximate bytes of text; 0 if unknown

  def documents(self) -> Iterator[Document]:
    """Streams the documents."""

  def fingerprint(self) -> str:
    """A hash that changes when the text changes."""

  def record(self) -> dict:
    """Facts about the text for the manifest."""


def default_cache() -> Path:
  """The folder of prepared text: `PLM_JAX_CACHE`, else `~/.cache/plm_jax`."""
  return Path(os.environ.get("PLM_JAX_CACHE") or Path.home() / ".cache" / "plm_jax")


def cache_folder(path: str | None) -> Path:
  """The folder of --cache=DIR, or `default_cache`, created. Errors: `UserError` if that fails."""
  folder = Path(path or default_cache())
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"the cache {folder} cannot be created ({error.strerror}); choose another --cache"
    ) from error
  return folder


def open_source(
  source: str, cache_dir: str | os.PathLike | None = None, lines: bool = False
) -> Source:
  """The source that a string names (see above). TFDS prepares its data in `cache_dir/tfds`."""
  if source.startswith(("tfds:", PREFIX)):
    if lines:
      raise UserError(f"data.lines=true was given for {source}; it needs a .txt or .jsonl file.")
    if source.startswith(PREFIX):
      return open_controlled(source)
    return open_tfds(source, Path(cache_dir or default_cache()) / "tfds")
  path = Path(os.path.expanduser(source))
  if not source or not path.exists():
    raise UserError(
      f"The text {source!r} does not exist: give a .txt, .jsonl or .parquet file (or .gz or .zst "
      "of the first two), a folder of them, tfds:NAME, or controlled:NAME/DIAL."
    )
  if path.is_dir():
    files = sorted(
      file
      for file in path.rglob("*")
      if file.is_file() and file.name.endswith(SUFFIXES) and not file.name.startswith(".")
    )
    if not files:
      raise UserError(
        f"The folder {source!r} contains no text: expected {', '.join(SUFFIXES)} files."
      )
    return TextFiles(path, tuple(files), lines)
  if not path.name.endswith(SUFFIXES):
    raise UserError(
      f"The text {source!r} has an unknown file suffix: expected one of {', '.join(SUFFIXES)}."
    )
  return TextFiles(path.parent, (path,), lines)


class TextFiles(NamedTuple):
  """One or more text files below `root`."""

  root: Path
  files: tuple[Path, ...]
  lines: bool = False  # they are kept

  @property
  def size(self) -> int:
    return sum(map(bytes_of_text, self.files))

  def documents(self) -> Iterator[Document]:
    empty = True
    for number in range(len(self.files)):
      for document in documents_of(self.whole(number)):
        empty = False
        yield document
    if empty:
      path = self.files[0] if len(self.files) == 1 else self.root
      raise UserError(f"The text {str(path)!r} is empty: expected at least two documents.")

  def whole(self, number: int) -> Part:
    """A file."""
    file = self.files[number]
    return Part(file, file.relative_to(self.root).as_posix(), self.lines)

  def fingerprint(self) -> str:
    digest = hashlib.blake2b(digest_size=16)
    whole = sum(map(os.path.getsize, self.files)) <= _HASHED_WHOLE
    for file in self.files:
      stat = file.stat()
      digest.update(f"{file.relative_to(self.root).as_posix()}\0{stat.st_size}\0".encode())
      with file.open("rb") as stream:
        if whole:
          while block := stream.read(1 << 20):
            digest.update(block)
        else:
          digest.update(f"{stat.st_mtime_ns}\0".encode() + stream.read(1 << 16))
          stream.seek(max(0, stat.st_size - (1 << 16)))
          digest.update(stream.read())
    return digest.hexdigest()

  def record(self) -> dict:
    return {"files": len(self.files), "bytes on disk": sum(map(os.path.getsize, self.files))}
