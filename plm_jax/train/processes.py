"""Several processes of one run, which are started with the same command on every machine.

The first process writes all files, apart from the others' parts of a checkpoint. Messages between
processes go through the key-value store of JAX's coordination service and not over the devices, so
that they arrive while a process compiles, reads text or waits in an all-reduce. In a run of one
process every function here is trivial.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from plm_jax.errors import UserError
from plm_jax.train.launch import Place, place_of, wait_for

HEARTBEAT = 30  # seconds without a sign of life after which JAX ends the others
_HEARD = 5  # seconds in which the others hear of a refusal and end
_LONG = 7 * 24 * 3600 * 1000  # milliseconds
_LOST = re.compile(r"gloo|nccl|unavailable|deadline_exceeded|connection", re.IGNORECASE)
_LAST_LINE = """
import sys
lines = sys.stdin.read().splitlines()
if lines and lines[-1]:
  print(lines[-1], file=sys.stderr)
"""

_AGAIN = "give the same command again on all machines, and the run goes on from its last checkpoint"

_numbers = itertools.count()  # of the meetings; equal in all processes
_ending = threading.Lock()  # held by the thread that ends this process


class Interrupted(KeyboardInterrupt):
  """The run received a stop signal and has saved, in all processes."""


def is_first() -> bool:
  """Whether this process writes the files and prints the report."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str, file=None) -> None:
  """Prints `text` in the first process."""
  if is_first():
    print(text, file=file, flush=True)


@contextmanager
def joined(
  coordinator: str | None, processes: int | None, process: int | None, seconds: int = 300
) -> Iterator[None]:
  """A context in which this process is one of the run's.

  Without arguments, SLURM, Cloud TPU, Kubernetes and Open MPI are detected as JAX does it;
  processes=1 runs alone. seconds: how long to wait for the others. It is entered before the first
  use of a device. An error inside it ends the other processes too: they print its sentence and exit
  with code 2. Errors: `UserError` if the coordinator or another process is not reached.
  """
  place = place_of(coordinator, processes, process, seconds)
  if place is None:
    yield
    return
  watcher = _join(place, seconds)
  _listen(place, watcher)
  try:
    yield
  except Interrupted:
    _leave(watcher)
    raise
  except BaseException as error:
    lost = isinstance(error, (ValueError, jax.errors.JaxRuntimeError)) and _LOST.search(str(error))
    if lost:
      time.sleep(2)  # if the other process refused, its sentence arrives first and ends this one
    _ending.acquire()
    sentence = _lost_sentence(error, place) if lost else _sentence(error, place)
    end = time.monotonic() + _HEARD
    _refuse(sentence, place, end)
    watcher.communicate(b"\n")
    # JAX's own exit would wait for the other processes.
    atexit.register(_end, 2 if lost else _code(error), place, end)
    if lost:
      raise UserError(sentence) from error
    raise
  _leave(watcher)


def _join(place: Place, seconds: int) -> subprocess.Popen:
  """Meets the other processes; returns the watcher of this one."""
  # Its handler of SIGTERM would swallow the signal; `AskedToStop` does its work.
  jax.config.update("jax_enable_preemption_service", False)
  # On a CPU two programs may run at once, and their all-reduces wait for each other's in turn.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if place.process:
    wait_for(place.coordinator, seconds)
  watcher = _watcher()
  name = f"process {place.process} of {place.processes}"
  apart = (
    f"{name} did not meet the others at {place.coordinator} within {seconds} seconds; start all "
    "with the same --coordinator and --processes"
  )
  _tell(watcher, apart)
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.processes,
      place.process,
      place.devices,
      cluster_detection_method="deactivate",
      initialization_timeout=seconds,
      heartbeat_timeout_seconds=HEARTBEAT,
    )
  except (RuntimeError, ValueError) as error:
    watcher.communicate(b"\n")
    raise UserError(f"{apart} ({str(error).splitlines()[0]})") from error
  _tell(
    watcher,
    f"{name} was killed, or ended because another one ended or was not heard for {HEARTBEAT} "
    f"seconds; {_AGAIN}",
  )
  return watcher


# --- messages -------------------------------------------------------------------------------------


def _client():
  return distributed.global_state.client  # as Orbax does; JAX has no public name for it


def _listen(place: Place, watcher: subprocess.Popen) -> None:
  """Ends this process when another one refuses, whatever its main thread waits for."""
  client = _client()

  def wait():
    with suppress(jax.errors.JaxRuntimeError):  # the service has ended
      message = json.loads(client.blocking_key_value_get("plm_jax/refusal", _LONG))
      if message["process"] != place.process:
        _end_with(message["sentence"], place, watcher)

  threading.Thread(target=wait, daemon=True, name="refusal").start()


