"""Pruned weights stay 0 in training; the right heads and layers go."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.compression.heads import (
  check_heads,
  gated,
  importance,
  most_important,
  without_heads,
)
from plm_jax.compression.layers import check_layers, every_other, with_layers
from plm_jax.compression.pruning import is_pruned, pruned, sparsity
from plm_jax.errors import UserError
from plm_jax.experiment import Tuning
from plm_jax.models.bert import Bert
from plm_jax.models.llama import Llama
from plm_jax.models.lstm import Lstm
from plm_jax.models.parameters import named, with_roles
from plm_jax.objectives.mlm import MLM
from plm_jax.optim.adafactor import Adafactor
from plm_jax.peft.lora import Lora
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.loop import fit
from plm_jax.train.workdir import Workdir
from tests import toy_run
from tests.peft.models import COMPUTE, MODELS, SIZES, base, states
from tests.train.test_step import TOY, program_of, toy_batch

SPARSE = dataclasses.replace(TOY, objectives=(MLM(rate=0.3),), tuning=Tuning(sparse=True))
BERT = Bert(**SIZES | {"width": 16, "heads": 4})


# --- weights --------------------------------------------------------------------------------------


def test_pruning_sets_the_smallest_share_of_every_matrix_to_zero():
  full = base("bert")
  small = pruned(full, 0.75)
  for (path, role, old), new in zip(with_roles(full), jax.tree.leaves(small), strict=True):
    if not is_pruned(path, role):
      np.testing.assert_array_equal(old, new, err_msg=path)
      continue
    for before, after in zip(old, new, strict=True):  # the layers
      kept = np.asarray(after) != 0
      assert kept.mean() == 0.25, path
      assert np.abs(before)[kept].min() >= np.abs(before)[~kept].max(), path
      np.testing.assert_array_equal(np.asarray(after)[kept], np.asarray(before)[kept])
  assert sparsity(small) == 0.75 and sparsity(full) == 0


def trained_from(params, experiment, steps=3):
  program = program_of(experiment)
  shardings = jax.tree.map(lambda x: x.sharding, program.abstract.params)
  params = jax.device_put(params, shardings)
  state = dataclasses.replace(program.create(), params=params)
  for step in range(steps):
    state = program.step(state, to_global(toy_batch(step, experiment), program.mesh))
  return jax.device_get(state.params)


@functools.cache
def start():
  return jax.device_get(pruned(program_of(SPARSE).create().params, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
  "experiment",
  [SPARSE, pytest.param(dataclasses.replace(SPARSE, optim=Adafactor()), marks=pytest.mark.slow)],
  ids=["adamw", "adafactor"],
)
def test_pruned_weights_stay_zero_in_every_update_and_all_others_move(experiment):
  before, after = start(), trained_from(start(), experiment)
  for (path, role, old), new in zip(with_roles(before), jax.tree.leaves(after), strict=True):
    zero = old == 0
    if is_pruned(path, role):
      assert zero.mean() == 0.5 and (new[zero] == 0).all(), path
      assert (new[~zero] != old[~zero]).mean() > 0.9, path


@pytest.mark.slow
def test_without_the_setting_pruned_weights_grow_again():
  after = trained_from(start(), dataclasses.replace(SPARSE, tuning=Tuning()))
  assert sparsity(after) < 0.1


@pytest.mark.slow
def test_eight_devices_keep_the_same_zeros_and_train_as_one():
  one = trained_from(start(), SPARSE)
  many = trained_from(
    start(),
    dataclasses.replace(
      SPARSE,
      mesh=MeshShape(data=2, fsdp=2, tensor=2),
      compute=dataclasses.replace(TOY.compute, micro_batches=2),
    ),
  )
  for (path, a), (_, b) in zip(named(one), named(many), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5, err_msg=path)
    np.testing.assert_array_equal(a == 0, b == 0, err_msg=path)


@pytest.mark.slow
def test_a_resumed_sparse_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
  experiment = dataclasses.replace(toy_run.TOY, tuning=Tuning(sparse=True))
  program, data = toy_run.program(experiment), toy_run.data(experiment)
  first = pruned(program.create().params, 0.5)
  ends = []
  for _ in range(2):
    with Workdir(tmp_path) as workdir:
      copy = jax.tree.map(jnp.copy, first)
      state, _ = fit(program, data, workdir, initial=copy, quiet=True)
    ends.append(jax.device_get(state.params))
    shutil.rmtree(tmp_path / "checkpoints" / "12")  # the next begins at step 10
  toy_run.assert_equal(*ends)
  assert sparsity(ends[1]) == sparsity(first) == 0.5


def test_a_frozen_base_cannot_be_kept_sparse():
  with pytest.raises(UserError, match=r"tuning\.sparse have no effect"):
    dataclasses.replace(SPARSE, peft=Lora(rank=2))


# --- heads ----------------------------------------------------------------------------------------


@functools.cache
def four_heads():
  return jax.jit(lambda key: BERT.init(key, {"mlm": 0}))(jax.random.key(3))


def batch_of_rows():
  ids = np.random.default_rng(1).integers(3, 20, (3, 6)).astype(np.int32)
  return {
    "input_ids": ids,
    "segment_ids": np.zeros_like(ids),
    "length": np.array([6, 4, 6], np.int32),
    "row_weight": np.array([1, 1, 0], np.float32),  # the last row only fills up the batch
  }


def loss(model, batch):
  return jnp.sin(model(batch, COMPUTE)).astype(jnp.float32)[:, 0].sum()


@pytest.mark.slow
def test_importance_is_the_mean_size_of_the_slope_at_the_gates():
  params, batch, step = four_heads(), batch_of_rows(), 1e-2
  sums = np.zeros((2, 4))
  of_gates = jax.jit(lambda gates, row: loss(gated(params, gates), row))
  for row in range(2):
    one = {name: x[row : row + 1] for name, x in batch.items()}
    for at in np.ndindex(2, 4):
      slopes = [of_gates(jnp.ones((2, 4)).at[at].add(sign * step), one) for sign in (1, -1)]
      sums[at] += abs(float(slopes[0] - slopes[1])) / (2 * step)
  expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
  result = importance(params, 4, [batch], loss)
  np.testing.assert_allclose(result, expected, atol=0.02)
  np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1)
  assert expected.max() > 1.5 * expected.min()


def test_scanned_layers_have_the_importance_of_unrolled_ones():
  def scanned(model, batch):
    hidden = model(batch, dataclasses.replace(COMPUTE, layers="scan"))
    return jnp.sin(hidden).astype(jnp.float32)[:, 0].sum()

  results = [importance(four_heads(), 4, [batch_of_rows()], f) for f in (loss, scanned)]
  np.testing.assert_allclose(*results, atol=1e-4)


def test_a_model_without_heads_computes_as_one_whose_gates_are_closed():
  params, batch = four_heads(), batch_of_rows()
  kept = most_important(np.array([[0.1, 0.9, 0.3, 0.5], [0.8, 0.2, 0.7, 0.1]]), 2)
  np.testing.assert_array_equal(kept, [[0, 1, 0, 1], [1, 0, 1, 0]])
  config, small = without_heads(BERT, params, kept)
  closed = states(gated(params, jnp.asarray(kept, jnp.float32)), batch=batch)
  np.testing.assert_allclose(states(small, batch=batch), closed, atol=1e-5)
  assert np.abs(closed - states(params, batch=batch)).max() > 1e-3
  shapes = jax.eval_shape(lambda key: config.init(key, {"mlm": 0}), jax.random.key(0))
  assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(small)]


def test_shared_layers_lose_their_heads_together():
  params = base("albert")
  scores = importance(params, 2, [batch_of_rows()], loss)
  assert scores.shape == (1, 2)
  config, small = without_heads(MODELS["albert"], params, most_important(scores, 1))
  assert states(small, batch=batch_of_rows()).shape == (3, 6, 8) and config.heads == 1


@pytest.mark.parametrize(
  ("model", "params", "message"),
  [
    (Lstm(layers=1, width=8, vocab_size=20), None, "Lstm has no single stack of layers"),
    (MODELS["t5"], "t5", "T5 has no single stack"),
    (Llama(**SIZES, hidden=16, kv_heads=1), None, "share 1 keys and values"),
    (dataclasses.replace(BERT, heads=1), None, "has one head in a layer"),
  ],
)
def test_heads_are_refused_where_they_cannot_go(model, params, message):
  head = "mlm" if isinstance(model, Bert) else "lm"
  shapes = jax.eval_shape(lambda key: model.init(key, {head: 0}), jax.random.key(0))
  with pytest.raises(UserError, match=message):
    check_heads(model, base(params) if params else shapes)


# --- layers ---------------------------------------------------------------------------------------


def test_every_other_layer_stays():
  assert every_other(6, 3) == [0, 2, 4]
  assert every_other(12, 6) == [0, 2, 4, 6, 8, 10]
  for kept in (0, 6, 7):
    with pytest.raises(UserError, match="keep fewer"):
      every_other(6, kept)


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_a_model_with_fewer_layers_has_the_chosen_parameters_and_computes(name):
  config, full = MODELS[name], base(name)
  assert check_layers(config, full) == 2
  smaller, small = with_layers(config, full, [1])
  shapes = jax.eval_shape(lambda key: smaller.init(key, {"mlm": 0}), jax.random.key(0))
  assert [x.shape for x in jax.tree.leaves(small)] == [x.shape for x in jax.tree.leaves(shapes)]
  assert np.isfinite(states(small)).all()
  if name == "bert":
    last = full.blocks.feed_forward.up.kernel[...][1:]
    np.testing.assert_array_equal(small.blocks.feed_forward.up.kernel[...], last)
  else:
    toy_run.assert_equal(small.blocks, full.blocks)


def test_layers_are_refused_where_they_cannot_go():
  with pytest.raises(UserError, match="no single stack of layers"):
    check_layers(MODELS["t5"], base("t5"))
