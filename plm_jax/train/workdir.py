"""A run's directory: its lock, its configuration and its metrics.

config.json     the resolved experiment, its diff to its base, versions, corpus counts
metrics.jsonl   one line per report; the same configuration gives the same bytes
timing.jsonl    the same steps' wall-clock seconds, tokens/s and seconds spent waiting for data
tensorboard/    metrics and timing as events
tokenizer/  checkpoints/  curves.png
code/           copies of the user's own files with classes of the configuration, if there are any
"""

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO

from plm_jax import overrides, own_code
from plm_jax.config_tree import is_within
from plm_jax.errors import UserError
from plm_jax.files import not_waiting, open_file, parse_json, read_json, write_file
from plm_jax.train import processes

FORMAT = 1

# Fields that may differ when a run resumes: they set where and how it runs, not its results; the
# way on after a spike, which its record tells; `model.sizes` of a counted model, a result itself.
PLACE = ("mesh", "compute", "schedule", "data.workers", "on_spike", "model.sizes")


class Workdir:
  """A directory held by this run until `close`, of which the first process has the lock and writes
  the files. Refuses one that another run holds."""

  def __init__(self, path: str | Path):
    self.path = Path(path)
    self._lock = lock(self.path, "process", "--workdir") if processes.is_first() else None

  def close(self) -> None:
    if self._lock is None:
      return
    with contextlib.suppress(OSError):  # somebody has moved the directory away
      if os.listdir(self.path) == [".lock"] and not os.path.getsize(self.path / ".lock"):
        (self.path / ".lock").unlink()  # nothing was written
    self._lock.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def __truediv__(self, name: str) -> Path:
    return self.path / name

  def check_same_experiment(self, experiment, record: dict[str, Any]) -> None:
    """A `UserError` if the directory holds anything but a run of this experiment; the first process
    looks."""
    if self._lock is None:
      return
    if not os.path.lexists(self.path / "config.json"):
      # A start that was killed early leaves these; all else is written after config.json.
      ours = (".lock", "config.json.partial", own_code.FOLDER)
      strangers = [p.name for p in self.path.iterdir() if p.name not in ours]
      if strangers:
        raise UserError(
          f"{self.path} is not empty and holds no run ({strangers[0]}); choose another --workdir"
        )
      return
    document = read_config(self.path)
    if not self.has_begun():
      return
    before = overrides.from_json(document["experiment"])
    different = [d for d in overrides.diff(experiment, before) if not is_within(d[0], PLACE)]
    if different:
      path, old, new = different[0]
      more = f" (and {len(different) - 1} more differ)" if len(different) > 1 else ""
      raise UserError(
        f"{self.path} holds another experiment: {path} is {overrides.show(old)} there and "
        f"{overrides.show(new)} here{more}; choose another --workdir"
      )
    labels = {"text": "text", "initial": "start (--from)", "taught_by": "teacher (--teacher)"}
    labels |= {"base": "base (--from)"}
    for name, label in labels.items():
      if name in record and document.get(name) != record[name]:
        raise UserError(f"{self.path} holds a run with another {label}; choose another --workdir")

  def has_begun(self) -> bool:
    """Whether anything was saved, or was before it got lost. Before that a failed command can be
    corrected and repeated in the same directory."""
    return any(map(_is_filled, (self.path / "checkpoints", self.path / "best"))) or self.lost() > 0

  def lost(self, save: int = 1) -> int:
    """The last step of metrics.jsonl if a checkpoint must have been written before it, else 0.
    save: the steps between checkpoints now, which may have been fewer or more."""
    with contextlib.suppress(UserError, TypeError, KeyError):
      save = max(save, read_config(self.path)["experiment"]["schedule"]["save"])
    last = max((r["step"] for r in read_records(self.path / "metrics.jsonl")), default=0)
    return last if last > 2 * save else 0  # the save before the last one was waited for

  def write_config(self, experiment, record: dict[str, Any]) -> None:
    """Writes config.json, unless the directory already holds this very run. Errors: `UserError` in
    a process that does not see it there."""
    with processes.first_goes_first():
      if self._lock is not None:
        self._write_config(experiment, record)
      elif not (self.path / "config.json").exists():
        raise UserError(
          f"a process does not see the files of the first one in {self.path}; choose a --workdir "
          "on a file system that all machines share"
        )

  def _write_config(self, experiment, record: dict[str, Any]) -> None:
    self.check_same_experiment(experiment, record)
    if not (self.path / "config.json").exists() or not self.has_begun():
      document = {"format": FORMAT, "experiment": overrides.to_json(experiment), **record}
      document |= own_code_entry(self.path, document)
      write_whole(self.path / "config.json", json.dumps(document, indent=2) + "\n")


def own_code_entry(path: Path, document: dict[str, Any]) -> dict[str, Any]:
  """The entry of config.json for the user's own files, which are copied."""
  entry = own_code.keep(path, document["experiment"])
  return {} if entry is None else {"code": entry}


def check_name(directory: Path) -> None:
  """A `UserError` for a path in which Orbax would see a pattern, and lose the checkpoint."""
  if marks := sorted(set(str(Path(directory).absolute())) & set("*?[")):
    raise UserError(
      f"the directory {directory} has {' and '.join(marks)} in its path, with which no checkpoint "
      "can be written; choose a name without these characters"
    )


def _is_filled(folder: Path) -> bool:
  """Whether a folder has a checkpoint, or anything but the leftovers of a kill."""
  return folder.is_dir() and any(p.suffix not in (".saving", ".deleting") for p in folder.iterdir())


