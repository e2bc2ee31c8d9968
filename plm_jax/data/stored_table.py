"""A table of rows in a file beside the prepared text: written once, checked whenever it is opened.

The hashes follow the array, which `np.load` does not read. So a table is one file, and is replaced
whole.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from plm_jax.data.digests import damage, digests
from plm_jax.errors import UserError
from plm_jax.files import open_file, parse_json


def stored(path: Path, parts: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
  """The table in a file, memory-mapped; made if there is none, or, with a note, if it is damaged.

  parts: a function that makes the table, as consecutive parts; they are written one by one. The
  file is written under another name and then renamed, so that no process reads half of it. If the
  folder cannot be written to, the table stays in memory.
  """
  owner = {"table": path.name, "text": _hash_of_text(path.parent)}
  if _is_whole(path, owner):
    return np.load(path, mmap_mode="r")
  with _alone(path.parent) as alone:
    if alone and path.exists() and _is_whole(path, owner, quiet=True):  # another one has made it
      return np.load(path, mmap_mode="r")
    if alone:  # what killed processes left
      for left in path.parent.glob(f"{path.stem}.*.partial"):
        left.unlink(missing_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
      with partial.open("wb") as file:
        _write(file, parts())
      record = json.dumps(owner | digests(partial)).encode()
      with partial.open("ab") as file:
        file.write(record + len(record).to_bytes(8, "little") + _END)
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)
      return joined(parts())
    except BaseException:
      partial.unlink(missing_ok=True)
      raise
  return np.load(path, mmap_mode="r")


def joined(parts: Iterator[np.ndarray]) -> np.ndarray:
  """The table in memory."""
  first, *others = parts
  return np.concatenate([first, *others]) if others else first


def _write(file: BinaryIO, parts: Iterator[np.ndarray]) -> None:
  """The bytes that `np.save` writes for the table."""
  rows, first = 0, next(parts)
  header = {"descr": npy.dtype_to_descr(first.dtype), "fortran_order": False}
  # numpy leaves space in the header for a larger number of rows.
  npy.write_array_header_1_0(file, header | {"shape": (0,)})
  for part in chain([first], parts):
    part.tofile(file)
    rows += len(part)
  file.seek(0)
  npy.write_array_header_1_0(file, header | {"shape": (rows,)})


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
  """Waits until no other process or thread makes a table in this folder, where the file system has
  locks; gives whether it has."""
  try:
    place = os.open(folder, os.O_RDONLY)
  except OSError:
    yield False
    return
  try:
    locked = False
    with suppress(OSError):
      fcntl.flock(place, fcntl.LOCK_EX)
      locked = True
    yield locked
  finally:
    os.close(place)


_END = b"plm_rows"  # the last bytes of a table that has its hashes after the array
_MOST = 1 << 24  # bytes of the hashes


def _hash_of_text(folder: Path) -> str | None:
  path = folder / "manifest.json"
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _is_whole(path: Path, owner: dict, quiet: bool = False) -> bool:
  """Whether a stored table is undamaged and belongs to this text; a note if it is not."""
  if not path.exists() and not path.is_symlink():
    return False
  try:
    record, after = _record_after(path)
    fault = damage(path, record, after)
    if not fault and not owner.items() <= record.items():
      fault = "they are those of another text"
  except (UserError, OSError, ValueError) as error:
    if _has_no_record(path):
      return False
    fault = str(error)
  if fault and not quiet:
    print(f"The stored rows {path} are damaged ({fault}) and are made again.", file=sys.stderr)
  return not fault


def _record_after(path: Path) -> tuple[dict, int]:
  """The hashes after a table, and their bytes."""
  with open_file(path) as file:
    file.seek(-16, os.SEEK_END)
    end = file.read()
    size = int.from_bytes(end[:8], "little")
    if end[8:] != _END or size > _MOST:
      raise ValueError("their end is missing")
    file.seek(-16 - size, os.SEEK_END)
    record = parse_json(file.read(size), path)
  if not isinstance(record, dict):
    raise ValueError("their hashes are missing")
  return record, size + 16


def _has_no_record(path: Path) -> bool:
  """Whether it is a whole table of an older version."""
  with suppress(OSError, ValueError, EOFError):
    table = np.load(path, mmap_mode="r") if path.is_file() else None
    return table is not None and table.offset + table.nbytes == path.stat().st_size
  return False
