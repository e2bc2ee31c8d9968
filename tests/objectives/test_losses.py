"""Losses and accuracies against float64 numpy, with what does not count left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.objectives.objective import cross_entropy, losses_of
from plm_jax.objectives.sop import SOP
from tests.data.toy_store import CLS, PAD, SEP, toy_vocab

VOCAB = toy_vocab(30)
LENGTHS = np.array([12, 9, 5, 7], np.int32)
WEIGHTS = np.array([1, 1, 1, 0], np.float32)  # the last row only fills up the batch


class Model:
  """Stands for a model: hidden states `[B, T, D]` are turned to logits by fixed matrices."""

  rng = np.random.default_rng(0)
  tokens, pair = rng.normal(size=(6, 30)), rng.normal(size=(6, 2))

  def token_logits(self, hidden):
    return (hidden @ self.tokens).astype(jnp.float32)

  def token_logits_at(self, hidden, positions):
    return self.token_logits(np.take_along_axis(hidden, positions[..., None], axis=1))

  def next_sentence_logits(self, hidden, *_):
    return (hidden[:, 0] @ self.pair).astype(jnp.float32)

  sentence_order_logits = next_sentence_logits


@pytest.fixture
def batch():
  rng = np.random.default_rng(1)
  ids = rng.integers(5, 30, (4, 12)).astype(np.int32)
  ids[:, 0] = CLS
  for row, length in enumerate(LENGTHS):
    ids[row, length - 1 :] = SEP
    ids[row, length:] = PAD
  return {
    "input_ids": ids,
    "length": LENGTHS,
    "pair_label": np.array([1, 0, 1, 1], np.int32),
    "row_weight": WEIGHTS,
  }


HIDDEN = np.random.default_rng(2).normal(size=(4, 12, 6)).astype(np.float32)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_losses_and_their_gradients_are_those_of_log_softmax(platform, monkeypatch):
  """A GPU reads the logits once for their maximum and sum."""
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  rng = np.random.default_rng(3)
  logits = jnp.float32(rng.normal(size=(5, 7, 301)) * 30)
  logits = logits.at[0, :, ::2].set(-jnp.inf)
  targets = jnp.int32(rng.integers(0, 150, (5, 7)) * 2 + 1)

  def expected(logits):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

  losses, correct = losses_of(logits, targets)
  np.testing.assert_allclose(losses, expected(logits), rtol=2e-6, atol=2e-6)
  np.testing.assert_array_equal(correct, logits.argmax(-1) == targets)
  gradient_of = jax.grad(lambda x: losses_of(x, targets)[0].sum())
  gradient = gradient_of(logits)
  np.testing.assert_allclose(gradient, jax.grad(lambda x: expected(x).sum())(logits), atol=1e-5)
  second, wanted = (
    jax.grad(lambda x, f=f: jnp.square(f(x)[1:]).sum())(logits)
    for f in (gradient_of, jax.grad(lambda x: expected(x).sum()))
  )
  np.testing.assert_allclose(second[1:], wanted[1:], atol=1e-5)


def reference(logits, targets):
  """(-log softmax, correct) of each prediction, in float64."""
  logits = np.asarray(logits, np.float64)
  loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
  return loss, logits.argmax(-1) == targets


def check(terms, logits, targets):
  loss, correct = reference(logits, np.asarray(targets))
  np.testing.assert_allclose(terms["loss"], (loss.sum(), len(loss)), rtol=1e-5)
  np.testing.assert_allclose(terms["accuracy"], (correct.sum(), len(loss)))


def corrupted(objective, batch):
  return objective.corrupt(batch, Draws(0, 0, np.arange(4)), VOCAB)


def test_mlm_is_the_mean_over_chosen_tokens_of_rows_that_count(batch):
  mlm = MLM(rate=0.3)
  rows = corrupted(mlm, batch)
  logits, targets = [], []
  for row in range(3):
    for position, weight in zip(rows["mlm_positions"][row], rows["mlm_weights"][row]):
      if weight:
        logits.append(HIDDEN[row, position].astype(np.float64) @ Model.tokens)
        targets.append(batch["input_ids"][row, position])
  assert len(targets) == 4 + 3 + 2  # round(.3 * length), the row of no weight not counted
  terms = mlm.loss(Model(), HIDDEN, rows, None)
  check(terms, logits, targets)
  assert mlm.count(rows) == len(targets) == terms["loss"][1]


def test_clm_predicts_each_next_token_of_rows_that_count(batch):
  clm = CLM()
  rows = corrupted(clm, batch)
  np.testing.assert_array_equal(rows["input_ids"], batch["input_ids"])
  pairs = [(row, t) for row in range(3) for t in range(LENGTHS[row] - 1)]
  logits = [HIDDEN[at].astype(np.float64) @ Model.tokens for at in pairs]
  targets = [batch["input_ids"][row, t + 1] for row, t in pairs]
  check(clm.loss(Model(), HIDDEN, rows, None), logits, targets)
  assert clm.count(rows) == len(pairs)


@pytest.mark.parametrize("objective", [NSP(), SOP()])
def test_nsp_and_sop_read_the_first_state_and_the_label_of_the_pair(batch, objective):
  rows = corrupted(objective, batch)
  logits = HIDDEN[:3, 0].astype(np.float64) @ Model.pair
  check(objective.loss(Model(), HIDDEN, rows, None), logits, [1, 0, 1])
  assert objective.count(rows) == 3


@pytest.mark.parametrize("objective", [MLM(rate=0.3), CLM(), NSP(), SOP()])
def test_sums_over_halves_make_the_whole(batch, objective):
  rows = corrupted(objective, batch)

  def terms(part):
    return objective.loss(Model(), HIDDEN[part], {k: v[part] for k, v in rows.items()}, None)

  halves = jax.tree.map(jnp.add, terms(slice(0, 1)), terms(slice(1, 4)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), halves, terms(slice(0, 4)))


@pytest.mark.parametrize("objective", [MLM(rate=0.3), CLM(), NSP(), SOP()])
def test_targets_of_predictions_that_do_not_count_change_nothing(batch, objective):
  rows = corrupted(objective, batch)
  other = dict(rows)
  for name in ("mlm", "clm"):
    if f"{name}_targets" in rows:
      other[f"{name}_targets"] = np.where(rows[f"{name}_weights"] > 0, rows[f"{name}_targets"], 7)
  other["pair_label"] = np.where(WEIGHTS > 0, rows["pair_label"], 0)
  losses = [objective.loss(Model(), HIDDEN, r, None) for r in (rows, other)]
  jax.tree.map(np.testing.assert_array_equal, *losses)
  assert losses[0]["loss"][1] > 0


def test_the_gradient_of_cross_entropy_is_that_of_its_formula():
  rng = np.random.default_rng(3)
  logits, targets = jnp.asarray(rng.normal(size=(4, 6)) * 3), jnp.array([0, 5, 2, 2])
  weights = jnp.array([1.0, 0.5, 0.0, 2.0])

  def formula(logits):
    return -(jax.nn.log_softmax(logits)[jnp.arange(4), targets] * weights).sum()

  ours = jax.grad(lambda logits: cross_entropy(logits, targets, weights)["loss"][0])(logits)
  np.testing.assert_allclose(ours, jax.grad(formula)(logits), atol=1e-6)


def test_cross_entropy_neither_overflows_nor_loses_its_gradient():
  logits = jnp.array([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]])
  targets, weights = jnp.array([0, 1]), jnp.ones(2)

  def loss(logits):
    return cross_entropy(logits, targets, weights)["loss"][0]

  value, gradient = jax.value_and_grad(loss)(logits)
  np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0, 0, 0], [1 / 3, -2 / 3, 1 / 3]], atol=1e-6)
