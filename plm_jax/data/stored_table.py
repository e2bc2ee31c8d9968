"""A table of rows in a file beside the prepared text: written once, checked whenever it is opened.

The hashes follow the array, which `np.load` does not read. So a table is one file, and is replaced
whole.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from plm_jax.data.digests import damage, digests
from plm_jax.errors import UserError
from plm_jax.files import open_file, parse_json


def stored(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
  """The table in a file, memory-mapped; made if there is none, or, with a note, if it is damaged.

  It is written under another name and then renamed, so that no process reads half of it.
  """
  owner = {"table": path.name, "text": _hash_of_text(path.parent)}
  if not _is_whole(path, owner):
    table = make()
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
      with partial.open("wb") as file:
        np.save(file, table)
      record = json.dumps(owner | digests(partial)).encode()
      with partial.open("ab") as file:
        file.write(record + len(record).to_bytes(8, "little") + _END)
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      partial.replace(path)
    except OSError:
      partial.unlink(missing_ok=True)
      return table
  return np.load(path, mmap_mode="r")


_END = b"plm_rows"  # the last bytes of a table that has its hashes after the array
_MOST = 1 << 24  # bytes of the hashes


def _hash_of_text(folder: Path) -> str | None:
  path = folder / "manifest.json"
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _is_whole(path: Path, owner: dict) -> bool:
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
  if fault:
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
