"""What is done to scores before a token is chosen, against the definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.decode import logits
from plm_jax.decode.rules import Rules
from plm_jax.errors import UserError

SCORES = np.random.default_rng(0).normal(size=(40, 17)).astype(np.float32) * 2


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_holds_p(p):
  kept = np.isfinite(logits.top_p(jnp.asarray(SCORES), p))
  for row, keep in zip(SCORES, kept):
    probabilities = softmax(row.astype(np.float64))
    assert probabilities[keep].sum() >= p - 1e-6
    assert probabilities[keep].sum() - probabilities[keep].min() < p + 1e-6  # none can be spared
    assert probabilities[keep].min() >= probabilities[~keep].max(initial=0)  # and none is smaller


def test_top_p_of_equal_scores_keeps_no_more_than_it_needs():
  assert np.isfinite(logits.top_p(jnp.zeros((1, 10)), 0.45)).sum() == 5


@pytest.mark.parametrize("k", [1, 3, 17, 30])
def test_top_k_keeps_the_k_highest(k):
  kept = np.isfinite(logits.top_k(jnp.asarray(SCORES), k))
  assert (kept.sum(axis=1) == min(k, 17)).all()
  for row, keep in zip(SCORES, kept):
    assert row[keep].min() > row[~keep].max(initial=-np.inf)
  assert np.isfinite(logits.top_k(jnp.zeros((1, 9)), 4)).sum() == 4  # even where all are equal


def test_a_penalty_makes_what_was_seen_less_likely_whatever_its_sign():
  seen = np.random.default_rng(1).random(SCORES.shape) < 0.5
  after = np.asarray(logits.repetition_penalty(jnp.asarray(SCORES), seen, 1.3))
  assert (after[seen] < SCORES[seen]).all()
  np.testing.assert_array_equal(after[~seen], SCORES[~seen])
  np.testing.assert_allclose(
    after[seen & (SCORES > 0)], SCORES[seen & (SCORES > 0)] / 1.3, rtol=1e-6
  )


def test_a_text_does_not_end_too_early():
  after = np.asarray(logits.not_yet(jnp.asarray(SCORES), jnp.array([3, 5]), True))
  assert not np.isfinite(after[:, [3, 5]]).any()
  assert np.isfinite(np.delete(after, [3, 5], axis=1)).all()
  np.testing.assert_array_equal(logits.not_yet(jnp.asarray(SCORES), jnp.array([3]), False), SCORES)


@pytest.mark.parametrize(
  "rules",
  [
    {"temperature": -1.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"temperature": 1.0, "top_p": 0.0},
    {"beams": 0},
    {"beams": 2, "temperature": 1.0},
    {"length_penalty": 2.0},
    {"repetition_penalty": 0.0},
    {"min_length": 9, "max_length": 8},
    {"max_length": 0},
  ],
)
def test_rules_that_contradict_each_other_are_refused(rules):
  with pytest.raises(UserError, match=next(reversed(rules))):
    Rules(**rules)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
  ("name", "value"),
  [
    *((n, v) for n in ("temperature", "repetition_penalty") for v in (1e300, 1e-300, INF, NAN)),
    *(("length_penalty", v) for v in (1e300, -1e300, INF, NAN)),
    *(("top_p", v) for v in (1e300, -1e-300, INF, NAN)),
  ],
)
def test_numbers_that_float32_cannot_bear_are_refused(name, value):
  with pytest.raises(UserError, match=name):
    Rules(**{"beams": 2 if name == "length_penalty" else 1} | {name: value})


@pytest.mark.parametrize("value", [1e6, 1e-6])
def test_the_furthest_numbers_leave_scores_finite(value):
  rules = Rules(temperature=value, repetition_penalty=value)
  seen = np.arange(SCORES.shape[1]) % 2 == 0
  after = rules.drawn_from(rules.applied(jnp.asarray(SCORES), seen, jnp.array([3]), 0))
  assert np.isfinite(after).all()
