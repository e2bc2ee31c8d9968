"""A profile of a few steps, for TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

WARM, STEPS = 5, 3  # steps before the trace, and in it


class Trace:
  """Writes a `jax.profiler` trace of `STEPS` steps to `folder`, `WARM` steps after the start; None
  writes nothing."""

  def __init__(self, folder: Path | None, start: int):
    self._folder, self._first = folder, start + WARM
    self._running = False

  def stepped(self, step: int, state) -> None:
    """After a step is dispatched. The trace begins and ends with finished steps."""
    if self._folder is None or not self._first <= step <= self._first + STEPS:
      return
    if step == self._first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif step == self._first + STEPS:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
