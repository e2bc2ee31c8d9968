"""The train step compiled ahead of time, for devices that are not there."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
from jax._src import xla_bridge
from jax.experimental import topologies

from plm_jax.experiment import Experiment
from plm_jax.planning.devices import Target, pretended
from plm_jax.planning.program_costs import ProgramCosts, costs_of
from plm_jax.planning.program_text import parsed
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment

# The card as XLA describes it; the compiler reads nothing else of it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# libtpu else asks a server of the cloud which TPU this is, reports that there is none, and refuses
# to be loaded by two processes.
QUIET = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "TPU_MIN_LOG_LEVEL": "3",
  "TPU_STDERR_LOG_LEVEL": "3",
}
CUDA = ("xla_cuda13", "xla_cuda12")  # JAX's plugins


class Compiled(NamedTuple):
  """Of one device. temporaries: bytes beside arguments and results. memory: all bytes of a step.
  costs: None where the program cannot be read."""

  temporaries: int
  memory: int
  micro_batches: int
  costs: ProgramCosts | None


class NoCompiler(Exception):
  """The reason why there is no compiler for some devices here."""


def compiled(experiment: Experiment, target: Target) -> Compiled:
  """The step of a resolved experiment. Errors: `NoCompiler`; `DoesNotFit` (train/memory.py)."""
  devices = devices_of(target)
  with pretended(target.device):
    program = compile_experiment(experiment, example_batch(experiment), devices)
  step: Any = cast(functools.partial, program.step).func
  temporaries = step.memory_analysis().temp_size_in_bytes
  try:
    costs = costs_of(parsed(step.as_text()), target.device, target.count)
  except jax.errors.JaxRuntimeError:  # jaxlib does not know an instruction of the compiler
    costs = None
  return Compiled(temporaries, program.memory, program.micro_batches, costs)


def compiler_of(target: Target) -> str:
  """The name of the compiler for these devices. Errors: `NoCompiler`."""
  platform = target.device.platform
  if platform == "cpu":
    if len(jax.devices()) < target.count:
      raise NoCompiler(f"this process has {len(jax.devices())} simulated devices")
    return f"XLA of jaxlib {importlib.metadata.version('jaxlib')}"
  if platform == "tpu":
    if importlib.util.find_spec("libtpu") is None:
      raise NoCompiler("libtpu is not installed: pip install 'plm_jax[tpu]'")
    return f"libtpu {importlib.metadata.version('libtpu')}"
  if not target.name.startswith("h100"):
    raise NoCompiler("only the H100 has a description for the compiler")
  plugin = _cuda_plugin()
  if plugin is None:
    raise NoCompiler("JAX's CUDA plugin is not installed: pip install 'plm_jax[gpu]'")
  return f"XLA of {plugin}, without tuning on the card"


def devices_of(target: Target) -> list[jax.Device]:
  """Devices to compile for. Errors: `NoCompiler`."""
  compiler_of(target)
  if target.device.platform == "cpu":
    return jax.devices()[: target.count]
  options: dict[str, Any] = {"topology_name": target.topology}
  if target.device.platform == "gpu":
    options = {"target_config": H100, "topology": f"1x1x{target.count}"}
  else:
    for variable, value in QUIET.items():
      os.environ.setdefault(variable, value)
  with _named_cuda() if target.device.platform == "gpu" else contextlib.nullcontext("tpu") as name:
    try:
      return list(topologies.get_topology_desc(platform=name, **options).devices)
    except (RuntimeError, ValueError) as error:
      raise NoCompiler(str(error).splitlines()[0]) from None


def _cuda_plugin() -> str | None:
  if importlib.util.find_spec("jax_plugins") is None:
    return None
  return next((p for p in CUDA if importlib.util.find_spec(f"jax_plugins.{p}")), None)


@contextlib.contextmanager
def _named_cuda() -> Iterator[str]:
  """Loads the plugin without a card; JAX else resolves its name to platforms that have devices."""
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_gpu_autotune_level" not in flags:  # tuning would run kernels on the card
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
  if "cuda" not in xla_bridge._backend_factories:
    importlib.import_module(f"jax_plugins.{_cuda_plugin()}").initialize()
  real = xla_bridge.canonicalize_platform
  xla_bridge.canonicalize_platform = lambda platform: (
    "cuda" if platform == "cuda" else real(platform)
  )
  try:
    yield "cuda"
  finally:
    xla_bridge.canonicalize_platform = real
