"""Accelerators that a run can be planned for without having them: published numbers, names."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Literal

import jax

from plm_jax.errors import UserError
from plm_jax.train.memory import machine_memory

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
  """One device. flops: of bfloat16 products per second, dense. memory: bytes that a program can
  use. bandwidth: bytes per second of its memory. link: bytes per second that it sends to others,
  over all its links in one direction. source: of these numbers. A CPU has no published ones; its
  memory is this machine's, shared by the simulated devices."""

  name: str
  platform: Literal["tpu", "gpu", "cpu"]
  memory: int
  flops: float = 0.0
  bandwidth: float = 0.0
  link: float = 0.0
  source: str = ""
  compute_capability: str = ""  # of NVIDIA's

  def memory_stats(self) -> dict[str, int]:
    """As `jax.Device.memory_stats`, which the train step asks for the limit."""
    return {"bytes_limit": self.memory} if self.platform != "cpu" else {}


@dataclasses.dataclass(frozen=True)
class Target:
  """`count` equal devices. topology: of TPUs, as the compiler takes it, such as v5e:4x4."""

  name: str
  device: Device
  count: int
  topology: str = ""


GOOGLE = "Google Cloud's page on TPU {0}; memory: the limit of its compiler"
GUESSED = "Google Cloud's page on TPU {0}; memory: the chip's less 3%, a guess from v5e"
TPUS = {
  "v4": Device("TPU v4", "tpu", 31 * GIB, 275e12, 1200e9, 300e9, GUESSED.format("v4")),
  "v5e": Device(
    "TPU v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 200e9, GOOGLE.format("v5e")
  ),
  "v5p": Device(
    "TPU v5p", "tpu", int(95.74 * GIB), 459e12, 2765e9, 600e9, GOOGLE.format("v5p")
  ),
  "v6e": Device("TPU v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 400e9, GUESSED.format("v6e")),
}  # fmt: skip
NVIDIA = "NVIDIA's data sheet of the {0}; memory: JAX takes 75% of the card's"
GPUS = {
  "a100": Device(
    "A100 SXM 80 GB", "gpu", int(0.75 * 79.15 * GIB), 312e12, 2039e9, 300e9,
    NVIDIA.format("A100"), "8.0",
  ),
  "h100": Device(
    "H100 SXM 80 GB", "gpu", int(0.75 * 79.1 * GIB), 989e12, 3350e9, 450e9,
    NVIDIA.format("H100"), "9.0",
  ),
}  # fmt: skip
# Shapes of slices by the number of chips. The names of v4 and v5p count cores, two on each chip.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
  512: "8x8x8",
}  # fmt: skip
SHAPES = {"v4": (CUBES, 2), "v5e": (FLAT, 1), "v5p": (CUBES, 2), "v6e": (FLAT, 1)}
IN_A_MACHINE = 8  # GPUs: the links between machines are slower, and differ
SIMULATED = 1024  # devices of a CPU


def target_of(name: str) -> Target:
  """The devices of a name such as v5e-16, v5p-8, h100x8 or cpu:8. Errors: `UserError`."""
  match = re.fullmatch(r"(?:(v\w+)-|(\w+?)x|(cpu):)(\d{1,6})", name.lower())
  tpu, gpu, cpu, number = match.groups() if match else (None, None, None, "0")
  count = int(number)
  if tpu in TPUS:
    shapes, cores = SHAPES[tpu]
    chips = count // cores if count % cores == 0 else 0
    if chips not in shapes:
      sizes = ", ".join(f"{tpu}-{chips * cores}" for chips in shapes)
      raise UserError(f"--devices={name} is not a slice of {TPUS[tpu].name}; there are {sizes}")
    return Target(name, TPUS[tpu], chips, f"{tpu}:{shapes[chips]}")
  if gpu in GPUS and 1 <= count <= IN_A_MACHINE:
    return Target(name, GPUS[gpu], count)
  if cpu and 1 <= count <= SIMULATED:
    return Target(name, Device("CPU", "cpu", int(machine_memory() // count)), count)
  raise UserError(
    f"--devices={name} is not known; expected one of {known()}, with up to {IN_A_MACHINE} GPUs or "
    f"{SIMULATED} simulated devices"
  )


def as_measured(target: Target, tflops: float | None, gbs: float | None) -> Target:
  """The devices with a peak and a bandwidth of yours, where they are given: those of a data sheet
  are more than any program reaches. Errors: `UserError` for numbers that are not above 0, and for a
  CPU, which has no roofline here."""
  given = {"--peak": tflops, "--bandwidth": gbs}
  numbers = {flag: number for flag, number in given.items() if number is not None}
  for flag, number in numbers.items():
    if not 0 < number < math.inf:
      raise UserError(f"{flag}={number:g} must be a number above 0")
  if not numbers:
    return target
  if target.device.platform == "cpu":
    raise UserError(
      f"{' and '.join(numbers)} say nothing of {target.name}: no time is planned there"
    )
  device = dataclasses.replace(
    target.device,
    flops=target.device.flops if tflops is None else tflops * 1e12,
    bandwidth=target.device.bandwidth if gbs is None else gbs * 1e9,
    source=f"{' and '.join(numbers)} as given; else {target.device.source}",
  )
  return dataclasses.replace(target, device=device)


def known() -> str:
  """The names of devices, with a number in each."""
  return ", ".join([*(f"{tpu}-16" for tpu in TPUS), *(f"{gpu}x8" for gpu in GPUS), "cpu:8"])


@contextlib.contextmanager
def pretended(device: Device) -> Iterator[None]:
  """A context in which the project's code sees this device instead of this machine's: its platform,
  its memory, its kernels. JAX itself does not."""
  if device.platform == "cpu":
    yield
    return
  seen = {
    "default_backend": lambda: device.platform,
    "devices": lambda *_, **options: [device],
    "local_devices": lambda *_, **options: [device],  # Pallas asks those of its own platform
  }
  real = {name: getattr(jax, name) for name in seen}
  for name, function in seen.items():
    setattr(jax, name, function)
  try:
    yield
  finally:
    for name, function in real.items():
      setattr(jax, name, function)
