"""The sampled softmax: its candidates, its corrections, and the full softmax as its limit."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.elmo import Elmo
from plm_jax.models.lstm import Lstm
from plm_jax.objectives.bilm import BiLM
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.objective import cross_entropy
from plm_jax.objectives.sampled_softmax import by_rank, sampled, sampled_terms
from plm_jax.optim.adamw import AdamW
from plm_jax.sharding import MeshShape
from tests import toy_run
from tests.toy_run import TOY

SIZE, WIDTH = 7, 3
NUMBERS = np.random.default_rng(0)
TABLE = NUMBERS.normal(size=(SIZE, WIDTH)).astype(np.float32)
BIAS = NUMBERS.normal(size=SIZE).astype(np.float32)
MODEL = SimpleNamespace(output_at=lambda ids: (jnp.asarray(TABLE)[ids], jnp.asarray(BIAS)[ids]))
HIDDEN = NUMBERS.normal(size=(2, 4, WIDTH)).astype(np.float32)
TARGETS = np.array([[0, 3, 3, 6], [1, 2, 5, 4]], np.int32)
WEIGHTS = np.ones((2, 4), np.float32)


def vocab(counts):
  return Vocab(size=SIZE, special=np.zeros(SIZE, bool), word_start=None, counts=np.array(counts))


def loss_of(number, seed=0, rows=2):
  """The mean loss of `number` draws of each row."""
  batch = sampled(TARGETS, Draws(seed, 0, np.arange(rows)), vocab([1] * SIZE), number)
  terms = sampled_terms(MODEL, HIDDEN, TARGETS, WEIGHTS, batch, batch["target_p"])
  return terms["loss"][0] / terms["loss"][1]


def full_loss():
  total, count = cross_entropy(HIDDEN @ TABLE.T + BIAS, TARGETS, WEIGHTS)["loss"]
  return total / count


def test_with_all_tokens_among_the_candidates_the_loss_is_that_of_the_full_softmax():
  np.testing.assert_allclose(loss_of(400), full_loss(), rtol=1e-5)
  assert abs(loss_of(2) - full_loss()) > 1e-2


def test_tokens_are_drawn_log_uniformly_by_their_rank():
  made = vocab([5, 0, 9, 2, 7, 1, 3])
  order, p = by_rank(made)
  assert order.tolist() == [2, 4, 0, 6, 3, 5, 1]
  np.testing.assert_allclose(p[order], np.log1p(1 / np.arange(1, 8)) / np.log(8), rtol=1e-6)
  assert p.sum() == pytest.approx(1)
  batch = sampled(TARGETS[:1], Draws(0, 0, np.arange(1)), made, 100_000)
  drawn = np.bincount(batch["candidates"][0], minlength=SIZE) / 100_000
  np.testing.assert_allclose(drawn, p, atol=5e-3)
  np.testing.assert_array_equal(batch["target_p"], p[TARGETS[:1]])


def test_the_expected_sum_over_candidates_is_that_over_the_vocabulary():
  """1 / q is the weight of a candidate, so the estimate of the partition function without the
  target has no bias."""
  scores = (HIDDEN @ TABLE.T + BIAS)[0, 0]  # its target is token 0
  expected, estimates = np.exp(scores[1:]).sum(), []
  weights = np.zeros((2, 4), np.float32)
  weights[0, 0] = 1
  made = jax.jit(lambda b: sampled_terms(MODEL, HIDDEN, TARGETS, weights, b, b["target_p"])["loss"])
  _, p = by_rank(v := vocab([1] * SIZE))
  q = 1 - (1 - p[0]) ** 6
  for seed in range(1500):
    batch = sampled(TARGETS, Draws(seed, 0, np.arange(2)), v, 3)
    ratio = np.exp(float(made(batch)[0])) - 1  # the candidates' sum over the target's term
    estimates.append(ratio * np.exp(scores[0]) / q)
  error = np.std(estimates) / np.sqrt(len(estimates))
  assert abs(np.mean(estimates) - expected) < 4 * error < 0.1 * expected


def test_a_candidate_that_is_the_target_is_left_out():
  batch = {"candidates": np.array([[3, 3], [1, 3]]), "candidate_p": np.full((2, 2), 0.2)}
  terms = sampled_terms(MODEL, HIDDEN, TARGETS, WEIGHTS, batch, np.full((2, 4), 0.2, np.float32))
  scores = HIDDEN @ TABLE.T + BIAS
  expected = [
    np.log(np.exp(scores[r, t, list({1, 3, TARGETS[r, t]})]).sum()) - scores[r, t, TARGETS[r, t]]
    for r in range(2)
    for t in range(4)
  ]
  np.testing.assert_allclose(terms["loss"][0], np.sum(expected), rtol=1e-5)


ORDERED = dataclasses.replace(
  TOY,
  objectives=(CLM(),),
  data=dataclasses.replace(TOY.data, length=20, segments=PackedDocuments(ordered=True)),
  optim=AdamW(peak=3e-2, warmup=3),
)
ELMO = Elmo(width=8, cell=8, character_width=3, filters=((1, 4), (3, 4)), longest=8, dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "objective", "mesh"),
  [(Lstm(width=16), CLM, MeshShape(data=8)), (ELMO, BiLM, MeshShape(data=1))],
)
def test_it_trains_on_any_devices_and_is_evaluated_by_the_full_softmax(
  model, objective, mesh, tmp_path
):
  experiment = dataclasses.replace(
    ORDERED, model=model, objectives=(objective(sampled=8),), mesh=mesh
  )
  _, records = toy_run.run(tmp_path / "run", experiment)
  valid = [r[f"{objective.name}/loss"] for r in records if r["split"] == "valid"]
  assert valid[-1] < valid[0] and valid[0] == pytest.approx(np.log(64), rel=0.1)


def test_a_model_without_rows_of_its_output_is_refused():
  experiment = dataclasses.replace(
    TOY, model=Bert(layers=1, width=16, heads=2, attention="causal"), objectives=(CLM(sampled=8),)
  )
  with pytest.raises(UserError, match=r"a sampled softmax needs .* set sampled=0"):
    toy_run.program(experiment)
  with pytest.raises(UserError, match=r"objectives.clm.sampled=-1 must be at least 0"):
    CLM(sampled=-1)
