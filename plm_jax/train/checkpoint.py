"""Checkpoints that survive a kill, a flipped byte and another number of devices.

    <step>/checkpoint.json   format version, step, the run it belongs to (workdir.py, `run_hash`),
                             names, shapes and dtypes, the caller's `meta`
           state/            the arrays, written by Orbax under their path names
           logs/             the run's records up to this step (metrics.jsonl, ...)
           manifest          sha256 of every file above, and of itself (integrity.py)

A checkpoint is written as `<step>.saving` and renamed once its manifest is on disk, so `<step>` is
complete or absent. SIGKILL leaves at most a `.saving` folder, which is never read. A checkpoint of
another run or step is skipped like a damaged one; one that names no run (of an older version) is
taken. The state is flattened to {path: array}, without classes of nnx or optax: later releases of
both can read it.
"""

import fnmatch
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from plm_jax.errors import UserError
from plm_jax.files import read_json
from plm_jax.models.parameters import path_name
from plm_jax.train.integrity import damage, sync_folder, write_manifest, write_text
from plm_jax.train.processes import is_first
from plm_jax.train.stored_arrays import (
  check_finite,
  check_readable,
  load_arrays,
  quiet_orbax,
  refuse_misfits,
  to_arrays,
  zeros,
)
from plm_jax.train.workdir import check_name, run_hash

FORMAT = 1
BEST = "best"  # the folder of the best parameters of a run, which are read in place of its last
INDEX, STATE, LOGS, SAVING, DELETING = "checkpoint.json", "state", "logs", ".saving", ".deleting"
PARAMETERS = "params/"  # where the train state keeps the model


_STEP = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)  # the name of a checkpoint's folder


def _say(sentence: str) -> None:
  print(sentence, file=sys.stderr, flush=True)


