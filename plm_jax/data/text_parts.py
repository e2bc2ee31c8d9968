"""Files of text and parts of them, opened: plain or compressed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from plm_jax.data.layout import Layout
from plm_jax.errors import UserError

_PLAIN = (".txt", ".jsonl", ".tsv")
SUFFIXES = (*(plain + packed for packed in ("", ".gz", ".zst") for plain in _PLAIN), ".parquet")
_PACKED = {".gz": 3, ".zst": 3, ".parquet": 2}  # about how much larger the text is


def bytes_of_text(file: Path) -> int:
  """About; it scales progress bars and samples. Errors: as those of `readable`."""
  with readable(file):
    return file.stat().st_size * _PACKED.get(file.suffix, 1)


class Part(NamedTuple):
  """A file, or a part of it that begins and ends between two documents.

  name: of the file in those of its documents. keep: whether a sentence is a line as it is. offset:
  bytes of the text before the part, or row groups of Parquet. line: the number of its first line or
  row, from 1. data: its bytes; None is all from `offset` on. group: whether it is one row group.
  layout: that of the whole file; None is recognised from its beginning.
  """

  file: Path
  name: str
  keep: bool = False
  offset: int = 0
  line: int = 1
  data: bytes | None = None
  group: bool = False
  layout: Layout | None = None

  @property
  def kind(self) -> str:
    """The suffix without that of a compression."""
    return Path(self.file.name.removesuffix(".gz").removesuffix(".zst")).suffix

  @contextmanager
  def opened(self) -> Iterator[BinaryIO]:
    """The bytes. Errors: `UserError` for a file that cannot be read, or is damaged."""
    if self.data is not None:
      yield io.BytesIO(self.data)
      return
    with readable(self.file), _opened(self.file) as stream:
      if self.file.suffix in _PACKED:
        left = self.offset
        while left and (block := stream.read(min(left, 1 << 20))):
          left -= len(block)
      else:
        stream.seek(self.offset)
      yield stream


def _opened(file: Path) -> Any:
  if file.suffix == ".zst":
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
  return (gzip.open if file.suffix == ".gz" else open)(file, "rb")


@contextmanager
def readable(file: Path) -> Iterator[None]:
  """Errors: `UserError` for a file that cannot be read, or is damaged."""
  try:
    yield
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(
      f"The file {str(file)!r} is damaged or not gzip ({error}): compress it again."
    ) from None
  except OSError as error:
    if error.strerror is None:  # of pyarrow, over several lines
      raise damaged(file, error) from None
    raise UserError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from None


def damaged(file: Path, error: Exception) -> UserError:
  kind = {".zst": "Zstandard", ".parquet": "Parquet"}.get(file.suffix, "text")
  why = next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")
  return UserError(f"The file {str(file)!r} is damaged or not {kind} ({why}): write it again.")
