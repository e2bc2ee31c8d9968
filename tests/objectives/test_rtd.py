"""Replaced-token detection: what is drawn, what counts as replaced, and where gradients go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.electra import Electra
from plm_jax.models.parameters import path_name
from plm_jax.objectives.replaced_mlm import ReplacedMLM, copying_cross_entropy
from plm_jax.objectives.rtd import RTD, GeneratorMLM, original_ids
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment
from plm_jax.train.step import forward
from tests.data.toy_store import toy_vocab
from tests.train.test_step import TOY as BERT_TOY

FLOAT32 = Compute(dtype="float32")
TOY = dataclasses.replace(
  BERT_TOY,
  model=Electra(
    vocab_size=48, layers=2, width=16, heads=4, embedding=8, positions=16, dropout=0.0,
    attention_dropout=0.0, generator_width=0.5, initializer_range=0.3,
  ),
  objectives=(GeneratorMLM(rate=0.3), RTD()),
)  # fmt: skip


def rows(seed=0, count=16, length=16, epoch=0, first=0, objectives=TOY.objectives):
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, 48, (64, length)).astype(np.int32)
  lengths = rng.integers(4, length + 1, 64).astype(np.int32)
  ids[np.arange(length) >= lengths[:, None]] = 0
  ids[:, 0] = 2
  ids[np.arange(64), lengths - 1] = 3
  batch = {
    "input_ids": ids,
    "segment_ids": np.zeros_like(ids),
    "length": lengths,
    "pair_label": np.zeros(64, np.int32),
    "row_weight": np.ones(64, np.float32),
  }
  batch = {name: x[first : first + count] for name, x in batch.items()}
  draws = Draws(seed, epoch, np.arange(first, first + count))
  for objective in objectives:
    batch = objective.corrupt(batch, draws, toy_vocab())
  return batch


@functools.cache
def initial(objectives=TOY.objectives):
  heads = {name: size for o in objectives for name, size in o.heads.items()}
  return jax.jit(lambda key: TOY.model.init(key, heads))(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=2)
def terms_of(model, batch, objectives=TOY.objectives):
  passes = model(batch, FLOAT32)
  return {
    f"{o.name}/{k}": v for o in objectives for k, v in o.loss(model, passes, batch, None).items()
  } | {"passes": passes}


def test_the_generator_s_mask_is_that_of_the_original():
  """round(.15 n) draws with replacement from what is not special, 85% of them [MASK]."""
  vocab = toy_vocab()
  rng = np.random.default_rng(1)
  ids = rng.integers(5, vocab.size, (2000, 128)).astype(np.int32)
  ids[:, 0], ids[:, 60], ids[:, 100:] = vocab.cls, vocab.sep, vocab.pad
  ids[:, 99], ids[:, 7] = vocab.sep, vocab.mask
  batch = {
    "input_ids": ids,
    "length": np.full(2000, 100, np.int32),
    "row_weight": np.ones(2000, np.float32),
  }
  draws = Draws(0, 0, np.arange(2000))
  done = GeneratorMLM().corrupt(batch, draws, vocab)
  at, weights = done["mlm_positions"], done["mlm_weights"] > 0
  assert (weights.sum(axis=1) == 15).all() and weights.shape == (2000, 19)
  assert not np.isin(at[weights], [0, 7, 60, 99, *range(100, 128)]).any()
  shares = np.bincount(at[weights], minlength=128)[1:60]
  assert shares.min() > 0.6 * 2000 * 15 / 96 or shares[6] == 0
  original = np.take_along_axis(ids, at, axis=1)
  np.testing.assert_array_equal(done["mlm_targets"][weights], original[weights])
  now = np.take_along_axis(done["input_ids"], at, axis=1)
  alone = weights.copy()  # draws that no other draw of the row coincides with
  for row in range(2000):
    counts = np.bincount(at[row][weights[row]], minlength=128)
    alone[row] &= counts[at[row]] == 1
  masked = (now == vocab.mask)[alone]
  assert abs(masked.mean() - 0.85) < 0.005
  assert (now == original)[alone][~masked].all()
  assert (alone.sum(axis=1) < 15).mean() > 0.5  # with replacement: draws do coincide
  untouched = np.ones_like(ids, bool)
  np.put_along_axis(untouched, np.where(weights, at, 0), False, axis=1)
  np.testing.assert_array_equal(done["input_ids"][untouched], ids[untouched])


def test_draws_are_the_row_s_own():
  whole, part = rows(count=16), rows(count=4, first=8)
  for name in ("input_ids", "mlm_positions", "sample_seeds"):
    np.testing.assert_array_equal(whole[name][8:12], part[name])
  other = rows(count=16, epoch=1)
  assert not np.array_equal(whole["sample_seeds"], other["sample_seeds"])


@pytest.mark.slow
def test_a_position_that_is_drawn_twice_gets_one_token():
  batch = rows()
  passes = terms_of(initial(), batch)["passes"]
  at, weights = batch["mlm_positions"], batch["mlm_weights"] > 0
  twice = (at[:, 1:] == at[:, :-1]) & weights[:, 1:] & weights[:, :-1]
  assert twice.any()
  seeds = batch["sample_seeds"]
  assert (seeds[:, 1:] == seeds[:, :-1])[twice].all()
  np.testing.assert_allclose(
    passes.generator_BPV[:, 1:][twice], passes.generator_BPV[:, :-1][twice], atol=1e-5
  )


@pytest.mark.slow
def test_a_sample_that_equals_the_original_is_an_original():
  """F36. With a generator that is certain of the truth nothing is replaced."""
  batch = rows()
  terms = terms_of(initial(), batch)
  passes, originals = terms["passes"], np.asarray(original_ids(batch))
  replaced = np.asarray(passes.corrupted_BT) != originals
  at, weights = batch["mlm_positions"], batch["mlm_weights"] > 0
  assert 0 < replaced.sum() == terms["rtd/replaced"][0]
  chosen = np.zeros_like(replaced)
  row = np.broadcast_to(np.arange(16)[:, None], at.shape)
  chosen[row[weights], at[weights]] = True
  assert not replaced[~chosen].any()
  np.testing.assert_array_equal(np.asarray(passes.corrupted_BT)[~chosen], originals[~chosen])
  truth = passes._replace(corrupted_BT=jnp.asarray(originals))
  told = RTD().loss(initial(), truth, batch, None)
  assert told["replaced"][0] == 0 and told["found"][1] == 0


def test_the_loss_is_the_mean_over_all_real_positions():
  batch = rows()
  terms = terms_of(initial(), batch)
  logits = np.asarray(initial().replaced_logits(terms["passes"]), np.float64)
  replaced = np.asarray(terms["passes"].corrupted_BT) != np.asarray(original_ids(batch))
  p = 1 / (1 + np.exp(-logits))
  losses = -np.log(np.where(replaced, p, 1 - p))
  real = np.arange(16) < batch["length"][:, None]
  np.testing.assert_allclose(terms["rtd/loss"][0], losses[real].sum(), rtol=1e-5)
  assert terms["rtd/loss"][1] == real.sum() == RTD().count(batch)
  right = (logits > 0) == replaced
  np.testing.assert_allclose(terms["rtd/found"][0], right[replaced].sum())
  np.testing.assert_allclose(terms["rtd/kept"][0], right[real & ~replaced].sum())


def test_auc_is_that_of_all_pairs_within_rows():
  batch = rows()
  terms = terms_of(initial(), batch)
  logits = np.asarray(initial().replaced_logits(terms["passes"]))
  replaced = np.asarray(terms["passes"].corrupted_BT) != np.asarray(original_ids(batch))
  higher = pairs = 0
  for row, length in enumerate(batch["length"]):
    x, y = logits[row, :length], replaced[row, :length]
    difference = x[y][:, None] - x[~y][None]
    higher += (difference > 0).sum() + 0.5 * (difference == 0).sum()
    pairs += difference.size
  np.testing.assert_allclose(terms["rtd/auc"], (higher, pairs), rtol=1e-6)


def test_a_detector_that_says_the_same_of_every_token_has_auc_one_half():
  batch = rows()
  passes = terms_of(initial(), batch)["passes"]
  flat = jax.tree.map(jnp.zeros_like, initial())
  found = RTD().loss(flat, passes._replace(hidden_BTD=passes.hidden_BTD * 0), batch, None)
  assert found["auc"][0] / found["auc"][1] == 0.5
  assert found["accuracy"][0] / found["accuracy"][1] > 0.6  # and yet it is right most of the time
  assert found["found"][0] == 0


def test_electra_15_percent_counts_the_chosen_positions_alone():
  objectives = (GeneratorMLM(rate=0.3), RTD(positions="masked"))
  batch = rows(objectives=objectives)
  terms = terms_of(initial(), batch, objectives)
  weights = batch["mlm_weights"] > 0
  different = sum(len(set(at[w])) for at, w in zip(batch["mlm_positions"], weights))
  assert terms["rtd/loss"][1] == different == objectives[1].count(batch)
  everything = terms_of(initial(), batch)
  assert terms["rtd/replaced"][0] == everything["rtd/replaced"][0]


@pytest.mark.slow
def test_the_discriminator_s_loss_does_not_reach_the_generator():
  """F36: what is the generator's alone has no gradient, the shared tables and the other have."""
  batch = rows()

  def loss(model, objective):
    return objective.loss(model, model(batch, FLOAT32), batch, None)["loss"][0]

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  for objective, reached in ((RTD(), False), (GeneratorMLM(rate=0.3), True)):
    grads = gradient(initial(), objective)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
      name = path_name(path)
      if name.startswith("generator/") and not name.endswith("key/bias"):  # softmax ignores it
        assert bool(jnp.any(leaf != 0)) == reached, name
    assert jnp.any(grads.discriminator.embed.token.table[...] != 0)
    assert jnp.any(grads.rtd.dense.kernel[...] != 0) != reached