class Checkpoints:
  """The checkpoints of one run, in one directory.

  keep: the number of undamaged checkpoints to keep, the newest. report: receives one sentence for
  each skipped checkpoint, with the reason (default: standard error). run: the hash of the run; None
  reads those of any. Nothing is created, changed or removed before the first `save`, so reading
  during a training is safe.
  """

  def __init__(
    self,
    directory: str | Path,
    keep: int = 2,
    report: Callable[[str], None] | None = None,
    run: str | None = None,
  ):
    if keep < 1:
      raise UserError(f"keep={keep} checkpoints was given; expected at least 1.")
    self.directory = Path(os.path.abspath(directory))  # TensorStore refuses ".." in a path
    self.keep, self.run = keep, run
    self._report = report or _say
    self._verified: set[int] = set()  # read and hashed by this object
    self._written: set[int] = set()
    self._damaged: dict[int, str] = {}
    self._checkpointer = None
    self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    self._running: Future | None = None

  def save(
    self,
    step: int,
    state: Any,
    meta: dict,
    logs: Mapping[str, str] | None = None,
    protected: Collection[int] = (),
  ) -> None:
    """Starts to write `state` and returns when its buffers may be donated or overwritten.

    state: a pytree of arrays, typed random keys included. meta: any JSON (the data position, the
    run's config). logs: files by name, which `logs` gives back. protected: steps that are kept
    besides the newest. Waits first for an unfinished save; writes nothing if `step` is already
    stored and undamaged. Errors: `UserError` if the folder cannot be written.
    """
    check_name(self.directory)
    self.wait()
    if step in self._verified | self._written and self._folder(step).is_dir():
      return
    index, arrays = to_arrays(state)
    index = {"format": FORMAT, "step": step, "run": self.run, **index, "meta": meta}
    saving = self.directory / f"{step}{SAVING}"
    ocp = quiet_orbax()
    try:
      if is_first():
        for ending in (SAVING, DELETING):
          for leftover in self.directory.glob(f"*{ending}"):
            _remove(leftover)
        (saving / LOGS).mkdir(parents=True)
        for name, text in (logs or {}).items():
          write_text(saving / LOGS / name, text)
        write_text(saving / INDEX, json.dumps(index))
      if self._checkpointer is None:
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
      self._checkpointer.save(saving / STATE, args=ocp.args.PyTreeSave(arrays))
    except (OSError, ValueError) as error:
      raise _cannot_write(saving, error) from error
    self._running = self._thread.submit(self._finish, step, saving, arrays.keys(), protected)

  def wait(self) -> None:
    """Returns when the last save is on disk. Errors: `UserError` if it could not be written."""
    running, self._running = self._running, None
    if running is not None:
      running.result()

  def close(self) -> None:
    """Waits and ends the background threads."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      if self._checkpointer is not None:
        self._checkpointer.close()
        self._checkpointer = None

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps of all completely written checkpoints, oldest first, damaged or not. Links are not
    followed."""
    return sorted(int(path.name) for path in self._named() if not path.is_symlink())

  def _named(self) -> list[Path]:
    """The folders with the name of a step, and links to folders."""
    if not self.directory.is_dir():
      return []
    return [p for p in self.directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir()]

  def latest_good(self) -> int | None:
    """The newest undamaged step, or None in a run that has saved nothing.

    Errors: `UserError` if all checkpoints are damaged: a silent fresh start would discard the run.
    """
    step = self._find_latest() if is_first() else 0
    if jax.process_count() > 1:  # all processes must continue from the same step
      step = int(multihost_utils.broadcast_one_to_all(np.int64(step)))
    if step == _ALL_DAMAGED:
      reasons = "; ".join(f"{self._folder(s)} {why}" for s, why in self._damaged.items())
      raise UserError(
        f"all checkpoints in {self.directory} are damaged ({reasons}); move this folder away to "
        "start from the beginning, or replace it by an undamaged copy."
      )
    return None if step == _NONE else step

  def restore(
    self, abstract_state: Any, step: int | None = None, optional: tuple[str, ...] = ()
  ) -> tuple[Any, dict, int]:
    """(state, meta, step) of the newest undamaged checkpoint, or of `step`.

    abstract_state: a pytree of `jax.ShapeDtypeStruct`s (or arrays) with the sharding of each array;
    mesh and number of devices may differ from those of the save. optional: how the paths of arrays
    begin that are zero where the checkpoint lacks them, and not read where the state does. Errors:
    `UserError` if there is no checkpoint, if that of `step` is damaged, or if other names, shapes
    or dtypes differ.
    """
    self.wait()
    if step is None:
      step = self.latest_good()
    if step is None:
      raise UserError(f"there is no checkpoint in {self.directory}.")
    folder, index = self.read_index(step)
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_state)
    wanted = {path_name(path): leaf for path, leaf in leaves}
    lacking = {
      n: x for n, x in wanted.items() if n.startswith(optional) and n not in index["arrays"]
    }
    kept = {name: leaf for name, leaf in wanted.items() if name not in lacking}
    extra = {n for n in index["arrays"] if n.startswith(optional) and n not in wanted}
    refuse_misfits(folder, index, kept, index["arrays"].keys() - extra)
    arrays = load_arrays(folder / STATE, index, kept) | zeros(lacking)
    return jax.tree.unflatten(tree, [arrays[name] for name in wanted]), index["meta"], step

  def logs(self, step: int) -> dict[str, str]:
    """The files that were saved with a checkpoint; {} for one of an older version."""
    folder = self.read_index(step)[0] / LOGS
    files = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path.read_text(encoding="utf-8") for path in files}

  def read_index(self, step: int) -> tuple[Path, dict]:
    """The folder of a step and its index. Errors: `UserError` if it is damaged, of another run or
    newer."""
    folder = self._folder(step)
    unread = is_first() and step not in self._verified
    if unread and (why := self._fault(step)):
      raise UserError(f"the checkpoint {folder} {why}; restore another step: {self.steps()}.")
    self._verified.add(step)
    index = read_json(folder / INDEX)
    if index["format"] > FORMAT:
      raise UserError(
        f"the checkpoint {folder} has format {index['format']}, this plm_jax reads up to {FORMAT}; "
        "update plm_jax."
      )
    return folder, index

  def _folder(self, step: int) -> Path:
    return self.directory / str(step)

  def _find_latest(self) -> int:
    current = self._running
    if current is None or current.done():
      for half in sorted(self.directory.glob(f"*{SAVING}")):
        self._report(f"The checkpoint {half} is incomplete and is skipped.")
    steps = sorted(int(path.name) for path in self._named())
    for step in reversed(steps):
      if step in self._verified:
        return step
      why = self._fault(step)
      if not why:
        self._verified.add(step)
        return step
      if step not in self._damaged:
        self._report(f"The checkpoint {self._folder(step)} {why} and is skipped.")
      self._damaged[step] = why
    return _ALL_DAMAGED if steps else _NONE

  def _fault(self, step: int) -> str | None:
    """The reason why a checkpoint cannot be used, as a phrase."""
    folder = self._folder(step)
    if folder.is_symlink():
      return "is a link, which is not followed"
    if why := damage(folder):
      return why
    try:
      index = read_json(folder / INDEX)
      if index["step"] != step:
        return f"is that of step {index['step']}"
      if self.run and index.get("run") not in (None, self.run):
        return "belongs to another run"
    except (UserError, OSError, TypeError, KeyError, AttributeError):
      return f"is damaged in {INDEX}"
    return None

  def _finish(self, step: int, saving: Path, names: Collection[str], protected) -> None:
    """Background thread: waits for Orbax, hashes, renames the folder, deletes old checkpoints."""
    try:
      self._checkpointer.wait_until_finished()
      if is_first():
        check_readable(saving / STATE, names)
        write_manifest(saving)
        place = self._folder(step)
        doomed = self._set_aside(step) if place.exists() or place.is_symlink() else None
        os.replace(saving, place)
        sync_folder(self.directory)
        if doomed is not None:
          _remove(doomed)
        self._damaged.pop(step, None)
        good = [saved for saved in self.steps() if saved not in self._damaged]
        for old in good[: -self.keep]:
          if old not in protected:
            _remove(self._set_aside(old))
    except (OSError, ValueError) as error:
      shutil.rmtree(saving, ignore_errors=True)
      raise _cannot_write(saving, error) from error
    self._written.add(step)

  def remove_after(self, step: int) -> None:
    """Removes the checkpoints of later steps, the newest first, so that a kill leaves the older."""
    self.wait()
    for later in reversed(self.steps()):
      if is_first() and later > step:
        _remove(self._set_aside(later))

  def _set_aside(self, step: int) -> Path:
    # Renamed first: a kill during the deletion must not leave a folder that looks damaged.
    doomed = self.directory / f"{step}{DELETING}"
    os.replace(self._folder(step), doomed)
    self._verified.discard(step)
    self._written.discard(step)
    return doomed


