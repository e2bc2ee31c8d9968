"""Static int8: the scale of every input is measured on some rows before (Jacob et al. 2018,
arXiv:1712.05877, section 3.1, which averages ranges over the batches of training).

The forward pass reports the range of every linear map's input by a callback, so that it works for
every family, for scanned and unrolled layers, and for layers that ALBERT shares.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.compression.forms import stored_as
from plm_jax.compression.quantised import INT8, StaticInt8
from plm_jax.errors import UserError
from plm_jax.models.layers import Linear
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.peft.adapted import linears, replaced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
  """A linear map that reports the largest absolute value of each of its inputs."""

  ROLES: ClassVar[dict[str, Role]] = {"observed_layer": Role((), "gain", "layer")}

  linear: Linear
  observed_layer: jax.Array  # int32 [*layers]
  report: Callable[[Any, Any], None] = dataclasses.field(metadata={"static": True})

  @property
  def kernel(self) -> jax.Array:
    """For code that multiplies by the kernel itself, such as recurrences: it needs no scale, which
    stays 1."""
    jax.debug.callback(self.report, self.observed_layer, float(INT8))
    return self.linear.kernel[...]

  @property
  def bias(self) -> jax.Array | None:
    return None if self.linear.bias is None else self.linear.bias[...]

  def __call__(self, x: jax.Array) -> jax.Array:
    jax.debug.callback(self.report, self.observed_layer, jnp.max(jnp.abs(x)))
    return self.linear(x)


def ranges(
  params: Parameters, batches: Iterable[dict], compute: Callable[[Parameters, dict], Any]
) -> dict[str, np.ndarray]:
  """Path of a linear map -> float32 `[*layers]`: the mean over the batches of the largest absolute
  value of its input. compute: a function of the parameters and a batch, with the forward pass.

  Errors: `UserError` for a map that no batch reaches."""
  chosen = linears(params)
  seen: dict[str, list[list[float]]] = {
    path: [[] for _ in range(int(np.prod(sizes.layers)))] for path, (_, sizes) in chosen.items()
  }

  def observed(path: str, linear: Linear):
    if path not in chosen:
      return linear
    layers = chosen[path][1].layers
    numbers = jnp.arange(len(seen[path]), dtype=jnp.int32).reshape(layers)
    return Observed(linear, numbers, functools.partial(add, seen[path]))

  run = jax.jit(compute)
  watched = replaced(params, Linear, observed)
  for batch in batches:
    jax.block_until_ready(run(watched, batch))
  jax.effects_barrier()
  if missed := [path for path, values in seen.items() if not all(values)]:
    raise UserError(
      f"static8 measures the input of every linear map, and the rows of calibration do not reach "
      f"{', '.join(missed)}; use int8, which needs no calibration"
    )
  return {
    path: np.array([np.mean(v) for v in values], np.float32).reshape(chosen[path][1].layers)
    for path, values in seen.items()
  }


def add(values: list[list[float]], layer: Any, largest: Any) -> None:
  values[int(layer)].append(float(largest))


def calibrated(
  params: Parameters, batches: Iterable[dict], compute: Callable[[Parameters, dict], Any]
) -> Parameters:
  """The parameters in the form `static8`, with the scales of their inputs. The arguments and errors
  are those of `ranges`."""
  measured = ranges(params, batches, compute)

  def scaled(path: str, linear: Any):
    scale = np.where(measured[path] > 0, measured[path], 1) / np.float32(INT8)
    return dataclasses.replace(linear, input_scale=jnp.asarray(scale))

  return replaced(stored_as("static8", params), StaticInt8, scaled)
