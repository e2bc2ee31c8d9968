"""Estimated time of a training run on this machine, before any of it is spent.

A step is timed if that takes seconds. Else its matrix products are counted and divided by the rate
of one large product, which is measured: a step reaches about `SHARE` of it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.experiment import Experiment
from plm_jax.sharding import to_global
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import Program
from plm_jax.train.memory import machine_memory
from plm_jax.train.step import forward

SHARE = 0.5
LONGEST = 2.0  # seconds of a step that is still timed
BACKWARD = 2  # products of the backward pass for each of the forward pass


class StepTime(NamedTuple):
  """Seconds of a step, and how they are known."""

  seconds: float
  how: str


def timed(program: Program) -> StepTime:
  """The second of two steps on rows of one token; `counted`, if they would take too long."""
  guess = counted(program.experiment, product_rate())
  needed = program.memory * len(jax.local_devices()) if jax.default_backend() == "cpu" else 0
  if guess.seconds > LONGEST or needed > 0.5 * machine_memory():
    return guess
  batch = to_global(example_batch(program.experiment), program.mesh)
  state = program.step(program.create(), batch)
  jax.block_until_ready(state)
  start = time.perf_counter()
  jax.block_until_ready(program.step(state, batch))
  seconds = time.perf_counter() - start
  return StepTime(seconds, f"one timed step ({seconds:.3g} s)")


def counted(experiment: Experiment, rate: float) -> StepTime:
  """The time by the number of operations. experiment: resolved. rate: operations per second."""
  how = f"its matrix products, at {SHARE:.0%} of the {rate / 1e9:,.0f} billion operations per "
  seconds = step_operations(experiment) / (SHARE * rate)
  return StepTime(seconds, f"{how}second of one large product")


def sentence(seconds: float, how: str, budget: str) -> str:
  """The time of the training, and how to spend less."""
  smaller = {"paper": "--budget=small, --budget=laptop, ", "small": "--budget=laptop, "}
  return (
    f"{spoken(seconds)} of training on this machine, as busy as it is now: an estimate by "
    f"{how}\n"
    f"less time: {smaller.get(budget, '')}--set=steps=N with fewer steps, or an accelerator"
  )


def step_operations(experiment: Experiment) -> float:
  """Operations of the matrix products of a step: multiplications and additions."""
  compute = dataclasses.replace(experiment.compute, layers="scan", attention="plain", remat=False)
  batch = {
    name: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype)
    for name, x in example_batch(experiment).items()
  }
  params = jax.eval_shape(experiment.init_parameters, jax.random.key(0))

  def terms(params, batch):
    carry = params.carry(experiment.global_batch) if "begins" in batch else None
    return forward(params, batch, experiment.objectives, compute, None, carry)[0]

  passes = 1 + BACKWARD + experiment.compute.remat
  return passes * products(jax.make_jaxpr(terms)(params, batch).jaxpr)


def products(jaxpr: Any) -> float:
  """Operations of all matrix products of a program, those of loops as often as they run."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      size = math.prod(shape[axis] for axis in contracted)
      total += 2.0 * size * math.prod(equation.outvars[0].aval.shape)
    inner = sum(map(products, programs_in(list(equation.params.values()))))
    total += inner * equation.params.get("length", 1)
  return total


def programs_in(values: Sequence[Any]) -> Iterator[Any]:
  """The programs among the parameters of an operation, such as the body of a loop."""
  for value in values:
    if isinstance(value, list | tuple):
      yield from programs_in(value)
    value = getattr(value, "jaxpr", value)
    if hasattr(value, "eqns"):
      yield value


def product_rate(repeats: int = 3) -> float:
  """Operations per second of a large matrix product on all devices together, the best of a few."""
  is_cpu = jax.default_backend() == "cpu"
  size, dtype = (1024, jnp.float32) if is_cpu else (4096, jnp.bfloat16)
  x = jnp.ones((size, size), dtype)
  product: Callable = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  # Simulated devices of a CPU share its cores.
  return 2.0 * size**3 / best * (1 if is_cpu else jax.device_count())


def spoken(seconds: float) -> str:
  """A time in the unit that a reader would choose: about 3 minutes."""
  for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
    if seconds >= 1.5 * size:
      return f"about {seconds / size:,.0f} {unit}"
  return f"about {max(seconds, 1):.0f} seconds"
