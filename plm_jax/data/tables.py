"""The tables of rows of one text, a table for each pass; the next one is made in the background.

A table takes seconds for a large text, and a training that comes to the end of a pass should not
wait for them. So a thread makes the table of the next pass while this one is read. Tables are
functions of the text, the seed and the pass: it does not matter who makes one, or when.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from plm_jax.data.store import TokenStore
from plm_jax.data.stored_table import joined, stored

_FORMAT = 1  # increase it when the rules change, so that stored tables are not reused
Through = Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]


def pass_table(
  store: TokenStore, segments, length: int, seed: int, pass_: int, through: Through = iter
) -> np.ndarray:
  """`segments.table(...)`, memory-mapped from a file beside the store if that is on disk.

  All processes of a run map one file. If the folder is read-only, the table stays in memory.
  through: sees the parts of the table as they are made.
  """
  if not segments.drawn:
    seed = pass_ = 0

  def parts() -> Iterator[np.ndarray]:
    made = getattr(segments, "blocks", None)
    yield from (
      made(store, length, seed, pass_) if made else [segments.table(store, length, seed, pass_)]
    )

  folder = getattr(store, "directory", None)
  if folder is None:
    return joined(through(parts()))
  identity = repr((_FORMAT, segments, length, seed, pass_))
  digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
  path = Path(folder) / f"{store.split}.segments-{digest}.npy"
  return stored(path, lambda: through(parts()))


class PassTables:
  """The tables of `segments` for the rows of a store. Pickles without them, for worker processes,
  which read the same files."""

  def __init__(self, store: TokenStore, segments, length: int):
    self._place = store, segments, length
    self._made: dict[tuple[int, int], np.ndarray] = {}
    self._making: dict[tuple[int, int], _Making] = {}

  def __reduce__(self):
    return PassTables, self._place

  def __len__(self) -> int:
    """The number of tables in memory or mapped."""
    return len(self._made)

  def of(self, seed: int, pass_: int) -> np.ndarray:
    """The table of a pass, made now if it is not there, or awaited. Errors: those of making it."""
    key = self._key(seed, pass_)
    if key not in self._made:
      making = self._making.pop(key, None)
      self._made[key] = making.table() if making else pass_table(*self._place, *key)
    return self._made[key]

  def begin(self, seed: int, pass_: int) -> None:
    """Begins to make the table of a pass in the background, if that was not done."""
    key = self._key(seed, pass_)
    if key not in self._made and key not in self._making:
      self._making[key] = _Making(lambda through: pass_table(*self._place, *key, through))
      self._making[key].start()

  def close(self) -> None:
    """Ends what is being made, within a part of a table. `of` makes it later if it is needed."""
    for making in list(self._making.values()):
      making.stop()
    self._making.clear()

  def _key(self, seed: int, pass_: int) -> tuple[int, int]:
    return (seed, pass_) if self._place[1].drawn else (0, 0)


class _Stopped(Exception):
  pass


class _Making(threading.Thread):
  """A table that is being made. It is a daemon, so that a process that ends does not wait for it.
  `make` gets a function that ends its parts by `_Stopped` after `stop`."""

  def __init__(self, make: Callable[[Through], np.ndarray]):
    super().__init__(name="table of the next pass", daemon=True)
    self._make, self._ends = make, threading.Event()
    self._table: np.ndarray | None = None
    self._error: BaseException | None = None

  def run(self) -> None:
    try:
      self._table = self._make(self._until_stopped)
    except BaseException as error:  # of any kind: it is raised where the table is needed
      self._error = error

  def _until_stopped(self, parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for part in parts:
      if self._ends.is_set():
        raise _Stopped
      yield part

  def table(self) -> np.ndarray:
    """Waits for it. Errors: those of making it."""
    self.join()
    if self._table is None:
      raise self._error or _Stopped
    return self._table

  def stop(self) -> None:
    """Ends it after the part that is being made."""
    self._ends.set()
    with suppress(RuntimeError):  # a kill came before it was started
      self.join()
