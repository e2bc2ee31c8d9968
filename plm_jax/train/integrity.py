"""SHA-256 manifest of a checkpoint folder, which detects any damaged byte; hash of a small record.

`manifest` holds the sha256 of every other file; its first line is the sha256 of its other lines. A
record of results has its hash as one more field.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

from plm_jax.errors import UserError
from plm_jax.files import open_file, parse_json, read_bytes

MANIFEST = "manifest"
DIGEST = "sha256"  # the field of a record
_MOST = 64 << 20  # bytes of a manifest


def damage(folder: Path) -> str | None:
  """The folder's damage as a phrase ("has no manifest"), or None if every byte is right.

  Reads at the disk's speed, in blocks; loads nothing onto devices.
  """
  try:
    head, _, body = read_bytes(folder / MANIFEST, _MOST).partition(b"\n")
    if head != hashlib.sha256(body).hexdigest().encode():
      return "has a damaged manifest"
    files = parse_json(body, MANIFEST)
  except FileNotFoundError:
    return "has no manifest" if folder.is_dir() else "does not exist"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  except UserError:
    return "has a damaged manifest"
  for name, digest in files.items():
    try:
      if _hash(folder / name) != digest:
        return f"is damaged in {name}"
    except FileNotFoundError:
      return f"has lost {name}"
    except OSError as error:
      return f"cannot be read in {name} ({error.strerror})"
    except UserError:
      return f"is damaged in {name}, which is no file"
  return None


def _hash(path: Path) -> str:
  with open_file(path) as file:
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  body = json.dumps({path.relative_to(folder).as_posix(): _hash(path) for path in files}, indent=0)
  write_text(folder / MANIFEST, f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")


def write_text(path: Path, text: str) -> None:
  with open(path, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  sync_folder(path.parent)


def with_digest(record: dict[str, Any]) -> str:
  """The text of a file that holds a record and its hash."""
  return json.dumps({**record, DIGEST: _digest(record)}, indent=2) + "\n"


def without_digest(record: Any, where: object) -> Any:
  """The record in a file by `with_digest`; one of an older version has no hash. Errors: `UserError`
  if it is not the record that was written."""
  if not isinstance(record, dict) or DIGEST not in record:
    return record
  rest = {name: value for name, value in record.items() if name != DIGEST}
  if _digest(rest) != record[DIGEST]:
    raise UserError(f"{where} was changed after it was written")
  return rest


def _digest(record: dict[str, Any]) -> str:
  read = json.loads(json.dumps(record))  # a number as a key becomes a text, which sorts differently
  return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def sync_folder(directory: Path) -> None:
  """Writes a folder to disk, without which a rename in it may not survive a power cut."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
