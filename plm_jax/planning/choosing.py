"""The mesh and the micro-batches of a run, by arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.planning.arithmetic import kept_bytes, split_sizes, temporaries
from plm_jax.planning.devices import Target
from plm_jax.planning.state_bytes import StateBytes, state_bytes
from plm_jax.sharding import AnyMesh, MeshShape, kept_whole
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import check_batch_divides, placed_on, planned_state
from plm_jax.train.memory import numbers_of_parts
from plm_jax.train.state import TrainState

GB = 1e9


class Traces:
  """What is the same on every mesh, and takes seconds to trace: the shapes of the state; and kept
  bytes by the rows, and by the sizes that are split and by how much."""

  def __init__(self, experiment: Experiment):
    self.shapes = planned_state(experiment, example_batch(experiment))[1]
    self.kept: dict[tuple, int] = {}


class Placement:
  """A resolved experiment on a mesh over devices that need not be there."""

  def __init__(self, experiment: Experiment, target: Target, traces: Traces | None = None):
    self.experiment, self.target = experiment, target
    self.traces = traces or Traces(experiment)
    self.mesh: AnyMesh = experiment.mesh.abstract(target.count)
    check_batch_divides(experiment, self.mesh)
    self.rows = experiment.global_batch // (self.mesh.shape["data"] * self.mesh.shape["fsdp"])

  @cached_property
  def state(self) -> TrainState:
    return placed_on(self.mesh, self.traces.shapes)

  @cached_property
  def stored(self) -> StateBytes:
    return state_bytes(self.state, self.experiment.frozen)

  @cached_property
  def parts(self) -> list[int]:
    """The numbers of micro-batches that divide the rows."""
    return numbers_of_parts(self.experiment, self.mesh)

  def kept(self, parts: int) -> int:
    """Bytes that a micro-batch keeps for its backward pass."""
    rows, split, tensor = self.rows // parts, split_sizes(self.state), self.mesh.shape["tensor"]
    key, kept = (rows, tensor, *sorted(split)), self.traces.kept
    if key not in kept:
      kept[key] = kept_bytes(self.experiment, rows, split, tensor)
    return kept[key]

  def needed(self, parts: int) -> int:
    """Bytes per device of a step in so many micro-batches."""
    return self.stored.stored + temporaries(self.stored, self.kept(parts), parts)

  def fits(self, parts: int) -> bool:
    return self.needed(parts) <= self.target.device.memory

  @cached_property
  def fewest_parts(self) -> int | None:
    """The number of the largest micro-batches that fit; None if even the smallest do not."""
    return next((parts for parts in self.parts if self.fits(parts)), None)

  @property
  def text(self) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())


def placed(experiment: Experiment, target: Target, is_given: bool) -> tuple[Placement, str]:
  """The experiment on its own mesh (`is_given`), or on the first that fits; and why that one."""
  if is_given:
    placement = Placement(experiment, target)
    kept_whole(placement.state.params, placement.mesh)  # it refuses an axis that splits nothing
    return placement, "as given"
  refused: list[Placement] = []
  traces = Traces(experiment)
  for shape in shapes(target.count):
    try:
      placement = Placement(dataclasses.replace(experiment, mesh=shape), target, traces)
      kept_whole(placement.state.params, placement.mesh)
    except UserError:  # the rows do not divide, or an axis splits nothing
      continue
    if placement.fits(placement.parts[-1]):
      return placement, _reason(placement, refused)
    refused.append(placement)
  if not refused:
    raise UserError(
      f"no mesh over the {target.count} devices of {target.name} divides "
      f"global_batch={experiment.global_batch}; make it a multiple of {target.count}"
    )
  best = min(refused, key=lambda p: p.needed(p.parts[-1]))
  return best, f"no mesh fits: this one needs least, {best.needed(best.parts[-1]) / GB:.1f} GB"


def shapes(count: int) -> Iterator[MeshShape]:
  """All rows on `data` first, then ever more of them on `fsdp`; `tensor` last."""
  for tensor in (t for t in (1, 2, 4, 8) if count % t == 0):
    rows = count // tensor
    for fsdp in (f for f in range(1, rows + 1) if rows % f == 0):
      yield MeshShape(data=rows // fsdp, fsdp=fsdp, tensor=tensor)


def _reason(placement: Placement, refused: list[Placement]) -> str:
  mesh, memory = placement.mesh.shape, placement.target.device.memory
  if not refused:
    rows = "" if mesh["tensor"] == 1 else "; tensor, since the rows are fewer than the devices"
    return f"data first: state, gradients and a smallest micro-batch fit on each device{rows}"
  last = refused[-1]
  axis, needed = "tensor" if mesh["tensor"] > 1 else "fsdp", last.needed(last.parts[-1])
  return f"{axis}, since {last.text} needs {needed / GB:.1f} GB of {memory / GB:.1f}"
