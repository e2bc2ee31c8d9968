"""Settings of this process: threads, compilation cache, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import jax


def enough_threads() -> None:
  """Gives XLA's pool on a CPU three threads for each simulated device; before the first use of one.

  It has one for each core. Fewer than devices may leave all threads waiting in an all-reduce for
  one that never starts, and XLA aborts after 40 s.
  """
  flag = re.search(r"device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
  devices = int(os.environ.get("JAX_NUM_CPU_DEVICES") or (flag[1] if flag else 1))
  if devices > 1:
    os.environ.setdefault("NPROC", str(max(3 * devices, os.cpu_count() or 1)))


def keep_compilations(cache: Path) -> None:
  """Caches compiled programs on disk, so that a second start does not compile. JAX's own variables
  of the environment win."""
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
  # A cache that can only be read is read.
  shortest = 0.3 if os.access(cache, os.W_OK) else float("inf")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)


def versions() -> dict[str, str]:
  """The software and the hardware that a number may depend on."""
  packages = ("plm_jax", "jax", "jaxlib", "flax", "optax", "numpy", "tokenizers")
  return {
    "python": platform.python_version(),
    "platform": f"{jax.default_backend()}: {jax.device_count()} x {jax.devices()[0].device_kind}",
    **{name: importlib.metadata.version(name) for name in packages},
  }
