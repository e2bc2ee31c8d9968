"""Files of a folder that somebody else published: regular files, and no links that lead out."""

import errno
import os
from pathlib import Path
from typing import Any

from plm_jax.errors import UserError
from plm_jax.files import open_file, parse_json, read_bytes

MOST_JSON = 256 << 20  # bytes; the tokenizer.json of 256,000 tokens has 33 MB


def file_in(folder: Path, name: str) -> Path | None:
  """The path of a file, or None if the folder lacks it. Errors: `UserError` for a FIFO, a device,
  and a link out of the folder. Links into the `blobs` of Hugging Face's cache are followed."""
  path = folder / name
  if not os.path.lexists(path):
    return None
  target, root = Path(os.path.realpath(path)), folder.resolve()  # loops of links stay links
  allowed = (root, root.parent.parent / "blobs")
  if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
    raise UserError(f"{path} is a link to {target}, outside of its folder; copy that file there.")
  try:
    path.stat()
  except FileNotFoundError:
    raise UserError(f"{path} is a link to a file that does not exist; fetch that file.") from None
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
    raise UserError(f"{path} is a link that leads back to itself; put the file there.") from None
  open_file(path).close()
  return path


def read_object(file: Path) -> dict[str, Any]:
  """The JSON object in a file. Errors: `UserError` if it is damaged, too deep or too large."""
  try:
    value = parse_json(read_bytes(file, MOST_JSON), file)
  except FileNotFoundError:
    raise UserError(f"{file} does not exist.") from None
  except OSError as error:
    raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None
  if not isinstance(value, dict):
    raise UserError(f"{file} cannot be read: expected a JSON object.")
  return value


def object_in(folder: Path, name: str) -> dict[str, Any]:
  """The JSON object in a file of a folder; {} without the file. Errors: as both functions above."""
  file = file_in(folder, name)
  return {} if file is None else read_object(file)