def _remove(path: Path) -> None:
  """Removes a folder, or a file or link that has its name: what a link leads to stays."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink()


_NONE, _ALL_DAMAGED = -1, -2


class Restored(NamedTuple):
  """Restored parameters. fresh: paths that kept their given value; unused: stored, but not read."""

  params: Any
  fresh: list[str]
  unused: list[str]
  meta: dict
  folder: Path


def restore_parameters(
  directory: str | Path,
  params: Any,
  allow_missing: Iterable[str] = (),
  allow_unused: Iterable[str] = (),
  within: str = "",
) -> Restored:
  """The model's parameters without the rest of the state, for fine-tuning and `--from`.

  directory: a run, its `checkpoints` folder, or one `<step>` in it. params: the new model, real or
  abstract; a leaf that the checkpoint lacks is returned unchanged, and named in `fresh`.
  allow_missing, allow_unused: patterns (`classifier/*`) of paths that only the new model may have,
  and that only the checkpoint may have. within: the path of the model's parameters in the
  checkpoint ("discriminator/"), all that is read. Errors: `UserError` for any other difference.
  """
  checkpoints, step = newest(directory)
  folder, index = checkpoints.read_index(step)
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  place = PARAMETERS + within
  wanted = {place + path_name(path): leaf for path, leaf in leaves}
  stored = {name for name in index["arrays"] if name.startswith(place)}
  # A head of another size, for example for more classes, is replaced by a fresh one.
  stored -= {
    name
    for name in wanted.keys() & stored
    if index["arrays"][name][1] != list(wanted[name].shape)
    and _matches(name, place, allow_missing)
    and _matches(name, place, allow_unused)
  }
  fresh = {name for name in wanted.keys() - stored if _matches(name, place, allow_missing)}
  unused = {name for name in stored - wanted.keys() if _matches(name, place, allow_unused)}
  kept = {name: leaf for name, leaf in wanted.items() if name not in fresh}
  refuse_misfits(folder, index, kept, stored - unused)
  arrays = load_arrays(folder / STATE, index, kept)
  check_finite(arrays, folder)
  new = jax.tree.unflatten(tree, [arrays.get(name, leaf) for name, leaf in wanted.items()])
  fresh, unused = (sorted(name[len(place) :] for name in names) for names in (fresh, unused))
  return Restored(new, fresh, unused, index["meta"], folder)


def _matches(name: str, place: str, patterns: Iterable[str]) -> bool:
  return any(fnmatch.fnmatchcase(name[len(place) :], pattern) for pattern in patterns)


def newest(
  directory: str | Path, report: Callable[[str], None] | None = None
) -> tuple[Checkpoints, int]:
  """The checkpoint that `restore_parameters` reads. Errors: `UserError` if there is none."""
  path = Path(directory)
  if not path.is_dir():
    raise UserError(f"the folder {path} does not exist; expected a run or one of its checkpoints.")
  if _STEP.fullmatch(path.name) and path.parent.name == "checkpoints":
    return Checkpoints(path.parent, report=report), int(path.name)
  run, inner = run_hash(path), path / "checkpoints"
  checkpoints = Checkpoints(path / BEST, report=report, run=run)
  if not checkpoints.steps():
    checkpoints = Checkpoints(inner if inner.is_dir() else path, report=report, run=run)
  step = checkpoints.latest_good()
  if step is None:
    raise UserError(f"there is no finished checkpoint in {checkpoints.directory}.")
  return checkpoints, step


def _cannot_write(folder: Path, error: OSError | ValueError) -> Exception:
  """A `UserError` with the system's reason; `error` itself if the system gave none."""
  reason = error.strerror if isinstance(error, OSError) else None
  # TensorStore reports a full disk in this form.
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    reason = os.strerror(int(code[1]))
  if not reason:
    return error
  return UserError(
    f"the checkpoint {folder} could not be written ({reason}); free some space or choose another "
    "working directory; the checkpoints before it are untouched."
  )
