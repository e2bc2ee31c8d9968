"""Recurrent layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.layers import Linear


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

  def __call__(self, x_BTD: jax.Array, real_BT: jax.Array, reverse: bool = False):
    """States `[B, T, U]` and the last one `[B, U]` in reading order, which `reverse` turns round.

    real_BT: bool; at padding the state stands still, so its number changes nothing.
    """
    from_input = self.input(x_BTD)

    def step(carry, now):
      h, c = carry
      gates, real = now
      i, f, g, o = jnp.moveaxis(gates + self.recurrent(h), -2, 0)
      new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
      h, c = (jnp.where(real[:, None], new, old) for new, old in ((new_h, h), (new_c, c)))
      return (h, c), h

    zeros = jnp.zeros((x_BTD.shape[0], from_input.shape[-1]), x_BTD.dtype)
    over_time = (jnp.moveaxis(from_input, 1, 0), real_BT.T)
    (last_BU, _), states = jax.lax.scan(step, (zeros, zeros), over_time, reverse=reverse)
    return jnp.moveaxis(states, 0, 1), last_BU


class BiLSTM(nnx.Module):
  """Two LSTMs of D / 2 units that read in opposite directions."""

  def __init__(self, key, width: int):
    forward, backward = jax.random.split(key)
    self.forward = LSTM(forward, width, width // 2)
    self.backward = LSTM(backward, width, width // 2)

  def last(self, x_BTD: jax.Array, length_B: jax.Array) -> jax.Array:
    """`[B, D]`: the last state of either direction, side by side."""
    real_BT = jnp.arange(x_BTD.shape[1]) < length_B[:, None]
    _, forward_BU = self.forward(x_BTD, real_BT)
    _, backward_BU = self.backward(x_BTD, real_BT, reverse=True)
    return jnp.concatenate([forward_BU, backward_BU], axis=-1)
