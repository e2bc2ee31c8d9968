"""Encodes texts on all cores: worker processes take whole chunks; results keep their order.

A chunk's ids do not depend on the worker, so the result is the same for any number of workers.
"""

import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np

from plm_jax.data import processes
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError

Chunk = TypeVar("Chunk")


class Encoding(NamedTuple):
  """The concatenated ids [N] of some texts, and the length [S] of each text."""

  ids: np.ndarray
  lengths: np.ndarray


def encoded(
  chunks: Iterable[Chunk], texts: Callable[[Chunk], list[str]], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Chunk, Encoding]]:
  """Yields every chunk with the encoding of `texts(chunk)`, in order.

  At most `workers` + 2 chunks are held at a time. With fewer than two workers this process encodes.
  Errors: `UserError` when a worker was killed.
  """
  if workers < 2:
    for chunk in chunks:
      yield chunk, Encoding(*tokenizer.encode_flat(texts(chunk)))
    return
  with ExitStack() as stack:
    threads = ThreadPoolExecutor(workers)
    stack.callback(threads.shutdown, cancel_futures=True)
    pool = stack.enter_context(_Workers(tokenizer, workers))
    waiting: deque = deque()
    for chunk in chunks:
      waiting.append((chunk, threads.submit(pool.encode, texts(chunk))))
      if len(waiting) > workers + 1:
        chunk, result = waiting.popleft()
        yield chunk, result.result()
    while waiting:
      chunk, result = waiting.popleft()
      yield chunk, result.result()


class _Workers:
  """Worker processes; as many threads call `encode`."""

  def __init__(self, tokenizer: Tokenizer, count: int):
    self._greeting = pickle.dumps(tokenizer)
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

  def encode(self, texts: list[str]) -> Encoding:
    process, greeting = self._idle.get()
    try:
      # The worker reads all of it before it writes: neither side can wait for the other.
      process.stdin.write(greeting + pickle.dumps(texts))
      process.stdin.flush()
      result = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
      raise UserError(
        f"A process that encoded the text was killed (exit code {process.wait()}; out of memory?): "
        "run the same command again; the preparation resumes where it stopped."
      ) from None
    finally:
      self._idle.put((process, b""))  # even if dead: the next thread must get the error too
    return Encoding(*result)


def work() -> None:
  """A worker's loop. Pickled: stdin has a tokenizer, then lists of texts; stdout (ids, lengths)."""
  results = sys.stdout.buffer
  try:
    tokenizer = pickle.load(sys.stdin.buffer)
    while True:
      texts = pickle.load(sys.stdin.buffer)
      ids, lengths = tokenizer.encode_flat(texts)
      pickle.dump((ids, lengths.astype(np.int32)), results, protocol=5)
      results.flush()
  except (EOFError, BrokenPipeError, pickle.UnpicklingError):
    # The parent has ended, cleanly or not: there is nothing to flush to.
    sys.stdout = None
