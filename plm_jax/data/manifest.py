"""The manifest of a prepared text, and whether its files are as it says."""

import hashlib
import json
import shutil
from pathlib import Path

from plm_jax.data.digests import damage
from plm_jax.data.store import PARTS
from plm_jax.data.tokenizers import load_tokenizer
from plm_jax.errors import UserError
from plm_jax.files import read_json

SPLITS = ("train", "valid")
FILES = ("tokens", "counts", *PARTS)
MANIFEST, TOKENIZER = "manifest.json", "tokenizer/"


def fault(directory: Path, key: dict) -> str | None:
  """The damage of a prepared text as a phrase; None for one that is whole, unfinished or absent."""
  path = directory / MANIFEST
  if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
    return "it is no folder"
  if not path.exists() and not path.is_symlink():
    odd = (p for p in directory.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir()))
    return next((f"{p.name} is no file" for p in odd), None)
  try:
    manifest = read_json(path)
    if manifest.get("sha256", hash_of(manifest)) != hash_of(manifest):
      return f"{MANIFEST} has other bytes"
    known = manifest["source"]["fingerprint"], manifest["held_out"]
    if known != (key["text"], key["held_out"]):
      return f"{MANIFEST} is that of another text"
    names = {f"{split}.{part}" for split in SPLITS for part in FILES}
    tokenizer_files = {name for name in manifest["files"] if name.startswith(TOKENIZER)}
    if manifest["files"].keys() - tokenizer_files != names:
      return f"{MANIFEST} names other files"
    faults = (damage(directory / name, file) for name, file in manifest["files"].items())
    if why := next(filter(None, faults), None):
      return why
    given, tokenizer = key["tokenizer"], manifest["tokenizer"]
    if given == tokenizer["fingerprint"]:  # that of a tokenizer from elsewhere
      return None
    if load_tokenizer(directory / "tokenizer").fingerprint != tokenizer["fingerprint"]:
      return "its tokenizer is another one"
    return None if tokenizer["given"] == given else "its tokenizer is another one"
  except (UserError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    return str(error)


def hash_of(manifest: dict) -> str:
  """The sha256 of a manifest without its own."""
  rest = {name: value for name, value in manifest.items() if name != "sha256"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def clear(directory: Path) -> None:
  """Removes a folder, or a file or link in its place."""
  if directory.is_dir() and not directory.is_symlink():
    shutil.rmtree(directory)
  else:  # what a link leads to stays
    directory.unlink()
