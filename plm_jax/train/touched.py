"""Updates of the rows of tables that a batch read, and of no others.

A model has `touched(batch)`: the ids of the rows that the forward pass reads, by the path of their
table. The step takes these rows out of the tables and of the optimiser's state, differentiates and
updates them alone, and adds the changes back. Rows that were read more than once are added. So the
cost does not depend on the size of a table.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from plm_jax.models.parameters import path_name
from plm_jax.placement import on_all_devices


def touched_rows(params, rows: dict, updates: int) -> dict[str, jax.Array]:
  """The ids of the rows that a batch reads, by the path of their table; empty for a model, or an
  optimiser (`updates` is 0), that updates all."""
  touched = getattr(params, "touched", None)
  return touched(rows) if updates and touched else {}


def update_rows(value_and_grad, transform, params, opt_state, frozen_params, batch, good, updates):
  """(parameters, optimiser state, loss, terms, norm of the gradients, still good) after the parts
  of a batch, one after the other.

  value_and_grad: of the loss as a sum. good: whether all updates so far were finite; from the first
  that is not, none is applied.
  """

  def one(carry, rows):
    params, opt_state, good = carry
    ids = frozen_params.touched(rows)
    compact, state = taken(params, ids), taken(opt_state, ids)
    (loss, terms), grads = value_and_grad(compact, rows)
    norm = optax.tree.norm(grads)
    good &= jnp.isfinite(loss) & jnp.isfinite(norm)
    changes, after = transform.update(grads, state, compact)
    changes = jax.tree.map(lambda x: jnp.where(good, x, 0), changes)
    moved = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
    params = added(params, changes, ids)
    difference = jax.tree.map(jnp.subtract, moved, state)
    return (params, added(opt_state, difference, ids), good), (loss, terms, norm)

  if updates == 1:
    carry, results = one((params, opt_state, good), batch)
    return carry, results
  parts = jax.tree.map(lambda x: x.reshape(-1, updates, *x.shape[1:]).swapaxes(0, 1), batch)
  carry, (loss, terms, norm) = jax.lax.scan(one, (params, opt_state, good), parts)
  total = jax.tree.map(lambda x: x.sum(0), (loss, terms))
  return carry, (*total, jnp.sqrt((norm * norm).sum()))


def taken(tree: Any, ids: dict[str, jax.Array]) -> Any:
  """The tree with the rows `ids` `[..., D]` in the place of every table, also of those in an
  optimiser's state."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if (at := _of(path, ids)) is None else x[at], tree
  )


def added(tree: Any, rows: Any, ids: dict[str, jax.Array]) -> Any:
  """The tree plus changes, whose tables have the rows `ids` alone. On a mesh every device gets all
  rows: they are fewer than those of a table."""

  def sum_of(path, x, change):
    at = _of(path, ids)
    if at is None:
      return x + change
    at, change = on_all_devices(at.reshape(-1)), change.reshape(-1, x.shape[-1])
    return x.at[at].add(on_all_devices(change.astype(x.dtype)))

  return jax.tree_util.tree_map_with_path(sum_of, tree, rows)


def _of(path, ids: dict[str, jax.Array]) -> jax.Array | None:
  name = path_name(path)
  return next((at for table, at in ids.items() if f"/{name}".endswith(f"/{table}")), None)
