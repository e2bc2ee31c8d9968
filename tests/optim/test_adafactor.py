"""Adafactor is optax's where that means the same, and treats every layer of a stack by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plm_jax.errors import UserError
from plm_jax.models.parameters import role
from plm_jax.optim.adafactor import Adafactor, matrix_shape
from plm_jax.optim.adamw import AdamW, noam_peak


def tree(**leaves):
  rng = np.random.default_rng(0)
  return {
    name: {kind: jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)}
    for name, (kind, shape) in leaves.items()
  }


def steps(transform, params, count=4):
  """The parameters after a few updates with gradients of very different sizes."""
  state, update = transform.init(params), jax.jit(transform.update)
  for step in range(count):
    drawn = np.random.default_rng(step).normal(0, 10.0**step, 1000)
    grads = jax.tree.map(
      lambda x, drawn=drawn: jnp.asarray(np.resize(drawn, x.shape), jnp.float32), params
    )
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_matrices_and_vectors_are_updated_as_by_optax():
  params = tree(pooler=("kernel", (12, 9)), token=("table", (20, 8)), norm=("gain", (9,)))
  ours, state = steps(Adafactor(factored=8, hold=2).transform(10), params)
  theirs = optax.adafactor(Adafactor(hold=2).learning_rate(10), min_dim_size_to_factor=8)
  expected, _ = steps(theirs, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected)
  assert state[0].v_row["pooler"]["kernel"].shape == (12,)
  assert state[0].v["pooler"]["kernel"] is None and state[0].v_row["norm"]["gain"] is None


@pytest.mark.slow
def test_a_stack_is_updated_as_its_layers_are_and_heads_as_one_matrix():
  rng = np.random.default_rng(0)
  stacked = jnp.asarray(rng.normal(0, [[[[0.1]]], [[[2.0]]]], (2, 12, 3, 4)), jnp.float32)
  optim = Adafactor(factored=8).transform(10)
  grads = jnp.asarray(rng.normal(0, 1, stacked.shape), jnp.float32)
  stack = lambda x: {"blocks": {"attention": {"query": {"kernel": x}}}}  # noqa: E731
  whole = stack(stacked)
  found, _ = optim.update(stack(grads), optim.init(whole), whole)
  for layer in range(2):
    alone = {"pooler": {"kernel": stacked[layer].reshape(12, 12)}}
    update, _ = optim.update(
      {"pooler": {"kernel": grads[layer].reshape(12, 12)}}, optim.init(alone), alone
    )
    got = found["blocks"]["attention"]["query"]["kernel"][layer].reshape(12, 12)
    np.testing.assert_allclose(got, update["pooler"]["kernel"], rtol=1e-5)


def test_the_matrix_of_attention_s_output_contracts_heads_and_their_width():
  matrix = lambda path, *shape: matrix_shape(path, role(path), shape)  # noqa: E731
  assert matrix("blocks/attention/output/kernel", 2, 3, 4, 12) == (2, 12, 12)
  assert matrix("blocks/attention/query/kernel", 2, 12, 3, 4) == (2, 12, 12)
  assert matrix("blocks/inner/attention/output/kernel", 2, 5, 3, 4, 12) == (2, 5, 12, 12)
  assert matrix("token/table", 50, 12) == (50, 12)
  assert matrix("norm/gain", 12) is None


def test_t5_s_learning_rate_is_a_hundredth_up_to_step_10_000_and_then_the_inverse_root():
  rate = Adafactor().learning_rate(2**19)
  for step, expected in ((1, 0.01), (10_000, 0.01), (40_000, 0.005), (2**19, 2**-9.5)):
    assert float(rate(step - 1)) == pytest.approx(expected)
  assert float(Adafactor(peak=1e-3, schedule="constant").learning_rate(9)(10**6)) == pytest.approx(
    1e-3
  )
  assert float(Adafactor(warmup=10).learning_rate(100)(4)) == pytest.approx(0.005)


def test_the_noam_schedule_peaks_at_the_end_of_its_warmup():
  rate = AdamW(peak=noam_peak(512, 4000), warmup=4000, schedule="inverse_sqrt").learning_rate(10**5)
  for step in (1, 100, 4000, 4001, 100_000):
    expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
    assert float(rate(step - 1)) == pytest.approx(expected, rel=1e-5)
  assert noam_peak(512, 4000) == pytest.approx(6.99e-4, abs=1e-6)


@pytest.mark.parametrize(("field", "value"), [("peak", 0), ("hold", 0), ("decay_rate", 2.0)])
def test_nonsense_is_refused(field, value):
  with pytest.raises(UserError, match=f"optim.{field}"):
    Adafactor(**{field: value})
