"""Cuts a file of text into parts of some megabytes, without reading its documents.

A part begins where reading the whole file begins a document with nothing left over from the text
before: so the documents of the parts, one part after the other, are those of the file, whoever
reads them. In plain text this is after the blank lines that end a document, in WikiText before a
title; in JSON lines and pairs at any line; in Parquet at a row group.
"""

import re
from collections.abc import Iterator

from plm_jax.data.layout import TITLE
from plm_jax.data.text_files import probed
from plm_jax.data.text_parts import Part, readable

MOST = 1 << 25  # bytes that are held in search of an end; what is longer is read as a stream
_WINDOW = 1 << 14  # bytes before the end that are searched first


def parts_of(start: Part, size: int) -> Iterator[tuple[Part, Part | None]]:
  """The parts of a file from `start` on, of about `size` bytes each, and what is left after each.
  Where documents end too rarely, or a file cannot be cut, the last part is all that is left, to be
  read as a stream, and None follows."""
  if start.kind == ".parquet":
    yield from _row_groups(start)
    return
  if start.kind == ".txt" and not start.keep:
    start = start._replace(layout=probed(start.file))
  data = b""
  with start.opened() as stream:
    while block := stream.read(size):
      data += block
      if cut := _last_end(data, start):
        part, data = start._replace(data=data[:cut]), data[cut:]
        start = _after(part)
        yield part, start
      elif len(data) >= MOST:
        yield start, None
        return
  if data:
    part = start._replace(data=data)
    yield part, _after(part)


def _after(part: Part) -> Part:
  """What is left of a file after a part with data."""
  data = part.data or b""
  offset, line = part.offset + len(data), part.line + data.count(b"\n")
  return part._replace(offset=offset, line=line, data=None)


def _row_groups(start: Part) -> Iterator[tuple[Part, Part | None]]:
  import pyarrow
  from pyarrow import parquet

  with readable(start.file):
    try:
      about = parquet.ParquetFile(start.file).metadata
    except pyarrow.ArrowInvalid:  # what is wrong is told where it is read
      yield start, None
      return
  groups = [about.row_group(number) for number in range(start.offset, about.num_row_groups)]
  for group in groups:
    if group.total_byte_size > MOST:
      yield start, None
      return
    part = start._replace(group=True)
    start = start._replace(offset=start.offset + 1, line=start.line + group.num_rows)
    yield part, start


def _last_end(data: bytes, part: Part) -> int:
  """The last place in the data where a part may end; 0 if there is none."""
  if part.kind in (".jsonl", ".tsv"):
    return data.rfind(b"\n") + 1
  titles = part.layout is not None and part.layout.titles
  blank = rb"\n(?:[ \t\r]*\n){%d}" % (part.layout.run if part.layout else 1)
  pattern = re.compile(blank + rb"(?=([ \t]*= [^\n]*\n))" if titles else blank)
  window = _WINDOW
  while True:
    first, cut = max(len(data) - window, 0), 0
    for match in pattern.finditer(data, first):
      if not titles or _is_title(match[1]):
        cut = match.end()
    if cut or not first:
      return cut
    window *= 8


def _is_title(line: bytes) -> bool:
  text = " ".join(line.decode("utf-8", "replace").split())
  return TITLE.fullmatch(text) is not None
