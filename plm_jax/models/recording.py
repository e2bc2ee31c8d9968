"""Recording of the states and attention weights of every layer in one forward pass.

    with recording() as seen:
      last = model(batch, dataclasses.replace(compute, layers="unroll", remat=False))
    seen.inputs       # the embeddings, then the input of every further layer
    seen.attention    # the weights of every attention, in the order of computation

The layers report to the active recording, so that models need no flags. Layers must be unrolled: a
scan computes all of them by one trace.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax

from plm_jax.models.compute import Compute


@dataclasses.dataclass
class Recording:
  """inputs: `[B, T, D]` of every layer. attention: float32 `[B, N, T, S]`; a layer with
  cross-attention reports that to itself first."""

  inputs: list[jax.Array] = dataclasses.field(default_factory=list)
  attention: list[jax.Array] = dataclasses.field(default_factory=list)

  def add_input(self, x_BTD: jax.Array) -> None:
    """Adds a layer's input. A layer that is itself a stack has the input of its first layer."""
    if not self.inputs or self.inputs[-1] is not x_BTD:
      self.inputs.append(x_BTD)


_ACTIVE: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("active", default=None)


def active() -> Recording | None:
  """The recording that layers report to; None outside of `recording`."""
  return _ACTIVE.get()


def record_input(x_BTD: jax.Array) -> None:
  """Adds a layer's input to the active recording, if there is one."""
  if seen := active():
    seen.add_input(x_BTD)


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
  """Makes a recording active."""
  seen = Recording()
  token = _ACTIVE.set(seen)
  try:
    yield seen
  finally:
    _ACTIVE.reset(token)


def all_states(model, batch: dict, compute: Compute) -> tuple[list[jax.Array], list[jax.Array]]:
  """The states `[B, T, D]` of a text (the embeddings, then after every layer; the last ones after
  the last norm), and the attention weights of every layer; of an encoder-decoder the encoder's."""
  forward = getattr(model, "encode", model)
  with recording() as seen:
    last = forward(batch, unrolled(compute))
  return [*seen.inputs, last], seen.attention


def unrolled(compute: Compute) -> Compute:
  """The settings with which a forward pass can be recorded."""
  return dataclasses.replace(compute, layers="unroll", remat=False)
