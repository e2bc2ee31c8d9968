"""The thread of a model: it computes waiting requests in batches, while the event loop only waits.

Requests of one kind and of similar length are computed together, as many as a compiled size has: of
7 that wait, 4, then 2, then 1, so that no row is padding. The oldest request decides what is next.
An error of a batch is found by computing its requests one by one, so that it reaches only the
request that caused it. Generated texts grow together, a token at a time, between the batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from plm_jax.decode.continuous import ContinuousBatch, Text
from plm_jax.errors import UserError
from plm_jax.serving.limits import Limits, Refused
from plm_jax.serving.metrics import Metrics

LOG = logging.getLogger("plm_jax.serving")


class Kind(Protocol):
  """A use of a model. name: the route."""

  name: str

  def run(self, items: list[Any]) -> list[Any]:
    """The results of prepared items, in order, computed together."""


@dataclasses.dataclass(eq=False)
class Job:
  """One text of a request. width: its tokens in the shape that is computed."""

  kind: Kind
  item: Any
  width: int
  future: asyncio.Future
  arrived: float


@dataclasses.dataclass(eq=False)
class GrowingText:
  """A text that is generated. grown: called by the worker's thread after each token and at the
  end, or with the error. is_wanted: False after its client has left."""

  text: Text
  grown: Callable[[BaseException | None], None]
  is_wanted: bool = True


class Worker(threading.Thread):
  """The thread of one model. batch: of texts that are generated; None if the model writes none."""

  def __init__(self, name: str, limits: Limits, metrics: Metrics, batch: ContinuousBatch | None):
    super().__init__(name=f"model {name}", daemon=True)
    self._limits, self._metrics, self._model = limits, metrics, name
    self._jobs: dict[tuple[str, int], deque[Job]] = {}
    self._prompts: deque[GrowingText] = deque()
    self._growing: list[GrowingText] = []
    self._batch = batch
    self._waiting = 0
    self._changed = threading.Condition()
    self._closed = False

  # --- for the event loop

  def submit(self, kind: Kind, items: Sequence[tuple[Any, int]]) -> list[asyncio.Future]:
    """A future for each (item, width). Errors: `Refused` if the queue is full."""
    loop, now = asyncio.get_running_loop(), time.monotonic()
    jobs = [Job(kind, item, width, loop.create_future(), now) for item, width in items]
    with self._changed:
      self._enter(len(jobs))
      for job in jobs:
        self._jobs.setdefault((kind.name, job.width), deque()).append(job)
      self._changed.notify()
    return [job.future for job in jobs]

  def write(self, texts: Sequence[GrowingText]) -> None:
    """Errors: `Refused` if the queue is full."""
    with self._changed:
      self._enter(len(texts))
      self._prompts.extend(texts)
      self._changed.notify()

  def _enter(self, count: int) -> None:
    if self._waiting + count > self._limits.queue:
      raise Refused(
        429,
        f"{self._waiting} texts wait for {self._model}, and its queue has {self._limits.queue} "
        "places; try again in a second",
      )
    self._left(-count)

  def _left(self, count: int) -> None:
    self._waiting -= count
    self._metrics.queue.labels(self._model).set(self._waiting)

  def close(self, seconds: float) -> None:
    """Ends the thread after what is waiting, or leaves it to the end of the process."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self.join(seconds)

  # --- the thread

  def run(self) -> None:
    while self._wait():
      try:
        if jobs := self._next_jobs():
          self._compute(jobs)
        if self._prompts or self._growing:
          self._write()
      except Exception as error:  # a bug of ours costs its requests, not the thread
        LOG.error("a batch was lost", exc_info=error)

  def _wait(self) -> bool:
    """Waits for work; False at the end."""
    with self._changed:
      self._changed.wait_for(lambda: self._waiting or self._growing or self._closed)
      return bool(self._waiting or self._growing or not self._closed)

  def _next_jobs(self) -> list[Job]:
    """The jobs to compute together; none if all that is waiting are prompts."""
    with self._changed:
      self._drop_cancelled()
      if not self._jobs:
        return []
      key = min(self._jobs, key=lambda key: self._jobs[key][0].arrived)
      jobs = self._jobs[key]
      busy = self._prompts or self._growing
      until = jobs[0].arrived + self._limits.wait
      while not busy and len(jobs) < self._limits.batch and (rest := until - time.monotonic()) > 0:
        self._changed.wait(rest)
      most = min(len(jobs), self._limits.batch)
      chosen = [jobs.popleft() for _ in range(1 << most.bit_length() - 1)]
      self._left(len(chosen))
      if not jobs:
        del self._jobs[key]
      return chosen

  def _drop_cancelled(self) -> None:
    for key, jobs in list(self._jobs.items()):
      wanted = deque(job for job in jobs if not job.future.cancelled())
      self._left(len(jobs) - len(wanted))
      if wanted:
        self._jobs[key] = wanted
      else:
        del self._jobs[key]

  def _compute(self, jobs: list[Job]) -> None:
    kind = jobs[0].kind
    self._metrics.batch.labels(self._model, kind.name).observe(len(jobs))
    try:
      results = kind.run([job.item for job in jobs])
    except Exception as error:
      if len(jobs) > 1:
        for job in jobs:
          self._compute([job])
        return
      results = [_for_client(error)]
    with contextlib.suppress(RuntimeError):  # the event loop has ended, and its clients
      jobs[0].future.get_loop().call_soon_threadsafe(_deliver, jobs, results)

  def _write(self) -> None:
    """Starts texts while there is a slot, and adds a token to all."""
    assert self._batch is not None
    for growing in self._growing:
      if not growing.is_wanted:
        self._batch.stop(growing.text)
    self._growing = [growing for growing in self._growing if not growing.text.done]
    while not self._batch.is_full and (growing := self._next_prompt()):
      try:
        self._batch.start(growing.text)
      except Exception as error:
        growing.grown(_for_client(error))
        continue
      self._tell([growing])
    if self._growing:
      self._metrics.batch.labels(self._model, "generate").observe(len(self._growing))
      try:
        self._batch.step()
      except Exception as error:
        failed, self._growing = self._growing, []
        self._batch.clear()
        for growing in failed:
          growing.grown(_for_client(error))
        return
      self._tell(self._growing)

  def _next_prompt(self) -> GrowingText | None:
    with self._changed:
      while self._prompts:
        self._left(1)
        if (growing := self._prompts.popleft()).is_wanted:
          return growing
    return None

  def _tell(self, grown: list[GrowingText]) -> None:
    """Tells the clients of a new token."""
    self._metrics.tokens.labels(self._model).inc(len(grown))
    kept = [growing for growing in self._growing if growing not in grown]
    self._growing = kept + [growing for growing in grown if not growing.text.done]
    for growing in grown:
      growing.grown(None)


def _deliver(jobs: list[Job], results: list[Any]) -> None:
  """Runs in the event loop, once for a batch."""
  for job, result in zip(jobs, results, strict=True):
    if job.future.done():  # its client has left
      continue
    if isinstance(result, BaseException):
      job.future.set_exception(result)
    else:
      job.future.set_result(result)


def _for_client(error: Exception) -> Refused:
  """The error as an answer. A bug of ours is logged, with its traceback."""
  if isinstance(error, Refused):
    return error
  if isinstance(error, UserError):
    return Refused(422, str(error))
  LOG.error("a request failed", exc_info=error)
  return Refused(500, "the server failed to answer this request; its log has the reason")
