"""Schedules and AdamW against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.train.optim import AdamW, is_decayed


def first_update(optim, gradient):
  transform = optim.transform(steps=1000)
  params = {"kernel": jnp.zeros_like(gradient)}
  updates, _ = transform.update({"kernel": gradient}, transform.init(params), params)
  return np.asarray(updates["kernel"])


@pytest.mark.parametrize(("corrected", "factor"), [(False, 0.1 / np.sqrt(0.001)), (True, 1.0)])
def test_first_step_is_3_162_lr_without_bias_correction_and_1_lr_with(corrected, factor):
  optim = AdamW(
    peak=1e-3, warmup=0, schedule="constant", decay=0, clip=0, bias_correction=corrected
  )
  gradient = jnp.array([3.0, -0.5, 2.0])
  np.testing.assert_allclose(
    first_update(optim, gradient), -1e-3 * factor * np.sign(gradient), rtol=1e-4
  )


def test_uncorrected_adam_follows_bert_s_formula_for_many_steps():
  optim = AdamW(peak=1e-3, warmup=10, clip=0, decay=0.01).paper_faithful()
  transform, rate = optim.transform(40), optim.learning_rate(40)
  rng = np.random.default_rng(0)
  w = rng.normal(size=5)
  m, v = np.zeros(5), np.zeros(5)
  params = {"kernel": jnp.asarray(w, jnp.float32)}
  state = transform.init(params)
  for step in range(20):
    g = rng.normal(size=5)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w = w - float(rate(step)) * (m / (np.sqrt(v) + 1e-6) + 0.01 * w)
    updates, state = transform.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["kernel"], w, rtol=1e-5)


def test_bert_s_schedule_decays_under_its_warmup():
  rate = AdamW(peak=1e-4, warmup=10_000).paper_faithful().learning_rate(1_000_000)
  assert rate(0) == 0
  np.testing.assert_allclose(rate(5_000), 0.5e-4, rtol=1e-5)
  np.testing.assert_allclose(rate(10_000), 1e-4 * (1 - 0.01), rtol=1e-5)
  assert rate(1_000_000) == 0


@pytest.mark.parametrize(
  ("schedule", "middle", "end"), [("linear", 0.5, 0), ("cosine", 0.5, 0), ("constant", 1, 1)]
)
def test_recommended_schedules_reach_the_peak_and_end_at_zero(schedule, middle, end):
  rate = AdamW(peak=2.0, warmup=10, schedule=schedule).learning_rate(110)
  np.testing.assert_allclose(rate(0), 0.2, rtol=1e-6)
  np.testing.assert_allclose(rate(9), 2.0, rtol=1e-6)
  np.testing.assert_allclose(rate(10), 2.0, rtol=1e-6)
  np.testing.assert_allclose(rate(60), 2.0 * middle, rtol=1e-5)
  np.testing.assert_allclose(rate(110), 2.0 * end, atol=1e-6)


def test_biases_and_gains_of_norms_are_not_decayed_and_everything_else_is():
  model = Bert(vocab_size=20, layers=2, width=8, heads=2, positions=8)
  params = jax.eval_shape(lambda key: model.init(key, {"mlm": 0, "nsp": 0}), jax.random.key(0))
  decayed = jax.tree_util.tree_leaves_with_path(is_decayed(params))
  for path, flag in decayed:
    name = jax.tree_util.keystr(path)
    assert flag == (".kernel" in name or ".table" in name), name
  assert {flag for _, flag in decayed} == {True, False}


def test_decay_is_scaled_by_the_learning_rate_once():
  optim = AdamW(peak=0.1, warmup=0, schedule="constant", decay=0.5, clip=0)
  transform = optim.transform(10)
  params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zeros, transform.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
  assert updates["bias"] == 0


@pytest.mark.parametrize(
  "bad", [{"peak": 0}, {"warmup": -1}, {"b2": 1.0}, {"eps": 0.0}, {"decay": -0.1}]
)
def test_nonsense_is_refused(bad):
  with pytest.raises(UserError, match=f"optim.{next(iter(bad))}"):
    AdamW(**bad)
