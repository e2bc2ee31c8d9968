"""Updates of touched rows equal dense ones, for rows that are read twice, in parts, on a mesh."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from plm_jax.data.kept_words import KeptWords
from plm_jax.data.tokenizers import Words
from plm_jax.errors import UserError
from plm_jax.models.parameters import named
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.word2vec import SkipGram
from plm_jax.optim.sgd import SGD, Adagrad
from plm_jax.sharding import MeshShape
from plm_jax.train.touched import added, taken
from tests import toy_run
from tests.toy_run import TOY, assert_equal, run

WORD2VEC = dataclasses.replace(
  TOY,
  model=WordVectors(width=8),
  objectives=(SkipGram(window=3, negatives=3, block=8, shared=8),),
  data=dataclasses.replace(
    TOY.data,
    length=16,
    tokenizer=Words(vocab_size=64, min_count=1, drop_unknown=True),
    segments=KeptWords(sample=1e-2),
  ),
  optim=SGD(peak=0.5),
)


def batches_of(experiment, steps):
  train, _ = toy_run.batches(experiment)
  return [train(step) for step in range(steps)]


def final(experiment, steps=3):
  program = toy_run.program(experiment)
  state = program.create()
  for batch in batches_of(experiment, steps):
    state = program.step(state, batch)
  return jax.device_get(state)


def tables(state):
  return {name: np.asarray(getattr(state.params, name).table) for name in ("token", "output")}


def by_hand(experiment, steps=3):
  """The tables after descent on the dense gradient of the sum."""
  (objective,), optim = experiment.objectives, experiment.optim
  experiment = experiment.resolve(64)
  params = toy_run.program(experiment).create().params
  squares = jax.tree.map(lambda x: np.full(x.shape, 1.0, np.float32), params)
  rate = optim.learning_rate(experiment.steps)
  for step, batch in enumerate(batches_of(experiment, steps)):

    def loss(params, batch=batch):
      hidden = params(batch, experiment.compute)
      return objective.loss(params, hidden, batch, None)["loss"][0]

    grads = jax.grad(loss)(params)
    scaled = grads
    if isinstance(optim, Adagrad):
      scaled = jax.tree.map(lambda g, G: g / np.sqrt(G), grads, squares)
    params = jax.tree.map(lambda x, g, s=step: x - rate(s) * g, params, scaled)
  return {name: np.asarray(getattr(params, name).table) for name in ("token", "output")}


@pytest.mark.slow
@pytest.mark.parametrize("optim", [SGD(peak=0.5), Adagrad(peak=0.5)])
def test_touched_rows_move_as_by_the_dense_gradient_of_the_sum(optim):
  experiment = dataclasses.replace(WORD2VEC, optim=optim)
  steps = 1 if isinstance(optim, Adagrad) else 3  # its later divisors add squares of each reading
  ours, expected = tables(final(experiment, steps)), by_hand(experiment, steps)
  for name in expected:
    np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-6)
  assert abs(expected["output"]).max() > 0.01


def test_rows_that_no_batch_reads_keep_their_values_and_moments():
  experiment = dataclasses.replace(WORD2VEC, optim=Adagrad(peak=0.5))
  before, after = toy_run.program(experiment).create(), final(experiment, 1)
  (batch,) = batches_of(experiment, 1)
  for name, read in (("token", batch["input_ids"]), ("output", batch["outputs"])):
    other = np.setdiff1d(np.arange(64), read)
    assert len(other)
    old, new = (np.asarray(getattr(s.params, name).table) for s in (before, after))
    np.testing.assert_array_equal(old[other], new[other])
    (G,) = [x for path, x in named(after.opt_state) if path.endswith(f"{name}/table")]
    assert (G[other] == 1).all()
    # The outputs begin at zero, and so do the first gradients of the tokens.
    assert (G[np.unique(read)] > 1).any() == (name == "output")


def test_rows_that_are_read_twice_are_added():
  tree, ids = {"token": {"table": np.zeros((4, 2))}}, {"token/table": np.array([[1, 3], [1, 1]])}
  tree = jax.tree.map(jax.numpy.asarray, tree)
  rows = taken(tree, ids)["token"]["table"] + 1
  moved = added(tree, {"token": {"table": rows}}, ids)["token"]["table"]
  np.testing.assert_array_equal(moved[:, 0], [0, 3, 0, 1])


def test_parts_are_read_one_after_the_other():
  """Two parts of a step are two steps of half the rows."""
  halves = dataclasses.replace(
    WORD2VEC, global_batch=4, steps=24, optim=dataclasses.replace(WORD2VEC.optim)
  )
  parts = dataclasses.replace(WORD2VEC, optim=dataclasses.replace(WORD2VEC.optim, updates=2))
  program = toy_run.program(halves)
  state = program.create()
  for batch in batches_of(parts, 2):
    for part in (0, 1):  # row i goes to part i mod 2
      state = program.step(state, {name: x[part::2] for name, x in batch.items()})
  ours, expected = tables(final(parts, 2)), tables(jax.device_get(state))
  for name in expected:
    np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("updates", [1, 2])
def test_devices_do_not_change_the_vectors(updates):
  optim = dataclasses.replace(WORD2VEC.optim, updates=updates)
  one = dataclasses.replace(WORD2VEC, optim=optim)
  many = dataclasses.replace(one, mesh=MeshShape(data=4))
  ours, expected = tables(final(many)), tables(final(one))
  for name in expected:
    np.testing.assert_allclose(ours[name], expected[name], rtol=1e-4, atol=1e-6)


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(tmp_path):
  experiment = dataclasses.replace(WORD2VEC, optim=Adagrad(peak=0.02, updates=2))
  state, records = run(tmp_path / "whole", experiment)
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed/checkpoints/12")
  resumed, again = run(tmp_path / "killed", experiment)
  assert_equal(resumed, state)
  assert again == records
  valid = [record for record in records if record["split"] == "valid"]
  assert valid[-1]["skipgram/loss"] < valid[0]["skipgram/loss"]


def test_an_update_that_is_not_finite_is_not_applied():
  experiment = dataclasses.replace(WORD2VEC, optim=SGD(peak=1e30, updates=2))
  program = toy_run.program(experiment)
  state = program.create()
  for batch in batches_of(experiment, 4):
    state = program.step(state, batch)
  assert int(state.first_bad) > 0
  assert all(np.isfinite(table).all() for table in tables(jax.device_get(state)).values())


def test_parts_that_do_not_divide_the_rows_are_refused():
  optim = dataclasses.replace(WORD2VEC.optim, updates=3)
  with pytest.raises(UserError, match="must be a multiple of 3"):
    toy_run.program(dataclasses.replace(WORD2VEC, optim=optim))