def _refuse(sentence: str, place: Place, end: float) -> None:
  """Tells the others to end, and waits until they have heard it."""
  message = {"process": place.process, "sentence": " ".join(sentence.split())}
  with suppress(jax.errors.JaxRuntimeError):  # another process refused first, or the first is gone
    _note("heard", place)
    _client().key_value_set("plm_jax/refusal", json.dumps(message))
    _wait("heard", place, end)


def _end_with(sentence: str, place: Place, watcher: subprocess.Popen) -> None:
  _ending.acquire()
  watcher.communicate(b"\n")
  print(f"error: {sentence}", file=sys.stderr)
  with suppress(jax.errors.JaxRuntimeError):
    _note("heard", place)
  _end(2, place, time.monotonic() + _HEARD)


def _end(code: int, place: Place, end: float) -> None:
  """Ends this process. The first one, whose service the others need, goes after them: without it
  JAX would abort them."""
  sys.stdout.flush()
  sys.stderr.flush()
  with suppress(jax.errors.JaxRuntimeError):
    _note("ended", place)
    if place.process == 0:
      _wait("ended", place, end)
  os._exit(code)


def _note(what: str, place: Place) -> None:
  _client().key_value_set(f"plm_jax/{what}/{place.process}", "", allow_overwrite=True)


def _wait(what: str, place: Place, end: float) -> None:
  """Waits until all processes have noted it, or until the moment `end`."""
  for process in range(place.processes):
    left = max(1, int(1000 * (end - time.monotonic())))
    _client().blocking_key_value_get(f"plm_jax/{what}/{process}", left)


def _code(error: BaseException) -> int:
  """The exit code that plm_jax/cli.py gives an error."""
  if isinstance(error, KeyboardInterrupt):
    return 130
  return 2 if isinstance(error, (UserError, OSError)) else 1


def _sentence(error: BaseException, place: Place) -> str:
  """What the other processes print."""
  if isinstance(error, (UserError, OSError)):
    return str(error)
  fate = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed ({error!r})"
  return f"process {place.process} of {place.processes} {fate}"


def _lost_sentence(error: BaseException, place: Place) -> str:
  reason = str(error).splitlines()[0]
  return f"process {place.process} of {place.processes} lost another one ({reason}); {_AGAIN}"


def _leave(watcher: subprocess.Popen) -> None:
  _meet()  # the first process may still be writing its report or a checkpoint
  watcher.communicate(b"\n")
  jax.distributed.shutdown()


def _watcher() -> subprocess.Popen:
  """A process that prints the last sentence of `_tell` when this one ends, unless an empty line
  came after it: when another process is lost, JAX aborts this one in C++."""
  return subprocess.Popen(
    [sys.executable, "-S", "-c", _LAST_LINE], stdin=subprocess.PIPE, start_new_session=True
  )


def _tell(watcher: subprocess.Popen, sentence: str) -> None:
  watcher.stdin.write(f"error: {sentence}\n".encode())
  watcher.stdin.flush()


# --- agreement ------------------------------------------------------------------------------------


def _meet() -> None:
  _client().wait_at_barrier(f"plm_jax/meeting/{next(_numbers)}", _LONG)


@contextmanager
def first_goes_first() -> Iterator[None]:
  """Runs the block in the first process and then in the others, which find the files it wrote."""
  several = jax.distributed.is_initialized()
  if several and not is_first():
    _meet()
  yield
  if several and is_first():
    _meet()


class AskedToStop:
  """Agreement on a stop signal: `asked(own)` at every step tells whether any process was asked by
  the step before, which is the same answer in all processes.

  The flags are summed over the devices, and read after the next step was dispatched, so that no
  device waits for it.
  """

  def __init__(self):
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    self._flags = NamedSharding(mesh, PartitionSpec("devices"))
    self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._before: jax.Array | None = None

  def __call__(self, own: bool) -> bool:
    if not jax.distributed.is_initialized():
      return own
    flags = np.full(jax.local_device_count(), own)
    flags = jax.make_array_from_process_local_data(self._flags, flags, (jax.device_count(),))
    before, self._before = self._before, self._any(flags)
    return before is not None and bool(before)


def whole(tree):
  """The arrays of `tree` on this process's host, for work that the first process does alone."""
  return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
