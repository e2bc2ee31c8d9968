"""The loss of every position, taken in parts where the vocabulary is large."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.objectives import objective
from plm_jax.objectives.objective import token_terms


class Head:
  """Stands for a model: logits by one table."""

  def __init__(self, table):
    self.table = table

  def token_logits(self, hidden):
    return (hidden @ self.table).astype(jnp.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("limit", [1, 100, 333])
def test_parts_of_positions_change_no_number_and_no_gradient(limit, smoothing, monkeypatch):
  rng = np.random.default_rng(0)
  hidden, table = rng.normal(size=(3, 7, 5)), rng.normal(size=(5, 11))
  targets = rng.integers(0, 11, (3, 7))
  weights = (rng.random((3, 7)) < 0.7).astype(np.float32)

  def terms(table, hidden):
    found = token_terms(Head(table), hidden, targets, weights, smoothing, 1e-3 * bool(smoothing))
    return found["loss"][0], found

  def run():
    return jax.value_and_grad(terms, (0, 1), has_aux=True)(table, jnp.asarray(hidden))

  whole = run()
  monkeypatch.setattr(objective, "LOGITS", limit)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, run())


def test_no_array_of_all_logits_is_made(monkeypatch):
  monkeypatch.setattr(objective, "LOGITS", 3 * 2 * 1000)

  def loss(table, hidden):
    ones = jnp.ones((3, 8))
    return token_terms(Head(table), hidden, ones.astype(int), ones)["loss"][0]

  shapes = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((5, 1000)), jnp.ones((3, 8, 5))))
  assert "f32[3,2,1000]" in shapes and "f32[3,8,1000]" not in shapes


def test_logits_of_parts_are_computed_once(monkeypatch):
  """Their gradients are computed beside them: three products with the table, not four."""
  monkeypatch.setattr(objective, "LOGITS", 3 * 2 * 1000)
  ones = jnp.ones((3, 8))

  def loss(table, hidden):
    return token_terms(Head(table), hidden, ones.astype(int), ones)["loss"][0]

  jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((5, 1000)), jnp.ones((3, 8, 5))))
  assert jaxpr.count("dot_general[") == 3


def test_parts_are_even_and_hold_few_positions_of_padding(monkeypatch):
  """786 parts of two positions once stood for 1,024 positions."""
  monkeypatch.setattr(objective, "LOGITS", 3 * 1000 * 2)
  model = Head(jnp.ones((5, 1000)))
  for positions, shape in {1024: (512, 3, 2, 5), 7: (4, 3, 2, 5), 1: (1, 3, 1, 5)}.items():
    (parts,) = objective.in_parts(model, (jnp.ones((3, positions, 5)),))
    assert parts.shape == shape


def test_devices_that_split_the_rows_take_parts_of_their_own(monkeypatch):
  monkeypatch.setattr(objective, "rows_are_split_by", lambda: 4)
  monkeypatch.setattr(objective, "LOGITS", 3 * 1000 * 2)
  memory = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 32 * 6000})
  monkeypatch.setattr(jax, "local_devices", lambda: [memory])
  assert objective.most_logits() == 4 * 6000
