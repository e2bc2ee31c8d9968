"""The one train step and the one evaluation step of the project. Pure; the caller jits them."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plm_jax.compression.pruning import with_zeros
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise, streams
from plm_jax.models.model import carried
from plm_jax.models.packed import is_packed, states_of
from plm_jax.models.parameters import map_roles
from plm_jax.train.running import unusual
from plm_jax.train.state import TrainState, merge_frozen, trainable
from plm_jax.train.touched import touched_rows, update_rows


def step_options() -> dict[str, bool]:
  """The compiler's options for a train step. On a GPU the products are cuBLAS's, which also add the
  bias: XLA's own products in Triton win when each is timed alone, and lose in the step
  (docs/speed.md, GPU)."""
  name, device = "xla_gpu_enable_triton_gemm", jax.devices()[0]
  here = isinstance(device, jax.Device)  # XLA needs the card for its choice of cuBLAS's kernels
  if not here or device.platform != "gpu" or name in os.environ.get("XLA_FLAGS", ""):
    return {}
  return {name: False}


def forward(
  model,
  batch,
  objectives,
  compute: Compute,
  noise: Noise | None,
  carry: Any = None,
  parts: int = 1,
) -> tuple[dict, Any]:
  """The terms of every objective, {"mlm/loss": (sum, count), ...}, from one forward pass; and the
  carry after the batch, None if `carry` is None. parts: as `states_in_parts`."""
  in_model, in_heads, in_added = streams(noise, 3)
  whole = model
  model = with_added(whole, in_added)
  if parts > 1:
    hidden = states_in_parts(whole, batch, compute, in_model, parts, together(objectives))
  elif carry is None:
    hidden = states_of(model, batch, compute, in_model)
  else:
    hidden, carry = model.continued(batch, compute, in_model, carry)
  terms = {
    f"{objective.name}/{term}": value
    for objective in objectives
    for term, value in objective.loss(model, hidden, batch, in_heads).items()
  }
  return terms, carry


def with_added(model, noise: Noise | None):
  """The model with the few parameters that are trained beside it, if it has any (plm_jax/peft)."""
  return model.applied(noise) if hasattr(model, "applied") else model


def states_in_parts(model, batch, compute: Compute, noise: Noise | None, parts: int, group: int):
  """The states of the rows, computed in `parts` parts in turn, and again in the backward
  pass: a loss on the whole batch with the memory of a part (gradient caching, Gao et al. 2021)."""

  @jax.checkpoint
  def states(part):
    rows, noise = part
    in_model, in_added = streams(noise, 2)
    return with_added(model, in_added)(rows, compute, in_model)

  every = split(batch, parts, group), stacked(streams(noise, parts))
  return joined(jax.lax.map(states, every), group)


def train_step(
  state: TrainState,
  batch: dict,
  constants: dict,
  *,
  objectives,
  compute: Compute,
  optim,
  frozen: tuple[str, ...] = (),
  adversarial: float = 0.0,
  sparse: bool = False,
  updates: int = 0,
) -> TrainState:
  """One update on one global batch of arrays `[B, ...]`.

  The loss is the weighted sum over objectives of sum / count. Counts are those of the whole global
  batch, so the loss does not depend on the number of devices or micro-batches. An objective that
  compares the rows of a batch (`by_batch`) reads all of it. Parameters under `frozen` paths are
  neither differentiated nor changed. constants: of the schedule (`AdamW.constants`). adversarial,
  sparse: as `Tuning` has them. updates: above 0, only the rows that a batch reads are updated, if
  the model names them (touched.py), in this many parts; their gradient is that of the sum of the
  losses.
  """
  learning_rate = optim.schedule_of(constants)
  transform = optim.transform_at(learning_rate)
  key = jax.random.fold_in(state.key, state.step)
  counts = {o.name: o.count(batch) for o in objectives}
  counts = {name: jnp.where(count > 0, count, 1.0) for name, count in counts.items()}
  parts = max(compute.micro_batches, 1)
  whole = any(getattr(objective, "by_batch", False) for objective in objectives)
  if parts > 1 and is_packed(batch):
    raise UserError(
      "a batch of packed rows is not split into micro-batches, if memory is short either: make "
      "global_batch smaller, or set task.packed=false"
    )

  def loss_fn(params, rows, noise):
    batch, carry = rows
    model = merge_frozen(params, state.params)
    terms, carry = forward(model, batch, objectives, compute, noise, carry, parts if whole else 1)
    loss = sum(o.weight * terms[f"{o.name}/loss"][0] / counts[o.name] for o in objectives)
    return loss, ({name: jnp.stack(value) for name, value in terms.items()}, carry)

  params = trainable(state.params, frozen)
  if touched_rows(state.params, batch, updates):
    if state.running is not None:
      raise UserError("on_spike=skip skips whole updates, not those of single rows; choose another")
    total = sum(counts.values())

    def summed(params, rows):
      model = merge_frozen(params, state.params)
      terms, _ = forward(model, rows, objectives, compute, None)
      loss = sum(o.weight * terms[f"{o.name}/loss"][0] for o in objectives)
      return loss, {name: jnp.stack(value) for name, value in terms.items()}

    (updated, opt_state, good), (loss, terms, grad_norm) = update_rows(
      jax.value_and_grad(summed, has_aux=True),
      transform, params, state.opt_state, state.params, batch, state.first_bad == 0, updates,
    )  # fmt: skip
    return advanced(
      state, updated, opt_state, good, loss / total, terms, grad_norm / total, learning_rate
    )
  rows = batch, carried(state.params, batch, state.carry)
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if adversarial:
    value_and_grad = with_attack(value_and_grad, adversarial)
  group = together(objectives)
  loss, terms, carry, grads = accumulate(
    value_and_grad, params, rows, key, compute.dropout, 1 if whole else parts, group
  )
  if sparse:
    grads = with_zeros(params, grads)
  grad_norm = optax.tree.norm(grads)
  change, opt_state = transform.update(grads, state.opt_state, params)
  if sparse:  # of Muon, a weight of 0 without a gradient moves too
    change = with_zeros(params, change)
  updated = optax.apply_updates(params, change)

  good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (state.first_bad == 0)
  fine, watched = good, state.running
  if watched is not None:
    skipped, watched = unusual(watched, loss, grad_norm)
    good, fine = ~skipped, jnp.ones((), bool)
    terms["skipped"] = jnp.stack([skipped.astype(jnp.float32), jnp.ones(())])
  updated, opt_state = jax.tree.map(
    lambda new, old: jnp.where(good, new, old), (updated, opt_state), (params, state.opt_state)
  )
  state = advanced(state, updated, opt_state, fine, loss, terms, grad_norm, learning_rate)
  return dataclasses.replace(state, carry=carry, running=watched)


def advanced(
  state: TrainState, updated, opt_state, good, loss, terms, grad_norm, learning_rate
) -> TrainState:
  """The state after an update. good: whether it was finite, and all before it."""
  one = jnp.ones(())
  terms |= {
    "loss": jnp.stack([loss, one]),
    "grad_norm": jnp.stack([grad_norm, one]),
    "learning_rate": jnp.stack([learning_rate(state.step), one]),
  }
  if state.running is not None:  # a loss that is not finite is in no mean
    terms = {name: jnp.where(jnp.isfinite(term).all(), term, 0.0) for name, term in terms.items()}
  return dataclasses.replace(
    state,
    step=state.step + 1,
    params=merge_frozen(updated, state.params),
    opt_state=opt_state,
    metrics={name: state.metrics[name] + terms[name] for name in state.metrics},
    first_bad=jnp.where(good | (state.first_bad > 0), state.first_bad, state.step + 1),
  )


def with_attack(value_and_grad, length: float):
  """`value_and_grad` with the gradients at the parameters, plus those after a step of `length` of
  all token tables along the gradient (Miyato et al. 2017, FGM). Loss and terms are those at the
  parameters."""

  def attacked(params, rows, noise):
    result, grads = value_and_grad(params, rows, noise)
    chosen = map_roles(lambda path, role, g: path.endswith("token/table"), grads)
    tables = [g for g, is_table in zip(*map(jax.tree.leaves, (grads, chosen))) if is_table]
    if not tables:
      raise UserError("tuning.adversarial moves the token table, which tuning.freeze keeps fixed")
    size = length / jnp.maximum(optax.tree.norm(tables), 1e-12)
    moved = jax.tree.map(
      lambda x, g, is_table: x + size * g if is_table else x, params, grads, chosen
    )
    _, more = value_and_grad(moved, rows, noise)
    return result, jax.tree.map(jnp.add, grads, more)

  return attacked


def together(objectives) -> int:
  """The consecutive rows that an objective reads together, such as the choices of an example."""
  return math.lcm(*(getattr(objective, "together", 1) for objective in objectives))


def accumulate(value_and_grad, params, rows, key, dropout, parts: int = 1, group: int = 1):
  """Loss, terms, carry and gradients of the global batch, computed in `parts` parts, whose sums are
  added. dropout: as `Compute` has it. group: as of `split`."""
  noise = [Noise.create(jax.random.fold_in(key, part), dropout) for part in range(parts)]
  if parts == 1:
    (loss, (terms, carry)), grads = value_and_grad(params, rows, noise[0])
    return loss, terms, carry, grads

  def add(total, part):
    (loss, (terms, carry)), grads = value_and_grad(params, *part)
    return jax.tree.map(jnp.add, total, (loss, terms, grads)), carry

  every = split(rows, parts, group), stacked(noise)
  first = jax.tree.map(lambda x: x[0], every)
  (loss, (terms, _)), grads = jax.eval_shape(value_and_grad, params, *first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, terms, grads))
  (loss, terms, grads), carry = jax.lax.scan(add, zeros, every)
  return loss, terms, joined(carry, group), grads


def split(tree, parts: int, group: int):
  """Arrays `[B, ...]` as `[parts, B / parts, ...]`. Group i of `group` consecutive rows goes to
  part i mod parts: with the batch sharded over devices in contiguous blocks every part is spread
  evenly over them."""

  def apart(x):
    x = x.reshape(-1, parts, group, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(parts, -1, *x.shape[3:])

  return jax.tree.map(apart, tree)


def joined(tree, group: int):
  """The inverse of `split`."""

  def whole(x):
    x = x.reshape(x.shape[0], -1, group, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(-1, *x.shape[3:])

  return jax.tree.map(whole, tree)


def stacked(noise: list[Any]) -> Any:
  return jax.tree.map(lambda *seeds: jnp.stack(seeds), *noise)


def evaluation_step(
  params, batch, carry: Any = None, *, objectives, compute: Compute
) -> tuple[dict[str, jax.Array], Any]:
  """{"mlm/loss": float32 [2] (sum, count), ...} of one batch, without dropout, and the carry after
  it. carry: that of the batch before."""
  carry = carried(params, batch, carry)
  terms, carry = forward(params, batch, objectives, compute, None, carry)
  return {name: jnp.stack(value) for name, value in terms.items()}, carry


def metric_names(params, batch, *, objectives, compute: Compute) -> list[str]:
  """The names of `train_step`'s metrics, from shapes alone."""
  terms, _ = jax.eval_shape(
    lambda p, b: evaluation_step(p, b, objectives=objectives, compute=compute), params, batch
  )
  return ["loss", "grad_norm", "learning_rate", *terms]
