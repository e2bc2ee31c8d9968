"""A folder that knows whether every byte in it is as it was written.

`manifest` holds the sha256 of each file beside and below it; its first line is the sha256 of its
own remainder, so it vouches for itself too.
"""

import hashlib
import json
import os
from pathlib import Path

MANIFEST = "manifest"


def damage(folder: Path) -> str | None:
  """Why the checkpoint in `folder` cannot be trusted ("has ..."), or None if every byte is right.

  Read at the disk's speed in pieces of a megabyte; nothing is loaded onto devices.
  """
  try:
    head, _, body = (folder / MANIFEST).read_bytes().partition(b"\n")
  except FileNotFoundError:
    return "has no manifest" if folder.is_dir() else "does not exist"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  if head != hashlib.sha256(body).hexdigest().encode():
    return "has a damaged manifest"
  for name, digest in json.loads(body).items():
    try:
      if _hash(folder / name) != digest:
        return f"is damaged in {name}"
    except FileNotFoundError:
      return f"has lost {name}"
    except OSError as error:
      return f"cannot be read in {name} ({error.strerror})"
  return None


def _hash(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


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


def sync_folder(directory: Path) -> None:
  """A rename survives a power cut only when the folder that holds the name is on disk too."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
