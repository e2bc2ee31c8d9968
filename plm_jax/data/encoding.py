"""Reads and encodes a text on all cores: worker processes take chunks; results keep their order.

The result of a chunk does not depend on the worker, so it is the same for any number of workers.
"""

import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from plm_jax.data import processes
from plm_jax.data.chunks import Chunk, Place
from plm_jax.errors import UserError

Result = TypeVar("Result")


def done(
  chunks: Iterable[Chunk], job: Callable[[Chunk], Result], workers: int
) -> Iterator[tuple[Place, Result]]:
  """Yields the result of `job` for every chunk, in order, and the place after the chunk.

  job: picklable. At most `workers` + 2 chunks or results are held at a time. With fewer than two
  workers this process does it. Errors: `UserError` when a worker was killed, and those of the job.
  """
  if workers < 2:
    for chunk in chunks:
      yield chunk.after, job(chunk)
    return
  with ExitStack() as stack:
    threads = ThreadPoolExecutor(workers)
    stack.callback(threads.shutdown, cancel_futures=True)
    pool = stack.enter_context(_Workers(job, workers))
    waiting: deque = deque()
    for chunk in chunks:
      waiting.append((chunk.after, threads.submit(pool.do, chunk)))
      if len(waiting) > workers + 1:
        place, result = waiting.popleft()
        yield place, result.result()
    while waiting:
      place, result = waiting.popleft()
      yield place, result.result()


class _Workers:
  """Worker processes; as many threads call `do`."""

  def __init__(self, job: Callable[[Chunk], Any], count: int):
    self._greeting = pickle.dumps(job)
    # One thread each: the processes already use all cores.
    environment = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    self._all = [processes.start(__name__, "work", **environment) for _ in range(count)]
    self._idle: SimpleQueue = SimpleQueue()
    for process in self._all:
      self._idle.put((process, self._greeting))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self._all:
      process.kill()  # it has no state; a thread that waits for it wakes up
      process.wait()
      process.stdout.close()
      with suppress(BrokenPipeError):  # input that it never read
        process.stdin.close()

  def do(self, chunk: Chunk) -> Any:
    """The result of the job. Errors: its `UserError`; another one when the process was killed."""
    process, greeting = self._idle.get()
    try:
      # The worker reads all of it before it writes: neither side can wait for the other.
      process.stdin.write(greeting + pickle.dumps(chunk))
      process.stdin.flush()
      result, error = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
      raise UserError(
        f"A process that encoded the text was killed (exit code {process.wait()}; out of memory?): "
        "run the same command again; the preparation resumes where it stopped."
      ) from None
    finally:
      self._idle.put((process, b""))  # even if dead: the next thread must get the error too
    if error is not None:
      raise UserError(error)
    return result


def work() -> None:
  """A worker's loop. Pickled: stdin has a job, then its chunks; stdout (result, error) for each."""
  results = sys.stdout.buffer
  try:
    job = pickle.load(sys.stdin.buffer)
    while True:
      chunk = pickle.load(sys.stdin.buffer)
      try:
        result = job(chunk), None
      except UserError as error:
        result = None, str(error)
      pickle.dump(result, results, protocol=5)
      results.flush()
  except (EOFError, BrokenPipeError, pickle.UnpicklingError):
    # The parent has ended, cleanly or not: there is nothing to flush to.
    sys.stdout = None
