"""What a step keeps, computes, moves and sends, without a compiler.

Operations are counted in the traced forward pass. What the forward pass keeps for the backward pass
is read from its trace too: an estimate of the compiler's temporaries, which fuses and orders as it
likes (docs/scaling.md says how far off it is). Traffic and collectives are formulas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod
from typing import Any

import jax

from plm_jax.experiment import Experiment
from plm_jax.models.dropout import Noise
from plm_jax.models.parameters import stacked_axes, with_roles
from plm_jax.planning.collectives import Collectives
from plm_jax.planning.state_bytes import StateBytes, axes_of
from plm_jax.sharding import AnyMesh
from plm_jax.train.estimate import step_operations
from plm_jax.train.example_batch import example_batch
from plm_jax.train.state import TrainState, merge_frozen, trainable
from plm_jax.train.step import forward, together


def model_operations(experiment: Experiment) -> float:
  """Operations of a step's products: three times those of the forward pass, attention to masked
  pairs included, rematerialisation left out."""
  compute = dataclasses.replace(experiment.compute, remat=False)
  return step_operations(dataclasses.replace(experiment, compute=compute))


def loss_of_rows(experiment: Experiment, rows: int) -> tuple[Callable, tuple[Any, ...]]:
  """The loss of `rows` rows with dropout, and the shapes of its arguments: the parameters that are
  trained, all of them, a batch, and a key."""
  group = together(experiment.objectives)
  rows = -(-rows // group) * group
  compute = dataclasses.replace(experiment.compute, micro_batches=1)
  local = dataclasses.replace(experiment, global_batch=rows, compute=compute)
  params = jax.eval_shape(local.init_parameters, jax.random.key(0))
  batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in example_batch(local).items()}

  def loss(trained, params, batch, key):
    noise = Noise.create(key, compute.dropout)
    carry = params.carry(rows) if "begins" in batch else None
    model = merge_frozen(trained, params)
    terms, _ = forward(model, batch, local.objectives, compute, noise, carry)
    return sum(o.weight * terms[f"{o.name}/loss"][0] for o in local.objectives)

  return loss, (trainable(params, local.frozen), params, batch, jax.random.key(0))


def kept_bytes(experiment: Experiment, rows: int, split: set[int], tensor: int) -> int:
  """Bytes that a device keeps from the forward to the backward pass of `rows` of its rows. split:
  sizes of dimensions that are split over `tensor` devices."""
  loss, arguments = loss_of_rows(experiment, rows)

  def residuals(trained, *rest):
    return jax.tree.leaves(jax.vjp(lambda trained: loss(trained, *rest), trained)[1])

  traced = jax.make_jaxpr(residuals)(*arguments).jaxpr
  kept = {x for x in traced.outvars if not hasattr(x, "val")} - set(traced.invars)
  total = 0
  for shape in (x.aval for x in kept):
    if not jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
      size = prod(shape.shape) * shape.dtype.itemsize
      total += size // (tensor if split & set(shape.shape) else 1)
  return total


def split_sizes(state: TrainState) -> set[int]:
  """The sizes that the mesh axis `tensor` splits: heads, feed-forward widths, the vocabulary."""
  return {
    size
    for leaf in jax.tree.leaves(state.params)
    for axis, size in zip(axes_of(leaf), leaf.shape, strict=True)
    if axis == "tensor"
  }


def temporaries(state: StateBytes, kept: int, parts: int) -> int:
  """Bytes that a step needs beside the state: what it keeps, and the gradients; of micro-batches
  also the sum of their gradients."""
  return kept + state.gradients * (2 if parts > 1 else 1)


def traffic(state: StateBytes, weights: int, kept: int, parts: int) -> float:
  """Bytes that a step at least reads and writes. weights: of the parameters as activations.

  In each part everything kept is written and read, the weights are read in both passes, and the
  gradients are written. The update reads the gradients, and reads and writes the state.
  """
  per_part = 2 * kept + 2 * weights + state.gradients
  return parts * per_part + state.gradients + 2 * (state.parameters + state.moments)


def weight_bytes(experiment: Experiment, state: TrainState) -> int:
  """Bytes of all parameters as a device multiplies by them: gathered over `fsdp`, in the dtype of
  activations."""
  size = experiment.compute.activation_dtype.itemsize
  return sum(size * _gathered(leaf) for leaf in jax.tree.leaves(state.params))


def _gathered(leaf: Any) -> int:
  mesh = leaf.sharding.mesh
  return prod(leaf.shape) // (mesh.shape["tensor"] if "tensor" in axes_of(leaf) else 1)


def collectives(
  experiment: Experiment, state: TrainState, mesh: AnyMesh, parts: int
) -> Collectives:
  """What data-parallel, FSDP and tensor-parallel training must send, per device and step.

  In every micro-batch, kernels that `fsdp` splits are gathered before each pass and their gradients
  scattered, in the dtype of activations; gradients that several devices have are summed. `tensor`
  sums the output of every residual kernel, and its gradient.
  """
  size = experiment.compute.activation_dtype.itemsize
  data, fsdp, tensor = (mesh.shape[name] for name in ("data", "fsdp", "tensor"))
  passes = 2 + experiment.compute.remat
  positions = experiment.global_batch // (parts * data * fsdp) * experiment.data.length
  sent = Collectives()
  for path, role, leaf in with_roles(state.params):
    axes, gathered = axes_of(leaf), size * _gathered(leaf)
    if "fsdp" in axes:
      sent.add("all-gather", passes * parts, gathered, fsdp)
      sent.add("reduce-scatter", parts, gathered, fsdp)
      sent.add("all-reduce", parts, gathered // fsdp, data)
    else:
      sent.add("all-reduce", parts, gathered, data * fsdp)
    if "tensor" in axes and role.residual:
      layers = prod(leaf.shape[: stacked_axes(path, role, len(leaf.shape))])
      sent.add("all-reduce", 2 * layers * parts, size * positions * leaf.shape[-1], tensor)
  return sent
