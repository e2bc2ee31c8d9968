"""Settings of the computation that change nothing in the step of a run."""

from __future__ import annotations

import dataclasses
import re

import jax
from jax._src.interpreters.partial_eval import dce_jaxpr

from plm_jax.experiment import Experiment
from plm_jax.models.compute import Compute
from plm_jax.overrides import show
from plm_jax.planning.arithmetic import loss_of_rows
from plm_jax.planning.choosing import Placement
from plm_jax.sharding import kept_whole


def without_effect(placement: Placement) -> list[str]:
  """A sentence for each field of `compute` that differs from its default and leaves the traced
  forward and backward pass as it is, and for each dimension that the mesh cannot split."""
  experiment, default = placement.experiment, Compute()
  sentences, trace = [], ""
  for name in (f.name for f in dataclasses.fields(Compute) if f.name != "micro_batches"):
    value, usual = getattr(experiment.compute, name), getattr(default, name)
    if value == usual:
      continue
    trace = trace or traced(experiment)
    compute = dataclasses.replace(experiment.compute, **{name: usual})
    if traced(dataclasses.replace(experiment, compute=compute)) == trace:
      sentences.append(
        f"compute.{name}={show(value)} changes nothing: the step is that of {show(usual)}"
      )
  return sentences + kept_whole(placement.state.params, placement.mesh)


def traced(experiment: Experiment) -> str:
  """The forward and the backward pass of the fewest rows, as text, without what nothing reads."""
  loss, arguments = loss_of_rows(experiment, 1)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr
  used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
  return re.sub(r"0x[0-9a-f]+", "", str(used))
