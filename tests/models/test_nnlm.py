"""The feed-forward language model: the paper's formula and sizes, and all that a language model can
do."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax import cli
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.experiment_flags import vocab_size_of
from plm_jax.models.compute import Compute
from plm_jax.models.nnlm import Nnlm
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape
from tests import toy_run
from tests.toy_run import TOY

COMPUTE = Compute(dtype="float32")
SIZES = Nnlm(order=4, features=3, hidden=5, vocab_size=20, initializer_range=0.5)
TRAINED = dataclasses.replace(
  TOY,
  model=Nnlm(order=4, features=8, hidden=8),
  objectives=(CLM(),),
  data=dataclasses.replace(TOY.data, length=20, segments=PackedDocuments()),
  optim=AdamW(peak=3e-2, warmup=3),
)


@pytest.fixture(scope="module")
def model():
  params = SIZES.init(jax.random.key(0), {"lm": 0})
  return jax.tree.map(lambda x: x + 0.01 * jnp.arange(x.size).reshape(x.shape) / x.size, params)


_logits = jax.jit(lambda m, batch: m.token_logits(m(batch, COMPUTE)))
_extend = jax.jit(lambda generator, ids, cache: generator.extend(ids, cache))


@pytest.mark.parametrize(("name", "expected"), [("mlp1", 5_762_483), ("mlp10", 2_158_273)])
def test_rows_of_table_1_have_the_parameters_of_the_papers_formula(name, expected):
  experiment = cli.load_experiment(f"experiments/nnlm.py:{name}", budget="small")()
  c = dataclasses.replace(experiment.model, vocab_size=16_383)
  shapes = jax.eval_shape(lambda: c.init(jax.random.key(0), {"lm": 0}))
  v, n, m, h = c.vocab_size, c.order, c.features, c.hidden
  formula = v * (1 + n * m + h) if c.direct else v * (1 + m + h)
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == expected
  assert formula + h * (1 + (n - 1) * m) == expected


@pytest.mark.parametrize("changes", [{}, {"direct": False}, {"hidden": 0}])
def test_scores_are_those_of_the_formula(changes):
  config = dataclasses.replace(SIZES, **changes)
  model = config.init(jax.random.key(1), {"lm": 0})
  model.lm.bias[...] = jnp.arange(20) / 10
  ids = np.array([[3, 7, 1, 9, 4]], np.int32)
  ours = _logits(model, {"input_ids": ids})
  features = np.asarray(model.token.table[...], np.float64)
  table, bias = (np.asarray(p[...], np.float64) for p in (model.lm.table, model.lm.bias))
  for at in range(5):
    x = np.concatenate([features[ids[0, at - b]] if at >= b else np.zeros(3) for b in range(3)])
    parts = [x] if config.direct else []
    if config.hidden:
      kernel, d = (np.asarray(p[...], np.float64) for p in (model.hidden.kernel, model.hidden.bias))
      parts = [np.tanh(d + x @ kernel), *parts]
    np.testing.assert_allclose(ours[0, at], bias + table @ np.concatenate(parts), atol=1e-5)


def test_a_context_has_n_minus_1_tokens_of_one_document(model):
  ids = np.random.default_rng(0).integers(0, 20, (1, 8)).astype(np.int32)
  changed = ids.copy()
  changed[0, 2] = (ids[0, 2] + 1) % 20
  same = np.isclose(_logits(model, {"input_ids": ids}), _logits(model, {"input_ids": changed}))
  assert np.flatnonzero(~same.all(axis=-1)[0]).tolist() == [2, 3, 4]
  document = np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.int32)
  apart = _logits(model, {"input_ids": ids, "document_ids": document})
  np.testing.assert_allclose(apart[:, 4:], _logits(model, {"input_ids": ids[:, 4:]}), atol=1e-6)


@pytest.mark.parametrize("order", [2, 4])
def test_generation_follows_the_forward_pass_and_ignores_padding(order):
  model = dataclasses.replace(SIZES, order=order).init(jax.random.key(0), {"lm": 0})
  ids = np.random.default_rng(0).integers(0, 20, (2, 8)).astype(np.int32)
  generator = model.generator(COMPUTE)
  cache = generator.start({"pad": np.array([0, 3])}, capacity=8)
  logits, cache = _extend(generator, ids[:, :5], cache)
  for column in range(5, 8):
    logits, cache = _extend(generator, ids[:, column : column + 1], cache)
  for row, first in ((0, 0), (1, 3)):
    expected = _logits(model, {"input_ids": ids[row : row + 1, first:]})
    np.testing.assert_allclose(logits[row], expected[0, -1], atol=1e-5)
  swapped, _ = _extend(generator, ids[:, :1], cache.take(jnp.array([1, 0])))
  straight, _ = _extend(generator, ids[::-1, :1], cache)
  np.testing.assert_allclose(swapped, straight[::-1], atol=1e-6)


def final(experiment, steps=4):
  program = toy_run.program(experiment)
  state, (train, _) = program.create(), toy_run.batches(experiment)
  for step in range(steps):
    state = program.step(state, train(step))
  return jax.device_get(state)


def test_devices_and_micro_batches_change_no_parameter():
  compute = Compute(dtype="float32", micro_batches=2)
  mesh = MeshShape(data=2, fsdp=2)
  ours, expected = final(dataclasses.replace(TRAINED, mesh=mesh, compute=compute)), final(TRAINED)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours.params, expected.params
  )


def test_a_run_learns_in_bfloat16_and_is_scored(tmp_path):
  experiment = dataclasses.replace(TRAINED, compute=Compute(dtype="bfloat16"))
  state, records = toy_run.run(tmp_path / "run", experiment)
  valid = [record["clm/loss"] for record in records if record["split"] == "valid"]
  assert valid[-1] < 0.9 * valid[0]
  tokenizer = toy_run.prepared().tokenizer
  experiment = experiment.resolve(vocab_size_of(experiment))
  Run(experiment=experiment, params=state.params, tokenizer=tokenizer).save(tmp_path / "saved")
  assert perplexity(Run.load(tmp_path / "saved"), "w1 w2 w3")["tokens"] == 3


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"order": 1}, "model.order=1 must be at least 2"),
    ({"hidden": 0, "direct": False}, "model.hidden=0 without model.direct"),
    ({"initializer_range": 0.0}, "initializer_range=0.0 must be above 0"),
  ],
)
def test_sizes_that_make_no_model_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Nnlm(**fields)
