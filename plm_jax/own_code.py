"""Python files of the user, such as one with a model or an objective, kept in a run's directory.

The directory has a copy of each file in `code/`; config.json has its hash, and a signature by a key
that is kept in the cache folder. A copy is executed only if its signature is valid: then this user
made the run. The code of a downloaded directory is never executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plm_jax import cli
from plm_jax.config_tree import OWN_MODULES
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError

FOLDER, VARIABLE = "code", "PLM_JAX_CODE"


def keep(folder: Path, config: Any) -> dict[str, Any] | None:
  """Copies the files of the user's classes in a configuration (of `to_json`) to FOLDER/code.
  Returns the entry of config.json; None if all classes are of plm_jax. Classes of a notebook's cell
  have no file."""
  files: dict[str, dict[str, str]] = {}
  for module in dict.fromkeys(_modules(config)):
    source = _source(module)
    if source is None:
      continue
    code = source.read_bytes()
    digest = hashlib.sha256(code).hexdigest()
    is_taken = source.name in [file["copy"] for file in files.values()]
    copy = folder / FOLDER / (f"{digest[:8]}_{source.name}" if is_taken else source.name)
    copy.parent.mkdir(exist_ok=True)
    if copy.resolve() != source.resolve():
      copy.write_bytes(code)
    files[module] = {"copy": copy.name, "sha256": digest}
    OWN_MODULES.add(module)
  return {"files": files, "signature": _signature(files)} if files else None


def load(folder: Path, document: Mapping[str, Any]) -> None:
  """Imports the files of a run's classes, if they are not imported yet. Errors: `UserError` for a
  file that is needed and cannot be had."""
  entry = document.get("code")
  if entry is None:
    return
  try:
    files = {module: (file["copy"], file["sha256"]) for module, file in entry["files"].items()}
    signature = _signature(entry["files"])
    is_signed = signature is not None and hmac.compare_digest(signature, entry["signature"] or "")
  except (TypeError, KeyError, AttributeError):
    raise UserError(f'{folder / "config.json"} has a damaged entry "code"') from None
  for module, (name, digest) in files.items():
    if module in sys.modules:
      _compare(folder, module, digest)
    else:
      _import(folder, module, name, digest, is_signed)
    OWN_MODULES.add(module)


def _import(folder: Path, module: str, name: str, digest: str, is_signed: bool) -> None:
  """Executes the file that the user names, or the copy if it is this user's."""
  path = _named_by_user(Path(name).name)
  if path is None:
    path = folder / FOLDER / Path(name).name
    why = None
    if not is_signed:
      why = "this user did not make the run on this machine, so its copy is not executed"
    elif not path.is_file():
      why = f"{path} is missing"
    elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
      why = f"{path} was changed after the run"
    if why:
      raise UserError(
        f"{folder} needs the classes of {Path(name).name}: {why}; if you trust that file, name it: "
        f"{VARIABLE}=PATH/{Path(name).name} in the environment."
      )
  try:
    cli.execute(module, path)
  except ImportError as error:
    raise UserError(
      f"{path}, whose classes {folder} needs, cannot be imported: {error}; give the command from a "
      "folder where it can."
    ) from None


def _named_by_user(name: str) -> Path | None:
  paths = map(Path, filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)))
  return next((path.resolve() for path in paths if path.name == name and path.is_file()), None)


def _compare(folder: Path, module: str, digest: str) -> None:
  """A note if the imported file is not the one of the run."""
  source = _source(module)
  if source and hashlib.sha256(source.read_bytes()).hexdigest() != digest:
    print(
      f"note: {folder} was made with another {source.name} than the one that is imported",
      file=sys.stderr,
    )


def _modules(config: Any) -> Iterator[str]:
  """The modules of all classes in a configuration that are not of plm_jax."""
  if isinstance(config, list):
    for element in config:
      yield from _modules(element)
  elif isinstance(config, dict):
    module = str(config.get("type", "plm_jax.")).rpartition(".")[0]
    while module and module not in sys.modules:  # of a class within a class
      module = module.rpartition(".")[0]
    if module and module.split(".")[0] != "plm_jax":
      yield module
    for value in config.values():
      yield from _modules(value)


def _source(module: str) -> Path | None:
  """The Python file of an imported module; None for a notebook and for a script."""
  path = Path(getattr(sys.modules[module], "__file__", None) or "")
  return path if module != "__main__" and path.suffix == ".py" and path.is_file() else None


def _signature(files: Mapping[str, Any]) -> str | None:
  """None where there is no key and none can be written."""
  with contextlib.suppress(OSError):
    text = json.dumps(files, sort_keys=True).encode()
    return hmac.new(_key(), text, hashlib.sha256).hexdigest()
  return None


def _key() -> bytes:
  """The user's key, made when it is first needed."""
  path = default_cache() / "key"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"key.{secrets.token_hex(8)}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
      file.write(secrets.token_bytes(32))
    with contextlib.suppress(FileExistsError):  # another process was first
      os.link(partial, path)
    partial.unlink()
  return path.read_bytes()
