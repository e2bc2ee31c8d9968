"""bfloat16, int8 and int4: exact products, bounded rounding, the same calls for every family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.compression.calibrated import calibrated, ranges
from plm_jax.compression.forms import FORMS, bytes_of, expanded, stored_as
from plm_jax.compression.quantised import (
  DynamicInt8,
  StaticInt8,
  WeightOnlyInt4,
  group_of,
  int8_product,
  packed,
  rounded,
  unpacked,
)
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, write
from plm_jax.errors import UserError
from plm_jax.models.elmo import Elmo
from plm_jax.models.layers import Linear
from plm_jax.models.lstm import Lstm
from plm_jax.models.parameters import named
from plm_jax.models.recording import recording
from plm_jax.peft.adapted import Sizes, linears
from plm_jax.runs import Run
from tests import toy_run
from tests.peft.models import COMPUTE, MODELS, SOME_SLOW, base, states

SIZES = {"layers": 2, "width": 8, "vocab_size": 20, "positions": 24}


def test_int8_products_are_exact_sums_of_int32():
  draw = np.random.default_rng(0)
  x_RK, w_KF = (draw.integers(-127, 128, size, np.int8) for size in ((5, 3000), (3000, 7)))
  expected = x_RK.astype(np.int32) @ w_KF.astype(np.int32)
  result = int8_product(jnp.asarray(x_RK), jnp.asarray(w_KF))
  assert result.dtype == jnp.int32
  np.testing.assert_array_equal(result, expected)
  assert np.abs(expected).max() > 2**16  # not exact in bfloat16 or int16


def test_int8_and_its_scales_round_to_half_a_step_and_keep_zero():
  weights = jax.random.normal(jax.random.key(0), (3, 16, 4)).at[1, :, 2].set(0.0).at[0, 5].set(0.0)
  q, scale = rounded(weights, -2, 127)
  assert q.dtype == jnp.int8 and scale.shape == (3, 4)
  back = q * scale[..., None, :]
  assert (np.abs(back - weights) <= scale[..., None, :] / 2 * 1.0001).all()
  assert (np.asarray(back)[np.asarray(weights) == 0] == 0).all()
  assert np.abs(q).max() == 127


def linear_of(inputs, outputs):
  linear = Linear(jax.random.key(1), inputs, outputs)
  linear.bias[...] = jax.random.normal(jax.random.key(2), outputs)
  return linear, Sizes((), int(np.prod(inputs)), int(np.prod(outputs)))


def test_a_dynamic_int8_map_is_the_integer_formula():
  linear, sizes = linear_of((4, 8), (6,))
  x = jax.random.normal(jax.random.key(3), (2, 5, 4, 8)).at[0, 0].set(0.0)  # a row of padding
  small = DynamicInt8.of(linear, sizes)
  x_RK = np.asarray(x).reshape(-1, 32)
  scale_R = np.abs(x_RK).max(-1) / np.float32(127)
  q_RK = np.rint(x_RK / np.where(scale_R > 0, scale_R, 1)[:, None]).astype(np.int32)
  sums = q_RK @ np.asarray(small.int8, np.int32)
  y = sums * scale_R[:, None] * np.asarray(small.int8_scale) + np.asarray(linear.bias[...])
  np.testing.assert_allclose(small(x), y.reshape(2, 5, 6), rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(small(x), linear(x), atol=3e-3)
  assert small(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_static_int8_map_rounds_to_the_measured_scale_and_clips():
  linear, sizes = linear_of((8,), (6,))
  x = jax.random.normal(jax.random.key(3), (5, 8))
  scale = np.float32(np.abs(x).max() / 127 / 2)  # half of the range: the largest are clipped
  small = dataclasses.replace(StaticInt8.of(linear, sizes), input_scale=jnp.asarray(scale))
  q = np.rint(np.clip(np.asarray(x) / scale, -127, 127)).astype(np.int32)
  assert np.abs(q).max() == 127
  y = q @ np.asarray(small.int8, np.int32) * (scale * np.asarray(small.int8_scale))
  np.testing.assert_allclose(small(x), y + np.asarray(linear.bias[...]), rtol=1e-6, atol=1e-7)


def test_calibration_measures_the_input_of_every_layer():
  full = base("bert")
  batches = [batch_of("bert", seed=n) for n in range(3)]
  scan, unroll = (
    ranges(full, batches, lambda p, b, layers=layers: forward(p, b, layers))
    for layers in ("scan", "unroll")
  )
  assert scan.keys() == linears(full).keys()
  assert scan["blocks/attention/query"].shape == (2,)
  for path in scan:
    np.testing.assert_allclose(scan[path], unroll[path], rtol=1e-5)
  with recording() as seen:  # the queries of a layer are computed from its input
    forward(full, batches[0], "unroll")
  first = ranges(full, batches[:1], lambda p, b: forward(p, b, "scan"))
  largest = [float(jnp.abs(x).max()) for x in seen.inputs]
  np.testing.assert_allclose(first["blocks/attention/query"], largest, rtol=1e-5)


def test_int4_is_packed_two_to_a_byte_and_unpacked_without_loss():
  q = np.random.default_rng(0).integers(-8, 8, (3, 10, 5)).astype(np.int8)
  stored = packed(jnp.asarray(q))
  assert stored.shape == (3, 5, 5) and stored.dtype == jnp.uint8
  np.testing.assert_array_equal(unpacked(stored), q)


def test_int4_has_a_scale_for_each_group_of_inputs():
  linear, sizes = linear_of((128,), (6,))
  linear.kernel[...] = linear.kernel[...].at[:64].multiply(100.0)
  small = WeightOnlyInt4.of(linear, sizes)
  assert small.int4_scale.shape == (2, 6)
  errors = np.abs(small.kernel - linear.kernel[...]).reshape(2, 64, 6).max(1)
  assert (errors <= small.int4_scale / 2 * 1.0001).all()
  assert errors[1].max() < errors[0].min()  # large weights of one group do not coarsen another
  assert [group_of(n) for n in (384, 96, 22, 6)] == [64, 48, 22, 6]


def test_int4_refuses_an_odd_number_of_inputs():
  with pytest.raises(UserError, match="7 inputs, an odd number; use w8"):
    WeightOnlyInt4.of(*linear_of((7,), (4,)))


def batch_of(name, seed=None):
  ids = np.arange(12).reshape(2, 6) + 3
  if seed is not None:
    ids = np.random.default_rng(seed).integers(0, 15, (2, 6))
  batch = {"input_ids": ids, "length": np.array([6, 4]), "segment_ids": np.zeros((2, 6), int)}
  if name in ("t5", "bart"):
    batch |= {"decoder_input_ids": ids, "decoder_length": batch["length"]}
  return batch


def forward(params, batch, layers="scan"):
  return params(batch, dataclasses.replace(COMPUTE, layers=layers))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME_SLOW)
def test_every_family_computes_nearly_the_same_in_int8(name):
  batch = batch_of(name)
  full, small = base(name), jax.jit(lambda p: stored_as("int8", p))(base(name))
  assert all(leaf.dtype == jnp.int8 for path, leaf in named(small) if path.endswith("/int8"))
  expected = states(full, batch=batch)
  for form in (small, calibrated(full, [batch], forward)):
    result = states(form, batch=batch)
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.03


@pytest.mark.parametrize("model", [Lstm(**SIZES), pytest.param(Elmo, marks=pytest.mark.slow)])
def test_recurrent_families_read_int8_kernels(model):
  if model is Elmo:
    model = Elmo(layers=1, width=8, cell=8, filters=((1, 4),), longest=6, vocab_size=20)
  head = "bilm" if isinstance(model, Elmo) else "lm"
  full = jax.jit(lambda key: model.init(key, {head: 0}))(jax.random.key(0))
  batch = {"input_ids": np.arange(12).reshape(2, 6) + 3, "length": np.array([6, 4])}
  expected, *results = (
    np.asarray(jax.tree.leaves(states(p, batch=batch))[0])
    for p in (full, stored_as("int8", full), calibrated(full, [batch], forward))
  )
  for result in results:
    assert 0 < np.linalg.norm(result - expected) / np.linalg.norm(expected) < 0.05


def test_calibration_refuses_rows_that_do_not_reach_a_map():
  with pytest.raises(UserError, match=r"do not reach blocks/attention/.*; use int8"):
    calibrated(base("bert"), [batch_of("bert")], lambda params, batch: 0.0)


@pytest.mark.parametrize(("form", "bound"), [("bf16", 0.02), ("w8", 0.02), ("w4", 0.25)])
def test_forms_of_a_bert_have_bounded_errors(form, bound):
  full = base("bert")
  expected, result = states(full), states(stored_as(form, full))
  assert 0 < np.linalg.norm(result - expected) / np.linalg.norm(expected) < bound
  assert bytes_of(stored_as(form, full)) < bytes_of(full)


@pytest.mark.parametrize("form", FORMS)
def test_scanned_layers_compute_as_unrolled_ones(form):
  small = stored_as(form, base("albert" if form == "int8" else "bert"))
  if form == "static8":
    small = calibrated(base("albert"), [batch_of("albert")], forward)
  scanned, unrolled = (
    states(small, compute=dataclasses.replace(COMPUTE, layers=layers))
    for layers in ("scan", "unroll")
  )
  np.testing.assert_allclose(scanned, unrolled, atol=0.02 if form in ("int8", "static8") else 1e-4)


def test_expanded_parameters_have_the_structure_and_nearly_the_values_of_the_model():
  full = base("bert")
  for form in FORMS:
    back = expanded(stored_as(form, full), full)
    for (path, old), (other, new) in zip(named(full), named(back), strict=True):
      assert (path, old.dtype, old.shape) == (other, new.dtype, new.shape)
      np.testing.assert_allclose(old, new, atol=0.02, err_msg=path)


@pytest.mark.parametrize("form", ["w8", "w4"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_decoder_writes_with_integer_weights_as_with_their_float32_values(form, rows):
  config, full = MODELS["gpt2"], base("gpt2")
  small = stored_as(form, full)
  tokenizer = toy_run.prepared().tokenizer
  prompts = [Prompt([3, 4, 5])] * rows
  texts = [
    write(params, dataclasses.replace(config), tokenizer, COMPUTE, prompts, Rules(max_length=8))
    for params in (small, expanded(small, full))
  ]
  assert [t[0].ids for t in texts[0]] == [t[0].ids for t in texts[1]]
  np.testing.assert_allclose(texts[0][0][0].score, texts[1][0][0].score, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_a_form_is_saved_and_loaded_as_it_is(form, tmp_path):
  model = toy_run.program().experiment.model
  experiment = dataclasses.replace(toy_run.TOY, model=model)
  run = Run(
    experiment=experiment,
    tokenizer=toy_run.prepared().tokenizer,
    params=experiment.init_parameters(jax.random.key(0)),
  )
  small = dataclasses.replace(
    run, params=stored_as(form, run.params), document={"shrunk": {"form": form}}
  )
  small.save(tmp_path / "small")
  loaded = Run.load(tmp_path / "small")
  assert loaded.form == form
  assert jax.tree.structure(loaded.params) == jax.tree.structure(small.params)
  toy_run.assert_equal(loaded.params, small.params)


def test_an_unknown_form_is_refused():
  with pytest.raises(UserError, match="'int3'; there are bf16, int8, static8, w8, w4"):
    stored_as("int3", base("bert"))
