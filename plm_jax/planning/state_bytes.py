"""Bytes on each device of everything that is there between two steps, exactly, from shapes."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax

from plm_jax.models.parameters import named
from plm_jax.train.state import TrainState, trainable


class Tensor(NamedTuple):
  """A parameter. split: the mesh axis of each dimension, "" for none. size: bytes on a device."""

  path: str
  shape: tuple[int, ...]
  dtype: str
  split: tuple[str, ...]
  size: int


class StateBytes(NamedTuple):
  """Bytes on a device. gradients: of the parameters that are trained, while a step runs. rest:
  metrics, keys, and the state that a recurrent model carries."""

  parameters: int
  moments: int
  gradients: int
  rest: int

  @property
  def stored(self) -> int:
    """Bytes between two steps."""
    return self.parameters + self.moments + self.rest


def state_bytes(state: TrainState, frozen: tuple[str, ...] = ()) -> StateBytes:
  """The bytes of shapes with shardings. frozen: path patterns of parameters without gradients."""
  parameters, moments = on_device(state.params), on_device(state.opt_state)
  gradients = on_device(trainable(state.params, frozen))
  return StateBytes(parameters, moments, gradients, on_device(state) - parameters - moments)


def on_device(tree: Any) -> int:
  """Bytes on one device of a tree of shapes with shardings."""
  return sum(map(bytes_of, jax.tree.leaves(tree)))


def bytes_of(leaf: Any) -> int:
  return prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def tensors(state: TrainState) -> list[Tensor]:
  """Every parameter, in the order of the tree."""
  return [
    Tensor(path, leaf.shape, str(leaf.dtype), axes_of(leaf), bytes_of(leaf))
    for path, leaf in named(state.params)
  ]


def axes_of(leaf: Any) -> tuple[str, ...]:
  """The mesh axis of each dimension, "" for none."""
  spec = tuple(leaf.sharding.spec)
  return tuple(axis or "" for axis in spec) + ("",) * (len(leaf.shape) - len(spec))
