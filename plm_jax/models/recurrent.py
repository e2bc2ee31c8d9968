"""Recurrent layers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.layers import Linear


class LSTMState(NamedTuple):
  """Output and memory cell after a token, `[B, U]` each, or `[B, L, U]` for several layers."""

  h_BU: jax.Array
  c_BU: jax.Array

  @classmethod
  def zeros(cls, shape: tuple[int, ...], dtype=jnp.float32) -> LSTMState:
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class LSTM(nnx.Module):
  """Long short-term memory with a forget gate (Gers et al. 2000), U units, gates in torch's order.

      i, f, g, o = split(W x_t + R h_{t-1} + b)
      c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)

  The forget gate's bias starts at 1 (Jozefowicz et al. 2015).
  """

  def __init__(self, key, width: int, units: int):
    into, recurrent = jax.random.split(key)
    self.input = Linear(into, (width,), (4, units))
    self.input.bias[...] = self.input.bias[...].at[1].set(1.0)
    self.recurrent = Linear(recurrent, (units,), (4, units), bias=False)

  def __call__(
    self,
    x_BTD: jax.Array,
    real_BT: jax.Array,
    reverse: bool = False,
    *,
    start: LSTMState | None = None,
    begins_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, LSTMState]:
    """Outputs `[B, T, U]` and the state after the last token, or after the first with `reverse`.

    real_BT: bool; padding does not change the state. start: the state before the first token; None
    is zeros. begins_BT: bool, True at tokens before which the state becomes zeros.
    """
    from_input = self.input(x_BTD)
    units = from_input.shape[-1]
    state = LSTMState.zeros((x_BTD.shape[0], units), x_BTD.dtype) if start is None else start

    def step(state, inputs):
      gates, real, begins = inputs
      h, c = state if begins is None else jax.tree.map(lambda s: jnp.where(begins, 0, s), state)
      i, f, g, o = jnp.moveaxis(gates + self.recurrent(h), -2, 0)
      new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
      new = LSTMState(new_h, new_c)
      state = jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)
      return state, state.h_BU

    over_time = jnp.moveaxis(from_input, 1, 0), real_BT.T[..., None]
    begins = None if begins_BT is None else begins_BT.T[..., None]
    last, states = jax.lax.scan(step, state, (*over_time, begins), reverse=reverse)
    return jnp.moveaxis(states, 0, 1), last


class BiLSTM(nnx.Module):
  """Two LSTMs of D / 2 units that read in opposite directions."""

  def __init__(self, key, width: int):
    forward, backward = jax.random.split(key)
    self.forward = LSTM(forward, width, width // 2)
    self.backward = LSTM(backward, width, width // 2)

  def last(self, x_BTD: jax.Array, length_B: jax.Array) -> jax.Array:
    """`[B, D]`: the last outputs of both directions, concatenated."""
    real_BT = jnp.arange(x_BTD.shape[1]) < length_B[:, None]
    _, forward = self.forward(x_BTD, real_BT)
    _, backward = self.backward(x_BTD, real_BT, reverse=True)
    return jnp.concatenate([forward.h_BU, backward.h_BU], axis=-1)
