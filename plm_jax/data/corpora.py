"""Text sources: the user's files and prepared TFDS data sets.

`open_source(source)` takes

- a `.txt` file: a blank line between documents, a sentence or a paragraph per line;
- a `.jsonl` file: one object with a "text" per line, a document each;
- a `.tsv` file: a source, a tab and its target per line; each line is a document of two sentences,
  which are never split; text after a second tab is ignored;
- any of them with `.gz` appended;
- a folder of them: read recursively, in the order of the sorted paths;
- `tfds:NAME[/CONFIG][:SPLIT]`: a TFDS data set (see `plm_jax.data.tfds_text`);
- `controlled:NAME/DIAL[/DOCUMENTS]`: a controlled language (see `plm_jax.data.controlled`).

With `lines` a sentence is a line as it is, with its break and its indentation, for code and verse.
Otherwise `plm_jax.data.layout` divides lines into sentences and documents. A text with fewer than
20 documents is later cut into pieces (see `plm_jax.data.pieces`).

Everything is read as a stream: memory holds one document; a document ends after
`LONGEST_DOCUMENT` characters at the latest.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from plm_jax.data.controlled import PREFIX, open_controlled
from plm_jax.data.documents import Document
from plm_jax.data.layout import TITLE, Layout, layout_of, sentences_of, text_sentences
from plm_jax.data.tfds_text import open_tfds
from plm_jax.errors import UserError

LONGEST_DOCUMENT = 1 << 20  # characters
_LONGEST_PIECE = 1 << 20  # bytes read at once; a longer line comes in pieces
_LONGEST_JSON = 1 << 28  # bytes of a line
_PROBE = 1 << 18  # bytes read from the beginning of a file to recognise its layout
_HASHED_WHOLE = 1 << 30  # bytes; larger corpora are fingerprinted by sizes, times and samples
_SUFFIXES = (".txt", ".jsonl", ".tsv", ".txt.gz", ".jsonl.gz", ".tsv.gz")


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
      f"The text {source!r} does not exist: give a .txt or .jsonl file (or .gz of either), a "
      "folder of them, tfds:NAME, or controlled:NAME/DIAL."
    )
  if path.is_dir():
    files = sorted(
      file
      for file in path.rglob("*")
      if file.is_file() and file.name.endswith(_SUFFIXES) and not file.name.startswith(".")
    )
    if not files:
      raise UserError(
        f"The folder {source!r} contains no text: expected {', '.join(_SUFFIXES)} files."
      )
    return TextFiles(path, tuple(files), lines)
  if not path.name.endswith(_SUFFIXES):
    raise UserError(
      f"The text {source!r} has an unknown file suffix: expected one of {', '.join(_SUFFIXES)}."
    )
  return TextFiles(path.parent, (path,), lines)


class TextFiles(NamedTuple):
  """One or more text files below `root`."""

  root: Path
  files: tuple[Path, ...]
  lines: bool = False  # they are kept

  @property
  def size(self) -> int:
    # Text shrinks to about a third in gzip; this only scales the progress bar and the sample.
    return sum(os.path.getsize(f) * (3 if f.suffix == ".gz" else 1) for f in self.files)

  def documents(self) -> Iterator[Document]:
    empty = True
    for file in self.files:
      name = file.relative_to(self.root).as_posix()
      kinds = {".jsonl": partial(_from_json, keep=self.lines), ".tsv": _from_pairs}
      text = _from_lines if self.lines else _from_text
      read = next((kinds[s] for s in file.suffixes[-2:] if s in kinds), text)
      for document in read(file, name):
        empty = False
        yield document
    if empty:
      path = self.files[0] if len(self.files) == 1 else self.root
      raise UserError(f"The text {str(path)!r} is empty: expected at least two documents.")

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


def _opened(file: Path):
  return (gzip.open if file.suffix == ".gz" else open)(file, "rb")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
  """Errors: `UserError` for a file that cannot be read, or is damaged."""
  try:
    yield
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(
      f"The file {str(file)!r} is damaged or not gzip ({error}): compress it again."
    ) from None
  except OSError as error:
    raise UserError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from None


class _Line(NamedTuple):
  number: int  # from 1
  text: str
  ends: bool  # False for all but the last piece of a very long line


def _lines(file: Path, tabs: bool = False, keep: bool = False) -> Iterator[_Line]:
  """The stripped lines of a file, with tabs or without, or `keep` as they are; very long ones are
  cut between words."""

  def stripped(text: str) -> str:
    if keep:
      return text
    return "\t".join(" ".join(x.split()) for x in (text.split("\t") if tabs else [text]))

  number, offset, rest, ends = 1, 0, b"", True
  with _readable(file), _opened(file) as stream:
    while piece := stream.readline(_LONGEST_PIECE):
      block, rest = rest + piece, b""
      ends = piece.endswith(b"\n") or len(piece) < _LONGEST_PIECE
      if not ends:
        cut = _cut(block)
        block, rest = block[:cut], block[cut:]
      text = _decode(block, file, number, offset)
      yield _Line(number, stripped(text.lstrip("\ufeff")), ends)
      offset += len(block)
      number += ends
    if not ends:
      yield _Line(number, stripped(_decode(rest, file, number, offset)), True)


def _cut(block: bytes) -> int:
  """Where to cut a block without splitting a word or a character: after its last space."""
  cut = block.rfind(b" ") + 1
  if cut > len(block) // 2:
    return cut
  cut = len(block)
  while cut > len(block) - 4 and block[cut - 1] & 0xC0 == 0x80:
    cut -= 1
  return cut - 1 if block[cut - 1] >= 0xC0 else len(block)


def _decode(block: bytes, file: Path, line: int, offset: int) -> str:
  try:
    return block.decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(
      f"The file {str(file)!r} is not UTF-8: byte 0x{block[error.start]:02x} at offset "
      f"{offset + error.start}, line {line}. Convert it, for example with "
      "`iconv -f latin1 -t utf-8`."
    ) from None


def _probe(file: Path) -> Layout:
  lines, size = [], 0
  for line in _lines(file):
    lines.append(line.text)
    size += len(line.text) + 1
    if size > _PROBE:
      break
  return layout_of(lines)


def _from_text(file: Path, name: str) -> Iterator[Document]:
  layout = _probe(file)
  first, blank, size = 1, 0, 0
  sentences: list[str] = []
  paragraph: list[str] = []

  def close() -> Document:
    sentences.extend(sentences_of(paragraph, layout.wrapped))
    document = Document(f"{name}:{first}", tuple(sentences))
    sentences.clear()
    paragraph.clear()
    return document

  for line in _lines(file):
    if not line.text:
      blank += line.ends
      if paragraph:
        sentences += sentences_of(paragraph, layout.wrapped)
        paragraph.clear()
      continue
    ends = TITLE.fullmatch(line.text) if layout.titles else blank >= layout.run
    if blank and sentences and ends:
      yield close()
    if not sentences and not paragraph:
      first, size = line.number, 0
    blank = 0
    paragraph.append(line.text)
    size += len(line.text)
    if size >= LONGEST_DOCUMENT:
      yield close()
  if sentences or paragraph:
    yield close()


def _from_pairs(file: Path, name: str) -> Iterator[Document]:
  for line in _lines(file, tabs=True):
    source, _, rest = line.text.partition("\t")
    target = rest.partition("\t")[0]
    if line.text and not (source and target):
      raise UserError(
        f"Line {line.number} of {str(file)!r} is not a pair: expected a source, a tab and a target."
      )
    if line.text:
      yield Document(f"{name}:{line.number}", (source, target))


def _from_lines(file: Path, name: str) -> Iterator[Document]:
  """Documents of whole lines; blank lines end a document, as does `LONGEST_DOCUMENT`."""
  first, size, kept = 1, 0, []
  for line in _lines(file, keep=True):
    text = line.text.replace("\r\n", "\n")
    if kept and (not text.strip() or size >= LONGEST_DOCUMENT):
      yield Document(f"{name}:{first}", tuple(kept))
      size, kept = 0, []
    if text.strip():
      first = first if kept else line.number
      kept.append(text)
      size += len(text)
  if kept:
    yield Document(f"{name}:{first}", tuple(kept))


def _from_json(file: Path, name: str, keep: bool = False) -> Iterator[Document]:
  """A document for each line, however long: half a line is no JSON."""
  with _readable(file), _opened(file) as stream:
    for number, block in enumerate(iter(lambda: stream.readline(_LONGEST_JSON), b""), 1):
      where = f"The file {str(file)!r}, line {number},"
      if len(block) == _LONGEST_JSON:
        raise UserError(f"{where} has more than {_LONGEST_JSON:,} bytes; split the document.")
      line = _decode(block, file, number, 0).lstrip("\ufeff").strip()
      if not line:
        continue
      try:
        entry = read_json(line)
      except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): expected an object per line.") from None
      if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(f'{where} has no text: expected an object with a string "text".')
      text = entry["text"]
      lines = text.replace("\r\n", "\n").split("\n")
      kept = [f"{line}\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
      sentences = (tuple(kept) if text.strip() else ()) if keep else text_sentences(text)
      if sentences:
        yield Document(f"{name}:{number}", sentences, str(entry.get("label", "")))


def read_json(text: str) -> Any:
  """The value of a line of JSON. Errors: `ValueError` also for brackets that are nested too deep,
  and for half a character ("\\ud800" alone), which cannot be encoded."""
  try:
    value = json.loads(text)
    if "\\u" in text:
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError:
    raise ValueError("too many brackets within brackets") from None
  except UnicodeEncodeError as error:
    raise ValueError(f"half a character, \\u{ord(error.object[error.start]):04x}") from None
  return value
