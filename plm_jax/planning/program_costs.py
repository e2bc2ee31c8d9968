"""What a compiled step computes, moves and sends: its kernels, with loops multiplied out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from plm_jax.planning.collectives import KINDS, Collectives
from plm_jax.planning.devices import Device
from plm_jax.planning.program_text import Array, Computation, Instruction, Program, runs_of_loop

# No kernels of their own: places, loops, and the second half of asynchronous operations.
FREE = {
  *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "after-all", "call"),
  *("conditional", "partition-id", "replica-id", "iota", "opt-barrier", "async-start", "domain"),
}
ALLOCATION = 'custom_call_target="AllocateBuffer"'  # the place of a loop's results; nothing moves
CUSTOM = ('"tpu_custom_call"', "gpu.triton")  # targets of kernels in Pallas
SLICES = {"dynamic-slice", "gather", "slice"}
ON_DEMAND = {"slice", "add", "subtract", "multiply", "convert"}  # in a fusion: what is read of them


@dataclass
class ProgramCosts:
  """Of one device and step. operations: of matrix products. silent: runs of kernels that do not say
  how many they have. traffic: bytes of main memory. seconds: the sum over kernels of the longer of
  products at the peak and bytes at the bandwidth."""

  operations: float = 0.0
  silent: float = 0.0
  traffic: float = 0.0
  seconds: float = 0.0
  collectives: Collectives = field(default_factory=Collectives)


def costs_of(program: Program, device: Device, devices: int) -> ProgramCosts:
  """The costs of a whole program that runs on `devices`."""
  costs = ProgramCosts()
  for runs, x, computation in kernels(program):
    if (kind := x.operation.removesuffix("-start")) in KINDS:
      costs.collectives.add(kind, runs, _sent(kind, x, computation), group_size(x, devices))
      continue
    products, moved = operations(program, x, computation), traffic(program, x, computation)
    costs.operations += runs * products
    costs.silent += runs * (not products and any(target in x.rest for target in CUSTOM))
    costs.traffic += runs * moved
    if device.flops:
      costs.seconds += runs * max(products / device.flops, moved / device.bandwidth)
  return costs


def kernels(
  program: Program, name: str = "", runs: float = 1
) -> Iterator[tuple[float, Instruction, Computation]]:
  """How often a kernel or a collective runs, it, and its computation. name: the computation that
  runs `runs` times, by default the whole program once."""
  computation = program.computations[name or program.entry]
  for x in computation.order:
    if x.operation == "while":
      yield from kernels(program, x.called("body")[0], runs * runs_of_loop(x, program))
    elif x.operation in ("call", "conditional", "async-start"):
      for inner in x.called("calls", "to_apply", "branch_computations"):
        if inner in program.computations:
          yield from kernels(program, inner, runs)
    if not (x.operation in FREE or x.operation.endswith("-done") or ALLOCATION in x.rest):
      yield runs, x, computation


def _sent(kind: str, x: Instruction, computation: Computation) -> float:
  """Bytes of the whole array: the operands, and of an all-gather the result."""
  inputs = sum(a.size for a in _inputs(x, computation))
  if kind != "all-gather":
    return inputs
  result = sum(a.size for a in x.arrays)
  return result - inputs if x.operation.endswith("-start") else result  # a tuple of both


def group_size(x: Instruction, devices: int) -> int:
  """The number of devices that a collective joins, in any of the three forms of its groups."""
  if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", x.rest):
    sizes = dict(axis.split("=") for axis in match[1].split(","))
    return prod(int(sizes[axis]) for axis in match[2].split(","))
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", x.rest):
    return int(match[2])
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", x.rest):
    return match[1].count(",") + 1
  return devices


def _inputs(x: Instruction, computation: Computation) -> list[Array]:
  known = (computation.by_name[name] for name in x.operands if name in computation.by_name)
  return [a for operand in known for a in operand.arrays]


# --- products ------------------------------------------------------------------------------------


def operations(program: Program, x: Instruction, computation: Computation) -> float:
  """Operations of the products of a kernel. A custom kernel's are those it says, or else 0: ours
  for TPUs say them, those for GPUs do not."""
  if x.operation == "dot":
    left = computation.by_name[x.operands[0]].arrays[0]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
    sizes = [left.shape[int(i)] for i in axes[1].split(",") if i] if axes else []
    return 2.0 * prod(x.arrays[0].shape) * prod(sizes)
  if x.operation == "convolution":
    return _convolution(x, *(computation.by_name[name].arrays[0].shape for name in x.operands))
  if x.operation == "custom-call":
    said = re.search(r'"cost_estimate":\{"flops":"(\d+)"', x.rest)
    return float(said[1]) if said else 0.0
  if x.operation not in ("fusion", "call"):
    return 0.0
  inner = (program.computations[name] for name in x.called("calls", "to_apply"))
  return sum(operations(program, y, inside) for inside in inner for y in inside.order)


def _convolution(x: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
  """TPUs have products as convolutions, with batch dimensions as spatial ones, whose window meets
  one element each: only pairs of a result and an element within the input count."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.rest)
  if labels is None:
    return 0.0
  of_left, of_right, of_result = labels.groups()
  result = x.arrays[0].shape
  total = 2.0 * result[of_result.index("b")] * result[of_result.index("f")]
  total *= right[of_right.index("i")]
  window = re.search(r"window=\{([^}]*)\}", x.rest)
  settings = dict(part.split("=") for part in window[1].split()) if window else {}
  sizes = settings.get("size", "").split("x") if "size" in settings else []
  for axis, size in enumerate(map(int, sizes)):
    low = int(_entry(settings, "pad", axis, "0_0").split("_")[0])
    stride, dilated, spread = (
      int(_entry(settings, name, axis, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    last = (left[of_left.index(str(axis))] - 1) * dilated
    results = result[of_result.index(str(axis))]
    total *= _pairs(results, size, stride, low, last, dilated, spread)
  return total


def _entry(settings: dict[str, str], name: str, axis: int, default: str) -> str:
  return settings[name].split("x")[axis] if name in settings else default


def _pairs(results: int, size: int, stride: int, low: int, last: int, dilated: int, spread: int):
  """The pairs of a result and a place of the window that lie within the input."""
  if dilated == spread == 1:
    starts = (r * stride - low for r in range(results))
    return sum(max(0, min(size - 1, last - s) - max(0, -s) + 1) for s in starts)
  return sum(
    0 <= (place := r * stride - low + k * spread) <= last and place % dilated == 0
    for r in range(results)
    for k in range(size)
  )


# --- traffic -------------------------------------------------------------------------------------


def traffic(program: Program, x: Instruction, computation: Computation) -> float:
  """Bytes that a kernel reads and writes. Of an array that is only sliced, the slices count."""
  if x.operation == "fusion":
    inside = program.computations[x.called("calls")[0]]
    return _read(program, x, computation, inside) + _written(x, inside)
  if x.operation in SLICES:
    return 2 * sum(a.traffic for a in x.arrays)
  inputs = _inputs(x, computation)
  if x.operation == "dynamic-update-slice":
    return 2 * inputs[1].traffic
  if x.operation in ("copy-start", "slice-start"):  # the result, the source, a context
    near = any(a.near for a in x.arrays[:2])
    return min(a.size for a in x.arrays[:2]) * (1 if near else 2)
  return sum(a.traffic for a in (*x.arrays, *inputs))


def _read(program: Program, x: Instruction, computation: Computation, inside: Computation) -> float:
  total, parameters = 0.0, inside.parameters
  for place, name in enumerate(x.operands):
    operand = computation.by_name.get(name)
    whole = sum(a.traffic for a in operand.arrays) if operand else 0
    readers = _readers(program, inside, parameters[place].name) if place in parameters else []
    if whole and readers and all(_slices(y, at) for y, at in readers):
      sliced = sum(a.size for y, _ in readers if y.operation in SLICES for a in y.arrays)
      whole = min(whole, sliced)
    total += whole
  return total


def _slices(y: Instruction, place: int) -> bool:
  return place == 0 and y.operation in (*SLICES, "dynamic-update-slice")


def _readers(program: Program, inside: Computation, name: str) -> list[tuple[Instruction, int]]:
  """Those that read a parameter of a fusion in the end: through bitcasts and inner fusions, and
  through `ON_DEMAND` operations of whose results only slices are read."""
  readers = []
  for y, place in inside.readers.get(name, ()):
    if y.operation in ("bitcast", "reshape"):
      readers += _readers(program, inside, y.name)
    elif y.operation in ON_DEMAND and (next_ones := _readers(program, inside, y.name)):
      only_slices = all(z.operation in SLICES and _slices(z, at) for z, at in next_ones)
      readers += next_ones if only_slices else [(y, place)]
    elif y.operation == "fusion":
      inner = program.computations[y.called("calls")[0]]
      readers += _readers(program, inner, inner.parameters[place].name)
    else:
      readers.append((y, place))
  return readers


def _written(x: Instruction, inside: Computation) -> float:
  """Bytes of the results; of an array that is updated in place, those of the update."""
  root = inside.root
  results = root.operands if root.operation == "tuple" else [root.name]
  if len(results) != len(x.arrays):
    return sum(a.traffic for a in x.arrays)
  total = 0.0
  for name, array in zip(results, x.arrays, strict=True):
    y = inside.by_name.get(name)
    while y and y.operation in ("bitcast", "reshape", "copy") and y.operands[0] in inside.by_name:
      y = inside.by_name[y.operands[0]]
    update = y and y.operation == "dynamic-update-slice" and inside.by_name.get(y.operands[1])
    total += update.arrays[0].size if update and not array.near else array.traffic
  return total
