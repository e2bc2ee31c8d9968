"""Texts to ids on all cores: whole chunks go to worker processes and come back in order.

A chunk's ids do not depend on who encoded it, so the result is the same for any number of workers.
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
  """Ids [N] of some texts, one after the other, and the length [S] of each."""

  ids: np.ndarray
  lengths: np.ndarray


def encoded(
  chunks: Iterable[Chunk], texts: Callable[[Chunk], list[str]], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[Chunk, Encoding]]:
  """Every chunk with the encoding of `texts(chunk)`, in order.

  At most `workers` + 2 chunks are held at a time. With fewer than two workers all is done in this
  process. Errors: `UserError` when a worker was killed.
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
  """Processes that encode; `encode` is called from as many threads."""

  def __init__(self, tokenizer: Tokenizer, count: int):
    self._greeting = pickle.dumps(tokenizer)
    # One thread each: the processes are the parallelism.
    one = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    self._all = [processes.start(__name__, "work", **one) for _ in range(count)]
    self._idle: SimpleQueue = SimpleQueue()
    for process in self._all:
      self._idle.put((process, self._greeting))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self._all:
      process.kill()  # it holds nothing; a thread that waits for it wakes up
      process.wait()
      process.stdout.close()
      with suppress(BrokenPipeError):  # what it did not read any more
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
        f"A process that encoded the text was ended (exit code {process.wait()}; out of memory?): "
        "give the same command again, the preparation goes on where it was."
      ) from None
    finally:
      self._idle.put((process, b""))  # a dead one too: whoever waits for it must hear of it
    return Encoding(*result)


def work() -> None:
  """A worker: a tokenizer and then lists of texts on stdin, (ids, lengths) on stdout, pickled."""
  results = sys.stdout.buffer
  try:
    tokenizer = pickle.load(sys.stdin.buffer)
    while True:
      texts = pickle.load(sys.stdin.buffer)
      ids, lengths = tokenizer.encode_flat(texts)
      pickle.dump((ids, lengths.astype(np.int32)), results, protocol=5)
      results.flush()
  except (EOFError, BrokenPipeError, pickle.UnpicklingError):
    # The parent has ended, cleanly or not. Nothing is left to flush to.
    sys.stdout = None
