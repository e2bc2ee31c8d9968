"""Recurrent layers: LSTM, GRU and the simple network of Elman (1990).

The products of all inputs with their kernel are one product before the loop over time. So is the
gradient of the recurrent kernel after it: the loop backwards only gives the gradients of the gates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.layers import Linear


def document_begins(document_ids_BT: jax.Array) -> jax.Array:
  """bool `[B, T]`: True at the first token of every document of a row but the row's first."""
  return jnp.diff(document_ids_BT, axis=1, prepend=document_ids_BT[:, :1]) != 0


class LSTMState(NamedTuple):
  """Output and memory cell after a token, `[B, U]` each, or `[B, L, U]` for several layers."""

  h_BU: jax.Array
  c_BU: jax.Array

  @classmethod
  def zeros(cls, shape: tuple[int, ...], dtype=jnp.float32) -> LSTMState:
    return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


class OutputState(NamedTuple):
  """Output after a token, `[B, U]`, or `[B, L, U]` for several layers."""

  h_BU: jax.Array

  @classmethod
  def zeros(cls, shape: tuple[int, ...], dtype=jnp.float32) -> OutputState:
    return cls(jnp.zeros(shape, dtype))


class RecurrentLayer(nnx.Module):
  """`GATES` vectors of U units from the input and as many from the last output; `cell` combines
  them and the last state to the next one."""

  GATES: ClassVar[int]
  State: ClassVar[type]
  recurrent_bias: ClassVar[bool] = False

  def __init__(self, key, width: int, units: int):
    into, recurrent = jax.random.split(key)
    self.input = Linear(into, (width,), (self.GATES, units))
    self.recurrent = Linear(recurrent, (units,), (self.GATES, units), self.recurrent_bias)

  @staticmethod
  def cell(from_input_BGU: jax.Array, from_output_BGU: jax.Array, state: Any) -> Any:
    """The next state."""
    raise NotImplementedError

  def __call__(
    self,
    x_BTD: jax.Array,
    real_BT: jax.Array,
    reverse: bool = False,
    *,
    start: Any | None = None,
    begins_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Outputs `[B, T, U]` and the state after the last token, or after the first with `reverse`.

    real_BT: bool; padding does not change the state. start: the state before the first token; None
    is zeros. begins_BT: bool, True at tokens before which the state becomes zeros.
    """
    from_input = self.input(x_BTD)
    units = from_input.shape[-1]
    state = self.State.zeros((x_BTD.shape[0], units), x_BTD.dtype) if start is None else start
    kernel = self.recurrent.kernel[...].astype(x_BTD.dtype)
    bias = jnp.zeros(kernel.shape[1:], x_BTD.dtype)
    if self.recurrent.bias is not None:
      bias = self.recurrent.bias[...].astype(x_BTD.dtype)
    begins_BT = jnp.zeros(real_BT.shape, bool) if begins_BT is None else begins_BT
    inputs = jnp.moveaxis(from_input, 1, 0), real_BT.T[..., None], begins_BT.T[..., None]
    last, states_TBU = over_time(self.cell, reverse, kernel, bias, inputs, state)
    return jnp.moveaxis(states_TBU, 0, 1), last


class LSTM(RecurrentLayer):
  """Long short-term memory with a forget gate (Gers et al. 2000), U units, gates in torch's order.

      i, f, g, o = split(W x_t + R h_{t-1} + b)
      c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)

  The forget gate's bias starts at 1 (Jozefowicz et al. 2015).
  """

  GATES = 4
  State = LSTMState

  def __init__(self, key, width: int, units: int):
    super().__init__(key, width, units)
    self.input.bias[...] = self.input.bias[...].at[1].set(1.0)

  @staticmethod
  def cell(from_input_BGU, from_output_BGU, state):
    i, f, g, o = jnp.moveaxis(from_input_BGU + from_output_BGU, -2, 0)
    c_BU = jax.nn.sigmoid(f) * state.c_BU + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(c_BU), c_BU)


class GRU(RecurrentLayer):
  """Gated recurrent units (Cho et al. 2014), as torch has them: the reset gate after the product.

  r, z = sigmoid(split(W x_t + b + R h_{t-1} + d))      n = tanh(W x_t + b + r (R h_{t-1} + d))
  h_t = (1 - z) n + z h_{t-1}
  """

  GATES = 3
  State = OutputState
  recurrent_bias = True

  @staticmethod
  def cell(from_input_BGU, from_output_BGU, state):
    (r, z, n), (hr, hz, hn) = (jnp.moveaxis(x, -2, 0) for x in (from_input_BGU, from_output_BGU))
    z = jax.nn.sigmoid(z + hz)
    new = jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
    return OutputState((1 - z) * new + z * state.h_BU)


class RNN(RecurrentLayer):
  """The simple recurrent network (Elman 1990): `h_t = tanh(W x_t + R h_{t-1} + b)`."""

  GATES = 1
  State = OutputState

  @staticmethod
  def cell(from_input_BGU, from_output_BGU, state):
    return OutputState(jnp.tanh(from_input_BGU + from_output_BGU)[..., 0, :])


def _next(cell: Callable, inputs, from_output, before) -> Any:
  """The state after a token: padding keeps the one before."""
  from_input, real, _ = inputs
  new = cell(from_input, from_output, before)
  return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, before)


def _before(state, begins) -> Any:
  return jax.tree.map(lambda s: jnp.where(begins, 0, s), state)


def _product(h_BU: jax.Array, kernel_UGV: jax.Array, bias_GV: jax.Array) -> jax.Array:
  return (h_BU @ kernel_UGV.reshape(len(kernel_UGV), -1)).reshape(-1, *bias_GV.shape) + bias_GV


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def over_time(
  cell: Callable, reverse: bool, kernel_UGV: jax.Array, bias_GV: jax.Array, inputs: tuple, start
) -> tuple[Any, jax.Array]:
  """The last state and all outputs `[T, B, U]`. inputs: of every token, `[T, B, ...]`: the products
  of its inputs, whether it is real, and whether the state before it becomes zeros."""

  def step(state, inputs):
    before = _before(state, inputs[2])
    state = _next(cell, inputs, _product(before.h_BU, kernel_UGV, bias_GV), before)
    return state, state.h_BU

  return jax.lax.scan(step, start, inputs, reverse=reverse)


def _forward(cell, reverse, kernel_UGV, bias_GV, inputs, start):
  def step(state, inputs):
    before = _before(state, inputs[2])
    from_output = _product(before.h_BU, kernel_UGV, bias_GV)
    state = _next(cell, inputs, from_output, before)
    return state, (state.h_BU, before, from_output)

  last, (outputs, *kept) = jax.lax.scan(step, start, inputs, reverse=reverse)
  return (last, outputs), (kernel_UGV, inputs, kept)


def _backward(cell, reverse, saved, cotangents):
  kernel_UGV, inputs, kept = saved
  last, outputs_TBU = cotangents
  transposed = kernel_UGV.reshape(len(kernel_UGV), -1).T

  def step(of_state, at):
    (from_input, real, begins), before, from_output, of_output = at
    of_state = of_state._replace(h_BU=of_state.h_BU + of_output)

    def following(from_input, from_output, before):
      return _next(cell, (from_input, real, begins), from_output, before)

    _, pull_back = jax.vjp(following, from_input, from_output, before)
    of_input, of_product, of_before = pull_back(of_state)
    of_h = of_product.reshape(len(of_product), -1) @ transposed
    of_before = of_before._replace(h_BU=of_before.h_BU + of_h)
    return _before(of_before, begins), (of_input, of_product)

  over = (inputs, *kept, outputs_TBU)
  of_start, (of_inputs, of_products) = jax.lax.scan(step, last, over, reverse=not reverse)
  h_RU = kept[0].h_BU.reshape(-1, len(kernel_UGV))
  of_kernel = h_RU.T @ of_products.reshape(len(h_RU), -1)
  of_bias = of_products.sum(axis=(0, 1))
  return of_kernel.reshape(kernel_UGV.shape), of_bias, (of_inputs, None, None), of_start


over_time.defvjp(_forward, _backward)


class ProjectedLSTM(nnx.Module):
  """An LSTM of U units whose output is a projection to P (Sak et al. 2014), with clipped cells and
  outputs (TensorFlow 1, `LSTMCell`). Its state is the projected output and the cell."""

  def __init__(self, key, width: int, units: int, projection: int, clip: float):
    into, recurrent, output = jax.random.split(key, 3)
    self.input = Linear(into, (width,), (4, units))
    self.input.bias[...] = self.input.bias[...].at[1].set(1.0)
    self.recurrent = Linear(recurrent, (projection,), (4, units), bias=False)
    self.output = Linear(output, (units,), (projection,), bias=False)
    self.clip = clip

  def __call__(
    self,
    x_BTD: jax.Array,
    real_BT: jax.Array,
    reverse: bool,
    start: LSTMState,
    begins_BT: jax.Array,
  ) -> tuple[jax.Array, LSTMState]:
    """Outputs `[B, T, P]`, and the state after the last token; after the first with `reverse`.

    begins_BT: bool, True at tokens before which, in the order of reading, the state becomes zeros.
    """

    def step(state, inputs):
      from_input, real, begins = inputs
      state = _before(state, begins)
      i, f, g, o = jnp.moveaxis(from_input + self.recurrent(state.h_BU), -2, 0)
      c_BU = jax.nn.sigmoid(f) * state.c_BU + jax.nn.sigmoid(i) * jnp.tanh(g)
      c_BU = jnp.clip(c_BU, -self.clip, self.clip)
      h_BP = self.output(jax.nn.sigmoid(o) * jnp.tanh(c_BU))
      new = LSTMState(jnp.clip(h_BP, -self.clip, self.clip), c_BU)
      state = jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)
      return state, state.h_BU

    inputs = jnp.moveaxis(self.input(x_BTD), 1, 0), real_BT.T[..., None], begins_BT.T[..., None]
    last, states = jax.lax.scan(step, start, inputs, reverse=reverse)
    return jnp.moveaxis(states, 0, 1), last


class BiLSTM(nnx.Module):
  """Two LSTMs of D / 2 units that read in opposite directions. The backward one begins at the last
  real token of a row."""

  def __init__(self, key, width: int, inputs: int | None = None):
    """width: D of the output. inputs: width of the input; None is D."""
    forward, backward = jax.random.split(key)
    self.forward = LSTM(forward, inputs or width, width // 2)
    self.backward = LSTM(backward, inputs or width, width // 2)

  def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """`[B, T, D]`: the outputs of both directions at every token, concatenated."""
    forward, _ = self.forward(x_BTD, real_BT)
    backward, _ = self.backward(x_BTD, real_BT, reverse=True)
    return jnp.concatenate([forward, backward], axis=-1)

  def last(self, x_BTD: jax.Array, length_B: jax.Array) -> jax.Array:
    """`[B, D]`: the last outputs of both directions, concatenated."""
    real_BT = jnp.arange(x_BTD.shape[1]) < length_B[:, None]
    _, forward = self.forward(x_BTD, real_BT)
    _, backward = self.backward(x_BTD, real_BT, reverse=True)
    return jnp.concatenate([forward.h_BU, backward.h_BU], axis=-1)