def batch_of(step):
  return rows(seed=step)


@functools.cache
def program_of(experiment):
  m = experiment.mesh
  return compile_experiment(
    experiment, example_batch(experiment), jax.devices()[: m.data * m.fsdp * m.tensor]
  )


@functools.cache
def trained(experiment):
  program, start = program_of(experiment), program_of(TOY)
  state = start.create()
  state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.abstract))
  for step in range(3):
    state = program.step(state, to_global(batch_of(step), program.mesh))
  return jax.device_get(dataclasses.replace(state, key=0))


@pytest.mark.parametrize(
  "changed",
  [
    {"mesh": MeshShape(data=8)},
    {"mesh": MeshShape(data=2, fsdp=2, tensor=2)},
    {"compute": dataclasses.replace(FLOAT32, micro_batches=4)},
  ],
)
@pytest.mark.slow
def test_devices_and_micro_batches_cannot_change_the_samples(changed):
  ours, reference = trained(dataclasses.replace(TOY, **changed)), trained(TOY)
  for name, value in reference.metrics.items():
    np.testing.assert_allclose(ours.metrics[name], value, rtol=2e-4, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours.params, reference.params
  )


@pytest.mark.slow
def test_an_evaluation_in_bfloat16_stays_near_float32():
  terms, _ = forward(initial(), rows(), TOY.objectives, Compute(dtype="bfloat16"), None)
  reference = terms_of(initial(), rows())
  for name in ("mlm/loss", "rtd/loss"):
    np.testing.assert_allclose(terms[name][0], reference[name][0], rtol=0.1)


