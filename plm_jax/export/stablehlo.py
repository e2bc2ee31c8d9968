"""Runs as StableHLO: one file for CPUs, NVIDIA GPUs and TPUs, with a dynamic batch and length.

`jax.export.deserialize(FILE.read_bytes()).call(inputs)` runs it, with JAX alone. Parameters are
constants of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from plm_jax.export.agreement import Arrays, check, differences, reference
from plm_jax.export.portable import Portable, portable
from plm_jax.runs import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(run: Run, path: Path) -> tuple[Portable, float]:
  """Writes a run's forward pass, a function of a dict of int32 arrays, reads the file again and
  checks it. Returns the function, and the largest difference from JAX. Errors: `UserError` if it
  is above the tolerance; the file is then deleted."""
  model = portable(run)
  with jax.default_matmul_precision("float32"):
    function = jax.jit(lambda inputs: model.function(model.params, **inputs))
    exported = export.export(function, platforms=PLATFORMS)(dict(model.inputs))
  path.write_bytes(exported.serialize())
  try:
    return model, check(differences(reference(model), loaded(path)), "StableHLO")
  except BaseException:
    path.unlink()
    raise


def loaded(path: Path) -> Callable[[Arrays], Arrays]:
  """The function of a file: arrays by name in, arrays by name out."""
  exported = export.deserialize(bytearray(path.read_bytes()))

  def run(inputs: Arrays) -> Arrays:
    arrays = {name: jnp.asarray(array, jnp.int32) for name, array in inputs.items()}
    return {name: np.asarray(array) for name, array in exported.call(arrays).items()}

  return run
