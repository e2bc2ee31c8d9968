"""Documents from files of text: plain, JSON lines, pairs, Parquet; compressed or not.

Files are read as a stream. A document of plain text ends after `LONGEST_DOCUMENT` characters at the
latest; one of JSON lines or Parquet is a line or a row.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax.data.documents import Document
from plm_jax.data.layout import TITLE, Layout, layout_of, sentences_of, text_sentences
from plm_jax.data.text_parts import Part, damaged, readable
from plm_jax.errors import UserError

LONGEST_DOCUMENT = 1 << 20  # characters
_LONGEST_PIECE = 1 << 20  # bytes read at once; a longer line comes in pieces
_LONGEST_JSON = 1 << 28  # bytes of a line
_PROBE = 1 << 18  # bytes read from the beginning of a file to recognise its layout


def documents_of(part: Part) -> Iterator[Document]:
  """Streams the documents. Errors: `UserError` for a file that cannot be read."""
  kinds = {".jsonl": _from_json, ".parquet": _from_parquet, ".tsv": _from_pairs}
  return kinds.get(part.kind, _from_lines if part.keep else _from_text)(part)


class _Line(NamedTuple):
  number: int  # from 1
  text: str
  ends: bool  # False for all but the last piece of a very long line


def _lines(part: Part, tabs: bool = False, keep: bool = False) -> Iterator[_Line]:
  """The stripped lines of a text, with tabs or without, or `keep` as they are; very long ones are
  cut between words."""

  def stripped(text: str) -> str:
    if keep:
      return text
    return "\t".join(" ".join(x.split()) for x in (text.split("\t") if tabs else [text]))

  file, number, offset, rest, ends = part.file, part.line, part.offset, b"", True
  with part.opened() as stream:
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


def probed(file: Path) -> Layout:
  """The layout of plain text."""
  lines, size = [], 0
  for line in _lines(Part(file, "")):
    lines.append(line.text)
    size += len(line.text) + 1
    if size > _PROBE:
      break
  return layout_of(lines)


def _from_text(part: Part) -> Iterator[Document]:
  layout = part.layout or probed(part.file)
  first, blank, size = 1, 0, 0
  sentences: list[str] = []
  paragraph: list[str] = []

  def close() -> Document:
    sentences.extend(sentences_of(paragraph, layout.wrapped))
    document = Document(f"{part.name}:{first}", tuple(sentences))
    sentences.clear()
    paragraph.clear()
    return document

  for line in _lines(part):
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


def _from_pairs(part: Part) -> Iterator[Document]:
  for line in _lines(part, tabs=True):
    source, _, rest = line.text.partition("\t")
    target = rest.partition("\t")[0]
    if line.text and not (source and target):
      raise UserError(
        f"Line {line.number} of {str(part.file)!r} is not a pair: expected a source, a tab and a "
        "target."
      )
    if line.text:
      yield Document(f"{part.name}:{line.number}", (source, target))


def _from_lines(part: Part) -> Iterator[Document]:
  """Documents of whole lines; blank lines end a document, as does `LONGEST_DOCUMENT`."""
  first, size, kept = 1, 0, []
  for line in _lines(part, keep=True):
    text = line.text.replace("\r\n", "\n")
    if kept and (not text.strip() or size >= LONGEST_DOCUMENT):
      yield Document(f"{part.name}:{first}", tuple(kept))
      size, kept = 0, []
    if text.strip():
      first = first if kept else line.number
      kept.append(text)
      size += len(text)
  if kept:
    yield Document(f"{part.name}:{first}", tuple(kept))


def _from_json(part: Part) -> Iterator[Document]:
  """A document for each line, however long: half a line is no JSON."""
  with part.opened() as stream:
    lines = iter(lambda: stream.readline(_LONGEST_JSON), b"")
    for number, block in enumerate(lines, part.line):
      where = f"The file {str(part.file)!r}, line {number},"
      if len(block) == _LONGEST_JSON:
        raise UserError(f"{where} has more than {_LONGEST_JSON:,} bytes; split the document.")
      line = _decode(block, part.file, number, 0).lstrip("\ufeff").strip()
      if not line:
        continue
      try:
        entry = read_json(line)
      except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}): expected an object per line.") from None
      if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise UserError(f'{where} has no text: expected an object with a string "text".')
      sentences = _sentences(entry["text"], part.keep)
      if sentences:
        yield Document(f"{part.name}:{number}", sentences, _label(entry))


def _from_parquet(part: Part) -> Iterator[Document]:
  """A document for each row of the column "text"."""
  import pyarrow
  from pyarrow import parquet

  file, number = part.file, part.line - 1
  with readable(file):
    try:
      table = parquet.ParquetFile(file)
      types = {field.name: field.type for field in table.schema_arrow}
      if not _is_text(types.get("text")):
        of = f"of strings, but of {types['text']}" if "text" in types else "among its columns"
        names = ", ".join(types) or "none"
        raise UserError(f'The file {str(file)!r} has no "text" {of}; it has: {names}.')
      columns = ["text", *(["label"] if "label" in types else [])]
      groups = range(part.offset, part.offset + 1 if part.group else table.num_row_groups)
      for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=columns):
        for row in batch.to_pylist():
          number += 1
          sentences = _sentences(row["text"] or "", part.keep)
          if sentences:
            yield Document(f"{part.name}:{number}", sentences, _label(row))
    except pyarrow.ArrowInvalid as error:
      raise damaged(file, error) from None
    except UnicodeDecodeError:
      raise UserError(
        f"The file {str(file)!r} has a text that is not UTF-8, in rows {number + 1} to "
        f"{number + 256}."
      ) from None


def _is_text(kind) -> bool:
  from pyarrow import types

  if kind is not None and types.is_dictionary(kind):
    kind = kind.value_type
  kinds = (types.is_string, types.is_large_string, types.is_string_view)
  return kind is not None and any(is_kind(kind) for is_kind in kinds)


def _label(entry: dict[str, Any]) -> str:
  label = entry.get("label")
  return "" if label is None else str(label)


def _sentences(text: str, keep: bool) -> tuple[str, ...]:
  """Those of a document, or `keep` its lines as they are."""
  if not keep:
    return text_sentences(text)
  lines = text.replace("\r\n", "\n").split("\n")
  kept = [f"{line}\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
  return tuple(kept) if text.strip() else ()


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
