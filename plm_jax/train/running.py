"""The running scale of loss and gradient norm, on the device: `on_spike="skip"` leaves out updates
that are far above it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

OF_SKIP = ("running/", "metrics/skipped")  # in the state only with it; they begin as zeros
SHARE, LEAST = 0.25, 1.0  # an explosion is further above the usual loss: as a share of it, in nats
_SEEN, _RATE = 10, 0.05  # steps before any is skipped; weight of a step in the running means
_SPREADS, _NORMS = 8.0, 10.0  # further above than the usual distance; times the usual norm


class Running(NamedTuple):
  """Running means over the updates: of the loss, of its distance from that, of the gradient norm.
  Values beyond the limit count as the limit, so a lasting change is accepted in the end."""

  loss: jax.Array
  spread: jax.Array
  norm: jax.Array
  seen: jax.Array


def running() -> Running:
  loss, spread, norm = jnp.zeros(3)
  return Running(loss, spread, norm, jnp.zeros((), jnp.int32))


def unusual(state: Running, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, Running]:
  """Whether the update of a step is skipped, and the running means after it."""
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  margin = jnp.maximum(_SPREADS * state.spread, SHARE * jnp.abs(state.loss))
  limit = state.loss + jnp.maximum(margin, LEAST)
  warm = state.seen >= _SEEN
  skipped = ~finite | (warm & ((loss > limit) | (norm > _NORMS * state.norm)))
  rate = jnp.maximum(_RATE, 1.0 / (state.seen + 1))
  loss = jnp.where(warm, jnp.minimum(loss, limit), loss)
  norm = jnp.where(warm, jnp.minimum(norm, _NORMS * state.norm), norm)
  new = Running(
    state.loss + rate * (loss - state.loss),
    state.spread + rate * (jnp.abs(loss - state.loss) - state.spread),
    state.norm + rate * (norm - state.norm),
    state.seen + 1,
  )
  return skipped, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
