"""Recurrent layers: the LSTM against its formula in float64, all against torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.models import recurrent
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.parameters import named, path_name
from plm_jax.models.recurrent import GRU, LSTM, RNN, BiLSTM
from tests.models.torch_recurrent import (
  GATES,
  GOLDEN,
  LAYERS,
  LENGTHS,
  WIDTH,
  numbers,
  numbers_of_both,
  torch_results,
  torch_results_of_both,
)

KINDS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


def reference(layer, x_TD, units):
  def sigmoid(z):
    return 1 / (1 + np.exp(-z))

  w, r, b = (np.asarray(p[...], np.float64) for p in
             (layer.input.kernel, layer.recurrent.kernel, layer.input.bias))  # fmt: skip
  h, c, states = np.zeros(units), np.zeros(units), []
  for x in np.asarray(x_TD, np.float64):
    i, f, g, o = np.einsum("d,dgu->gu", x, w) + np.einsum("h,hgu->gu", h, r) + b
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    states.append(h)
  return np.array(states)


def test_lstm_follows_its_equations_in_both_directions():
  layer = LSTM(jax.random.key(0), 6, 5)
  layer.input.kernel[...] = 20 * layer.input.kernel[...]
  layer.recurrent.kernel[...] = 20 * layer.recurrent.kernel[...]
  x = jax.random.normal(jax.random.key(1), (2, 7, 6))
  real = jnp.ones((2, 7), bool)
  for reverse in (False, True):
    states, last = layer(x, real, reverse)
    order = slice(None, None, -1) if reverse else slice(None)
    for row in range(2):
      expected = reference(layer, x[row, order], 5)
      np.testing.assert_allclose(states[row, order], expected, atol=1e-5)
      np.testing.assert_allclose(last.h_BU[row], expected[-1], atol=1e-5)


def our_results(kind):
  """Those of `torch_results`."""
  given = numbers(kind)
  layers = [KINDS[kind](jax.random.key(0), WIDTH, WIDTH) for _ in range(LAYERS)]
  for number, layer in enumerate(layers):
    layer.input.kernel[...] = given[f"input/{number}"]
    layer.input.bias[...] = given[f"bias/{number}"]
    layer.recurrent.kernel[...] = given[f"recurrent/{number}"]
    if layer.recurrent.bias is not None:
      layer.recurrent.bias[...] = given[f"recurrent_bias/{number}"]

  def run(layers, x):
    last = []
    for number, layer in enumerate(layers):
      start = layer.State(*(given[name][number] for name in "hc"[: len(layer.State._fields)]))
      x, state = layer(x, jnp.ones(x.shape[:2], bool), start=start)
      last.append(state)
    return jnp.square(x).sum(), (x, last)

  differentiated = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
  (_, (outputs, last)), (of_layers, of_x) = differentiated(layers, given["x"])
  found = {"outputs": outputs, "of_x": of_x}
  found |= dict(zip("hc", map(np.stack, zip(*last, strict=True)), strict=False))
  for number, of_layer in enumerate(of_layers):
    found[f"of_input/{number}"] = of_layer.input.kernel[...]
    found[f"of_recurrent/{number}"] = of_layer.recurrent.kernel[...]
    found[f"of_bias/{number}"] = of_layer.input.bias[...]
  return found


@pytest.mark.parametrize("kind", GATES)
def test_outputs_states_and_gradients_are_torchs(kind):
  expected, ours = json.loads(GOLDEN.read_text())[kind], our_results(kind)
  assert ours.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(ours[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GATES)
def test_the_golden_numbers_are_those_of_torch_here(kind):
  pytest.importorskip("torch")
  stored = json.loads(GOLDEN.read_text())[kind]
  for name, value in torch_results(kind).items():
    np.testing.assert_allclose(stored[name], value, atol=1e-6, rtol=1e-5, err_msg=name)


def test_both_directions_have_torchs_outputs_and_gradients_on_packed_rows():
  given = numbers_of_both()
  layers = [BiLSTM(jax.random.key(0), WIDTH) for _ in range(LAYERS)]
  layers = jax.tree_util.tree_map_with_path(lambda path, _: given[path_name(path)], layers)
  real = jnp.arange(given["x"].shape[1]) < jnp.array(LENGTHS)[:, None]

  def run(layers, x):
    for layer in layers:
      x = layer(x, real)
    outputs = jnp.where(real[..., None], x, 0)
    return jnp.square(outputs).sum(), outputs

  differentiated = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
  (_, outputs), (of_layers, of_x) = differentiated(layers, given["x"])
  found = dict(named(of_layers)) | {"outputs": outputs, "x": of_x}
  expected = json.loads(GOLDEN.read_text())["BiLSTM"]
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_golden_numbers_of_both_directions_are_those_of_torch_here():
  pytest.importorskip("torch")
  stored = json.loads(GOLDEN.read_text())["BiLSTM"]
  for name, value in torch_results_of_both().items():
    np.testing.assert_allclose(stored[name], value, atol=1e-6, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_hand_written_gradient_is_that_of_jax(kind, reverse, monkeypatch):
  layer = KINDS[kind](jax.random.key(0), 4, 5)
  layer = jax.tree.map(lambda x: 10 * x, layer)
  x = jax.random.normal(jax.random.key(1), (3, 6, 4))
  real = jnp.arange(6) < jnp.array([6, 4, 2])[:, None]
  begins = jnp.arange(6) == jnp.array([0, 3, 1])[:, None]
  start = jax.tree.map(lambda s: s + 0.3, layer.State.zeros((3, 5)))

  def loss(layer, x, start):
    states, last = layer(x, real, reverse, start=start, begins_BT=begins)
    return jnp.square(states).sum() + sum(jnp.sin(s).sum() for s in last)

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(layer, x, start)
  monkeypatch.setattr(recurrent, "over_time", recurrent.over_time.fun)
  expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(layer, x, start)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradients, expected
  )


def test_padding_does_not_reach_the_last_states():
  layer = BiLSTM(jax.random.key(0), 6)
  x = jax.random.normal(jax.random.key(1), (1, 7, 6))
  short = layer.last(x[:, :4], jnp.array([4]))
  np.testing.assert_allclose(layer.last(x, jnp.array([4])), short, atol=1e-6)
  assert not np.allclose(layer.last(x, jnp.array([7])), short)


@pytest.mark.slow
def test_a_causal_model_is_pooled_where_it_has_seen_everything():
  toy = Bert(vocab_size=30, layers=1, width=8, heads=2, positions=8, attention="causal")
  model = jax.jit(lambda: toy.init(jax.random.key(0), {"classes": 3}))()
  batch = {
    "input_ids": np.arange(5, 13, dtype=np.int32)[None],
    "segment_ids": np.zeros((1, 8), np.int32),
    "length": np.array([6], np.int32),
  }

  @jax.jit
  def classify(model, batch):
    return model.class_logits(model(batch, Compute()), batch, None)

  def logits(position, token):
    ids = batch["input_ids"].copy()
    ids[0, position] = token
    return classify(model, batch | {"input_ids": ids})

  assert not np.array_equal(logits(5, 5), logits(5, 6))  # the last real token counts
  np.testing.assert_array_equal(logits(6, 5), logits(6, 6))  # padding does not
