"""The LSTM against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.recurrent import LSTM, BiLSTM


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


def test_padding_does_not_reach_the_last_states():
  layer = BiLSTM(jax.random.key(0), 6)
  x = jax.random.normal(jax.random.key(1), (1, 7, 6))
  short = layer.last(x[:, :4], jnp.array([4]))
  np.testing.assert_allclose(layer.last(x, jnp.array([4])), short, atol=1e-6)
  assert not np.allclose(layer.last(x, jnp.array([7])), short)


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