REPLACE = (GeneratorMLM(rate=0.3), ReplacedMLM())
ALL = (GeneratorMLM(rate=0.3), ReplacedMLM(positions="all", copy=True))


@pytest.mark.slow
def test_replace_mlm_predicts_the_chosen_tokens_from_a_row_without_masks():
  batch = rows(objectives=REPLACE)
  terms = terms_of(initial(REPLACE), batch, REPLACE)
  passes = terms["passes"]
  masks = [(ids == toy_vocab().mask).sum() for ids in (batch["input_ids"], passes.corrupted_BT)]
  assert masks[0] > 30 and masks[1] < 5  # a random generator may draw [MASK] itself
  assert terms["replaced/loss"][1] == batch["mlm_weights"].sum() == REPLACE[1].count(batch)
  logits = initial(REPLACE).encoder().token_logits_at(passes.hidden_BTD, batch["mlm_positions"])
  log_p = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(log_p, batch["mlm_targets"][..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(
    terms["replaced/loss"][0], -(picked * batch["mlm_weights"]).sum(), rtol=1e-5
  )


@pytest.mark.slow
def test_all_tokens_mlm_mixes_copying_and_predicting():
  batch = rows(objectives=ALL)
  terms = terms_of(initial(ALL), batch, ALL)
  passes, model = terms["passes"], initial(ALL)
  softmax = np.asarray(jax.nn.softmax(model.encoder().token_logits(passes.hidden_BTD)), np.float64)
  share = 1 / (1 + np.exp(-np.asarray(model.copy_logits(passes), np.float64)))
  mixed = (1 - share[..., None]) * softmax
  inputs, targets = np.asarray(passes.corrupted_BT), np.asarray(original_ids(batch))
  row, column = np.indices(inputs.shape)
  mixed[row, column, inputs] += share
  np.testing.assert_allclose(mixed.sum(axis=-1), 1, rtol=1e-5)
  real = np.arange(16) < batch["length"][:, None]
  np.testing.assert_allclose(
    terms["replaced/loss"][0], -np.log(mixed[row, column, targets])[real].sum(), rtol=1e-4
  )
  right = mixed.argmax(axis=-1) == targets
  np.testing.assert_allclose(terms["replaced/accuracy"][0], right[real].sum())
  assert terms["replaced/loss"][1] == real.sum() == ALL[1].count(batch)


def test_a_model_that_always_copies_pays_for_replaced_tokens_alone():
  logits, ones = jnp.zeros((1, 3, 4)), jnp.ones((1, 3))
  inputs, targets = jnp.array([[0, 1, 2]]), jnp.array([[0, 1, 3]])
  sure = copying_cross_entropy(logits, 30 * ones, inputs, targets, ones)
  never = copying_cross_entropy(logits, -30 * ones, inputs, targets, ones)
  np.testing.assert_allclose(sure["loss"][0], 30 + np.log(4), rtol=1e-5)
  np.testing.assert_allclose(never["loss"][0], 3 * np.log(4), rtol=1e-5)
  assert sure["accuracy"][0] == 2


@pytest.mark.parametrize("objectives", [REPLACE, ALL, TOY.objectives])
@pytest.mark.slow
def test_every_objective_has_rows_in_the_table_of_shardings_and_trains(objectives):
  experiment = dataclasses.replace(
    TOY, objectives=objectives, mesh=MeshShape(data=2, fsdp=2, tensor=2)
  )
  program = program_of(experiment)
  batch = to_global(rows(objectives=objectives), program.mesh)
  state = program.step(program.create(), batch)
  assert int(state.first_bad) == 0


def test_the_baseline_of_detection_is_the_constant_answer():
  kind, scores, _ = RTD().baseline(None, [], {"rtd/replaced": 0.1})
  assert kind == "constant"
  np.testing.assert_allclose(scores["loss"], -0.1 * np.log(0.1) - 0.9 * np.log(0.9))
  assert (scores["auc"], scores["accuracy"], scores["found"]) == (0.5, 0.9, 0.0)


def test_objectives_that_have_nothing_to_replace_are_refused():
  with pytest.raises(UserError, match="GeneratorMLM before RTD"):
    rows(objectives=(RTD(),))
  with pytest.raises(UserError, match="positions=all"):
    ReplacedMLM(copy=True)
  with pytest.raises(UserError, match=r"mlm\.rate"):
    GeneratorMLM(rate=0.0)
