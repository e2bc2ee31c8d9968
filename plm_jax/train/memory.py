"""The compiled train step, in as many micro-batches as the device's memory needs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.sharding import AnyMesh
from plm_jax.train.step import step_options, together, train_step


class CompiledStep(NamedTuple):
  """step: with the run's schedule bound to it. memory: bytes per device. parts: micro-batches."""

  step: functools.partial
  memory: int
  parts: int


def compile_step(experiment: Experiment, abstract, rows, mesh) -> CompiledStep:
  """The compiled train step.

  With `compute.micro_batches=0` there are more parts until the step fits: its bytes are within the
  limit that the device reports, and the compiler does not refuse it, as it does on a TPU. The next
  number of parts is at least twice the last, and as many times as the step is too large, since each
  compilation of a large model takes a minute. Errors:
  `DoesNotFit` if it does not fit in the given number of parts, or with one row per device and part.
  """
  parts = experiment.compute.micro_batches or 1
  constants = experiment.optim.constants(experiment.steps)
  limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
  while True:
    compiled, memory, reason, times = None, 0, "", 1.0
    try:
      compiled = compiled_in(parts, experiment, constants, abstract, rows, mesh)
      memory = step_memory(compiled)
      if limit and memory > limit:
        reason = f"it needs {memory / 2**30:.2f} GiB of {limit / 2**30:.2f}"
        times = memory / limit
    except jax.errors.JaxRuntimeError as error:
      reason = out_of_memory(error)
      if not reason:
        raise
      times = times_too_large(reason)
    if compiled is not None and (not reason or experiment.compute.micro_batches):
      return CompiledStep(functools.partial(compiled, constants=constants), memory, parts)
    # A tenth less than that, as XLA orders and fuses smaller parts in other ways.
    least = parts * max(2, 0.9 * times)
    possible = numbers_of_parts(experiment, mesh)
    more = [p for p in possible if p >= min(least, possible[-1]) and p > parts]
    if experiment.compute.micro_batches or not more:
      rows_per_device = experiment.global_batch // (mesh.shape["data"] * mesh.shape["fsdp"])
      raise _does_not_fit(experiment, parts, rows_per_device // parts, reason)
    parts = more[0]


def numbers_of_parts(experiment: Experiment, mesh: AnyMesh) -> list[int]:
  """The numbers of micro-batches that give every device equal rows and split no group of rows."""
  rows_per_device = experiment.global_batch // (mesh.shape["data"] * mesh.shape["fsdp"])
  group = together(experiment.objectives)
  return [
    parts for parts in range(1, rows_per_device + 1)
    if rows_per_device % parts == 0 and experiment.global_batch % (parts * group) == 0
  ]  # fmt: skip


def compiled_in(parts: int, experiment: Experiment, constants, abstract, rows, mesh):
  """The train step compiled with this number of micro-batches."""
  function = functools.partial(
    train_step,
    objectives=experiment.objectives,
    compute=dataclasses.replace(experiment.compute, micro_batches=parts),
    optim=experiment.optim,
    frozen=experiment.frozen,
    adversarial=experiment.tuning.adversarial,
    sparse=experiment.tuning.sparse,
    updates=getattr(experiment.optim, "updates", 0),
  )
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  step = jax.jit(
    function, donate_argnums=0, out_shardings=shardings, compiler_options=step_options()
  )
  with jax.set_mesh(mesh):
    return step.lower(abstract, rows, constants=constants).compile()


def out_of_memory(error: Exception) -> str:
  """The compiler's sentence on too little memory; "" for any other error."""
  match = re.search(r"RESOURCE_EXHAUSTED:\s*(.+?)(?:\.\s|\.?$|\n)", str(error))
  return match[1] if match else ""


def times_too_large(reason: str) -> float:
  """How many times the memory of a TPU a step needs, by the compiler's sentence; 1 if it does not
  say."""
  size = r"([\d.]+)([KMG])"
  found = re.search(rf"\({size}\) exceeds available HBM \({size}\)|Used {size} of {size}", reason)
  if found is None:
    return 1.0
  needed, unit, there, of = (x for x in found.groups() if x)
  return float(needed) / float(there) * 1024.0 ** ("KMG".index(unit) - "KMG".index(of))


class DoesNotFit(UserError):
  """A step needs more memory than its devices have."""


def _does_not_fit(experiment: Experiment, parts: int, rows: int, reason: str) -> DoesNotFit:
  one = rows == 1
  size = "even one row" if one else f"a micro-batch of {rows} rows"
  advice = (
    "split the model over more devices (mesh.fsdp, mesh.tensor), set compute.remat=true or lower "
    "data.length"
    if one
    else f"set compute.micro_batches=0, or above {parts}"
  )
  return DoesNotFit(
    f"{size} of data.length={experiment.data.length} per device does not fit in its memory "
    f"({reason}); {advice}"
  )


def check_fits(needed: int, mesh) -> None:
  """A `UserError` if a step on a CPU needs more bytes than the machine has. needed: per device;
  simulated devices share the memory."""
  if jax.default_backend() != "cpu":
    return
  needed, there = needed * len(mesh.local_devices), machine_memory()
  if needed > there:
    raise UserError(
      f"a step needs {needed / 2**30:,.1f} GiB and this machine has {there / 2**30:,.1f} GiB; make "
      "the model, global_batch or data.length smaller, or set compute.micro_batches"
    )


def machine_memory() -> float:
  """Bytes of this machine's memory, or of the container's."""
  total = math.inf
  with contextlib.suppress(OSError, ValueError):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  with contextlib.suppress(OSError, ValueError):  # "max" without a limit
    total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
  return total


def step_memory(compiled) -> int:
  """Bytes per device: arguments, results that do not reuse them, and temporaries."""
  m = compiled.memory_analysis()
  reused = m.alias_size_in_bytes
  return m.argument_size_in_bytes + m.output_size_in_bytes - reused + m.temp_size_in_bytes


def give_back_memory() -> None:
  """Returns freed memory to the system, which glibc else keeps: several gigabytes after a few runs
  in one process."""
  with contextlib.suppress(AttributeError, OSError):  # another C library
    ctypes.CDLL(None).malloc_trim(0)
