"""Everything that a training step reads and writes, as one pytree."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State after `step` updates.

  metrics: name -> float32 [2] (sum, count) since the last report. It lives in the state, so a
    resumed run reports the same window means as an uninterrupted one.
  first_bad: the first update (from 1) whose loss or gradient was not finite, else 0. From then on
    no update is applied: the parameters are the last good ones.
  """

  step: jax.Array  # int32
  params: nnx.Module
  opt_state: optax.OptState
  key: jax.Array  # the run's key; step t folds t in
  metrics: dict[str, jax.Array]
  first_bad: jax.Array  # int32


def create_state(params, transform, key: jax.Array, metric_names: list[str]) -> TrainState:
  """The state before the first update."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=transform.init(params),
    key=key,
    metrics={name: jnp.zeros(2) for name in sorted(metric_names)},
    first_bad=jnp.zeros((), jnp.int32),
  )
