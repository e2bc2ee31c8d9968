"""Files as they may lie on a disk: no FIFO or device is opened, and JSON has bounds."""

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from plm_jax.errors import UserError

JSON_BYTES = 64 << 20
JSON_DEPTH = 100  # brackets within brackets; a configuration has about ten

_KINDS = {
  stat.S_IFIFO: "a FIFO",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
  stat.S_IFSOCK: "a socket",
  stat.S_IFDIR: "a folder",
}


def not_waiting(path: str | Path, flags: int) -> int:
  """An opener for `open` that does not wait for the other end of a FIFO."""
  return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def open_file(path: str | Path) -> BinaryIO:
  """A regular file, open to read bytes; the caller closes it. Errors: `UserError` for a FIFO,
  which would be waited for, a device, a socket and a folder; `OSError` as `open`."""
  handle = not_waiting(path, os.O_RDONLY)
  kind = stat.S_IFMT(os.fstat(handle).st_mode)
  if kind != stat.S_IFREG:
    os.close(handle)
    raise UserError(f"{path} is {_KINDS.get(kind, 'no file')}; expected a file")
  return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, most: int) -> bytes:
  """The content of a file. Errors: as `open_file`; `UserError` for more than `most` bytes."""
  with open_file(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > most:
      raise UserError(f"{path} has {size:,} bytes; expected at most {most:,}")
    return file.read(size)  # of more, Python would make room for all


def write_file(path: Path, content: str | bytes) -> None:
  """Writes a file atomically: readers see the old or the new content, also after a kill. A FIFO or
  a link in its place is replaced."""
  partial = path.with_name(path.name + ".partial")
  partial.unlink(missing_ok=True)
  with open(partial, "xb") as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def read_json(path: str | Path) -> Any:
  """The value in a JSON file. Errors: `FileNotFoundError` and `NotADirectoryError`; `UserError`,
  with the reason, for all other files that cannot be read."""
  try:
    return parse_json(read_bytes(path, JSON_BYTES), path)
  except (FileNotFoundError, NotADirectoryError):
    raise
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_json(text: str | bytes, where: object) -> Any:
  """The value of a JSON text. Errors: `UserError`, which names `where` the text is from."""
  try:
    value = json.loads(text)
  except ValueError as error:
    raise UserError(f"{where} cannot be read: {error}") from error
  except RecursionError:
    raise UserError(f"{where} cannot be read: {_TOO_DEEP}") from None
  level, depth = [value], 0
  while level:
    if depth > JSON_DEPTH:
      raise UserError(f"{where} cannot be read: {_TOO_DEEP}")
    inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
    level = [v for values in inner if isinstance(values, list) for v in values]
    depth += 1
  return value


_TOO_DEEP = f"its brackets are nested more than {JSON_DEPTH} deep"


@contextlib.contextmanager
def new_directory(target: Path, word: str = "DST") -> Iterator[None]:
  """Makes a directory; a block that fails undoes it. word: the argument that named it. Errors:
  `UserError` if it is not writable."""
  was_there = target.exists()
  try:
    target.mkdir(parents=True, exist_ok=True)
    yield
  except BaseException as error:
    for path in target.iterdir() if target.is_dir() else ():
      shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if not was_there:
      with contextlib.suppress(OSError):
        target.rmdir()
    if isinstance(error, OSError):
      raise UserError(
        f"{target} cannot be written ({error.strerror or error}); free space or choose another "
        f"{word}."
      ) from None
    raise
