"""The plan of a run: whether it fits on some devices, and how fast it could be."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.planning import arithmetic
from plm_jax.planning.ahead import Compiled, NoCompiler, compiled, compiler_of
from plm_jax.planning.choosing import Placement, placed
from plm_jax.planning.collectives import Collectives
from plm_jax.planning.devices import Device, Target, pretended
from plm_jax.planning.program_costs import ProgramCosts
from plm_jax.planning.state_bytes import Tensor, tensors
from plm_jax.planning.without_effect import without_effect
from plm_jax.sharding import MeshShape
from plm_jax.train.memory import DoesNotFit

By = Literal["auto", "compiler", "arithmetic"]
BY: tuple[By, ...] = ("auto", "compiler", "arithmetic")


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes per device. temporaries: the gradients among them; None if the compiler refused. total:
  of a step. limit: of the device. refusal: the compiler's sentence."""

  parameters: int
  moments: int
  gradients: int
  rest: int
  temporaries: int | None
  total: int | None
  limit: int
  fits: bool
  refusal: str = ""


@dataclasses.dataclass(frozen=True)
class Speed:
  """Of a step. operations: on all devices, by the formula; the others are of one device.
  compiler_operations: those in the compiled program. silent: runs of kernels whose operations are
  not in it. seconds: a bound that no step is faster than; bound: the resource that sets it. share:
  of the peak, at that bound. None without published numbers."""

  operations: float
  compiler_operations: float | None
  silent: float
  traffic: float
  collectives: Collectives
  seconds: float | None
  bound: str
  share: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """rows: of a device and step. micro_batches: the fewest that fit, or as set. largest: rows of a
  device in the largest micro-batch that fits, 0 if none does."""

  name: str
  target: Target
  by: str
  by_reason: str
  mesh: dict[str, int]
  mesh_reason: str
  global_batch: int
  length: int
  steps: int
  rows: int
  micro_batches: int
  largest: int
  parameters: int
  memory: Memory
  speed: Speed
  without_effect: list[str]
  tensors: list[Tensor]

  @property
  def device(self) -> Device:
    return self.target.device

  def document(self) -> dict[str, Any]:
    """All of it for machines."""
    fields = dataclasses.asdict(dataclasses.replace(self, tensors=[]))
    return fields | {"tensors": [t._asdict() for t in self.tensors]}


def plan(name: str, experiment: Experiment, target: Target, by: By = "auto") -> Plan:
  """The plan of a resolved experiment. Its mesh is chosen if it is the default. Errors: `UserError`
  for what cannot be trained, and for `compiler` without one."""
  if experiment.is_counted:
    raise UserError(
      f"{name} counts and takes no steps: it needs no accelerator, and there is nothing to plan"
    )
  experiment.check_trains()
  method, reason = _method(target, by)
  with pretended(target.device):
    placement, why = placed(experiment, target, experiment.mesh != MeshShape())
    result, refusal = None, ""
    if method == "compiler":
      try:
        result = compiled(placement.experiment, target)
      except DoesNotFit as error:
        refusal = str(error)
      except NoCompiler as error:
        if by == "compiler":
          raise UserError(f"--by=compiler: {error}") from None
        method, reason = "arithmetic", str(error)
    return _plan(name, placement, why, (method, reason), result, refusal)


def _method(target: Target, by: By) -> tuple[str, str]:
  if by == "arithmetic":
    return by, "as asked"
  try:
    return "compiler", compiler_of(target)
  except NoCompiler as error:
    if by == "compiler":
      raise UserError(f"--by=compiler: {error}") from None
    return "arithmetic", str(error)


def _plan(
  name: str,
  placement: Placement,
  why: str,
  by: tuple[str, str],
  result: Compiled | None,
  refusal: str,
) -> Plan:
  experiment = placement.experiment
  fewest = placement.fewest_parts
  if not experiment.compute.micro_batches and by[0] == "compiler":
    fewest = result.micro_batches if result else None
  parts = experiment.compute.micro_batches or fewest or placement.parts[-1]
  memory = memory_of(placement, parts, result, refusal)
  return Plan(
    name=name,
    target=placement.target,
    by=by[0],
    by_reason=by[1],
    mesh=dict(placement.mesh.shape),
    mesh_reason=why,
    global_batch=experiment.global_batch,
    length=experiment.data.length,
    steps=experiment.steps,
    rows=placement.rows,
    micro_batches=parts,
    largest=placement.rows // fewest if fewest else 0,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(placement.state.params)),
    memory=memory,
    speed=speed_of(placement, parts, result.costs if result else None),
    without_effect=without_effect(placement),
    tensors=tensors(placement.state),
  )


def memory_of(placement: Placement, parts: int, result: Compiled | None, refusal: str) -> Memory:
  """The memory of a step in `parts` micro-batches, as compiled or by arithmetic."""
  stored, limit = placement.stored, placement.target.device.memory
  state = {name: getattr(stored, name) for name in ("parameters", "moments", "gradients", "rest")}
  if refusal:
    return Memory(**state, temporaries=None, total=None, limit=limit, fits=False, refusal=refusal)
  if result:
    temporaries, total = result.temporaries, result.memory
  else:
    total = placement.needed(parts)
    temporaries = total - stored.stored
  return Memory(**state, temporaries=temporaries, total=total, limit=limit, fits=total <= limit)


def speed_of(placement: Placement, parts: int, costs: ProgramCosts | None) -> Speed:
  """The least time of a step: products at the peak, memory at its bandwidth, links at theirs, with
  perfect overlap. Compiled, products and memory are taken kernel by kernel, one after another."""
  experiment, state, device = placement.experiment, placement.state, placement.target.device
  operations, silent = arithmetic.model_operations(experiment), costs.silent if costs else 0.0
  if costs:
    traffic, sent, counted = costs.traffic, costs.collectives, costs.operations
  else:
    weights = arithmetic.weight_bytes(experiment, state)
    traffic = arithmetic.traffic(placement.stored, weights, placement.kept(parts), parts)
    sent, counted = arithmetic.collectives(experiment, state, placement.mesh, parts), None
  if not device.flops:
    return Speed(operations, counted, silent, traffic, sent, None, "", None)
  peak = device.flops * placement.target.count
  seconds = {"products": operations / peak, "links": sent.sent / device.link}
  if costs:
    seconds["kernels"] = costs.seconds
  else:
    seconds["memory"] = traffic / device.bandwidth
  bound = max(seconds, key=lambda name: seconds[name])
  least = seconds[bound]
  share = operations / peak / least
  return Speed(operations, counted, silent, traffic, sent, least, bound, share)
