"""Everything that a training step reads and writes, as one pytree."""

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.parameters import named, path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State after `step` updates.

  metrics: name -> float32 [2] (sum, count) since the last report. It lives in the state, so a
    resumed run reports the same window means as an uninterrupted one.
  first_bad: the first update (from 1) whose loss or gradient was not finite, else 0. From then on
    no update is applied: the parameters are the last good ones.
  carry: the model's state between batches, arrays `[B, ...]` of the whole global batch; None for
    models and rows without one.
  """

  step: jax.Array  # int32
  params: nnx.Module
  opt_state: optax.OptState
  key: jax.Array  # the run's key; step t folds t in
  metrics: dict[str, jax.Array]
  first_bad: jax.Array  # int32
  carry: Any = None


def create_state(
  params,
  transform,
  key: jax.Array,
  metric_names: list[str],
  frozen: tuple[str, ...] = (),
  carry: Any = None,
) -> TrainState:
  """The state before the first update. Parameters under `frozen` paths have no moments."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=transform.init(trainable(params, frozen)),
    key=key,
    metrics={name: jnp.zeros(2) for name in sorted(metric_names)},
    first_bad=jnp.zeros((), jnp.int32),
    carry=carry,
  )


def trainable(params, frozen: tuple[str, ...]):
  """The parameters, with None, which is no leaf, where the path fits a pattern of `frozen`: so
  sharding and checkpointing never see an empty optimizer moment."""
  if not frozen:
    return params

  def chosen(path, leaf):
    name = path_name(path)
    return None if any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen) else leaf

  return jax.tree_util.tree_map_with_path(chosen, params)


def stored(state: TrainState, omitted: tuple[str, ...]) -> TrainState:
  """The state without the parameters that checkpoints leave out."""
  return dataclasses.replace(state, params=trainable(state.params, omitted))


def merge_frozen(partial, params):
  """`partial`, a result of `trainable`, with the leaves of `params` where it has None."""
  return jax.tree.map(
    lambda x, frozen: frozen if x is None else x, partial, params, is_leaf=lambda x: x is None
  )


def check_frozen(params, patterns: tuple[str, ...]) -> None:
  """A `UserError` for a pattern that fits no parameter, or patterns that leave none to train."""
  paths = [name for name, _ in named(params)]
  for pattern in patterns:
    if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
      raise UserError(
        f"tuning.freeze={pattern} fits no parameter; the model has "
        f"{', '.join(sorted({path.split('/')[0] + '/*' for path in paths}))}"
      )
  if patterns and not jax.tree.leaves(trainable(params, patterns)):
    raise UserError(f"tuning.freeze={','.join(patterns)} leaves no parameter to train")