def lock(directory: Path, holder: str, flag: str) -> TextIO:
  """Makes a directory and locks it until the returned file is closed. Errors: `UserError` if
  another `holder` has locked it, or it cannot be written."""
  check_name(directory)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    # Opened to append: in a folder that is then refused, `.lock` may be another program's file.
    file = open(directory / ".lock", "a", opener=not_waiting)  # noqa: SIM115  the caller closes it
  except OSError as error:
    raise UserError(f"the directory {directory} cannot be written: {error.strerror}") from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    raise UserError(
      f"another {holder} is working in {directory}; wait for it or choose another {flag}"
    ) from None
  return file


def _below(path: Path) -> str:
  """A hint for a folder with runs."""
  places = ("*/config.json", "*/*/config.json")
  runs = sorted(str(config.parent) for place in places for config in path.glob(place))
  shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} others" if len(runs) > 5 else "")
  return f"; directories below it that have one: {shown}" if runs else ""


def run_hash(path: Path) -> str | None:
  """A hash of all that decides the numbers of a run, as config.json says it; None without one. A
  checkpoint has it, so that those of two runs are not mixed up."""
  try:
    document = read_config(path)
  except UserError:
    return None
  return hash_of(document)


def hash_of(document: dict[str, Any]) -> str:
  """The hash of a run by the content of its config.json, which stays as it was first written."""
  parts = {name: document.get(name) for name in ("text", "initial", "taught_by")}
  parts["experiment"] = _without_places(document["experiment"])
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _without_places(experiment: dict[str, Any], path: str = "") -> dict[str, Any]:
  inner = {name: f"{path}.{name}" if path else name for name in experiment}
  return {
    name: _without_places(value, inner[name]) if isinstance(value, dict) else value
    for name, value in experiment.items()
    if inner[name] not in PLACE
  }


def read_config(path: str | Path) -> dict[str, Any]:
  """The config.json of a run. Errors: `UserError` if it is missing, or not that of a run."""
  path = Path(path)
  try:
    document = read_json(path / "config.json")
  except (FileNotFoundError, NotADirectoryError):
    names = [sibling.name for sibling in path.parent.glob("*/")]
    near = difflib.get_close_matches(path.name, names, n=1)
    missing = f"it does not exist{f'; did you mean {path.parent / near[0]}?' if near else ''}"
    if path.is_dir():
      missing = f"it has no config.json{_below(path)}"
    if path.is_file():
      missing = "it is a file; give its folder"
    raise UserError(f"{path} is not the directory of a run: {missing}") from None
  if isinstance(document, dict) and "model_type" in document:
    raise UserError(
      f"{path} is a published model: run_finetune.py --from={path} fine-tunes it, and python -m "
      f"plm_jax.convert {path} RUN makes a run of it"
    )
  known = isinstance(document, dict) and document.get("format") == FORMAT
  if not known or not isinstance(document.get("experiment"), dict):
    raise UserError(f"{path / 'config.json'} is not the configuration of a run of this version")
  own_code.load(path, document)
  if "public" in document and not _is_public(document["public"]):
    raise UserError(
      f'{path / "config.json"} has a damaged entry "public", which names the published model '
      "that the run was imported from; convert that model again"
    )
  base = document.get("base")
  if "base" in document and not (isinstance(base, dict) and isinstance(base.get("from"), str)):
    raise UserError(
      f'{path / "config.json"} has a damaged entry "base", {str(base)[:60]!r}; expected '
      'the place and the hash of the base of an adapter: {"from": DIR, "parameters": HASH}'
    )
  return document


def _is_public(entry: Any) -> bool:
  """Whether an entry has the fields that plm_jax.convert writes, with their types."""
  kinds = {"config": dict, "architecture": str, "heads": dict, "pooling": dict | None}
  if not isinstance(entry, dict) or entry.keys() != kinds.keys():
    return False
  sizes, pooling = entry["heads"], entry["pooling"]
  return (
    all(isinstance(entry[name], kind) for name, kind in kinds.items())
    and all(type(size) is int for size in sizes.values())
    and (pooling is None or (isinstance(pooling, dict) and isinstance(pooling.get("modes"), list)))
  )


def write_whole(path: Path, text: str) -> None:
  """`write_file` of text."""
  write_file(path, text)


def read_records(path: Path, last: int | None = None) -> list[dict[str, Any]]:
  """The records of a `.jsonl` file, if any, or of its `last` bytes; bad lines are skipped."""
  if not path.exists():
    return []
  with open_file(path) as file:
    start = 0 if last is None else max(0, file.seek(0, os.SEEK_END) - last)
    file.seek(start)
    lines = file.read().split(b"\n")
  # The text after the last newline is a partial line, and so is the first one of a cut file.
  return list(_records_of(lines[1 if start else 0 : -1]))


def records_in(text: str) -> list[dict[str, Any]]:
  """The records in the text of a file; bad lines are skipped."""
  return list(_records_of(text.encode().split(b"\n")))


def _records_of(lines: list[bytes]) -> Iterator[dict[str, Any]]:
  for line in lines:
    with contextlib.suppress(UserError):
      record = parse_json(line, "a line")
      if _is_record(record):
        yield record


def _is_record(value: Any) -> bool:
  if not isinstance(value, dict) or type(value.get("step")) is not int or value["step"] < 0:
    return False
  return all(isinstance(field, str | int | float) for field in value.values())
