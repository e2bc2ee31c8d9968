"""ELECTRA: published counts, one array for both tables, samples, and transformers' mathematics."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.electra import BASE, LARGE, SMALL, Electra, put, sample_tokens
from plm_jax.models.encoder import Encoder
from plm_jax.models.parameters import path_name
from tests.models import torch_encoder as torch_names

FLOAT32 = Compute(dtype="float32")
TOY = Electra(
  vocab_size=50, layers=2, width=16, heads=4, embedding=8, positions=12, generator_width=0.25
)
RTD = {"mlm": 0, "rtd": 0}


def count(config, heads):
  config = dataclasses.replace(config, vocab_size=30522)
  shapes = jax.eval_shape(lambda key: config.init(key, heads), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial(config, heads=("mlm", "rtd")):
  return config.init(jax.random.key(0), dict.fromkeys(heads, 0))


def toy_batch(seed=0, rows=4, length=12):
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, 50, (rows, length)).astype(np.int32)
  positions = np.sort(rng.integers(1, 3, (rows, 3)), axis=1).astype(np.int32)
  return {
    "input_ids": ids,
    "segment_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "length": np.array([12, 7, 9, 3][:rows], np.int32),
    "mlm_positions": positions,
    "mlm_weights": np.ones((rows, 3), np.float32),
    "sample_seeds": positions.astype(np.uint32) + np.arange(rows, dtype=np.uint32)[:, None] * 99,
  }


@pytest.mark.parametrize(
  ("config", "encoder", "detector", "generator"),
  [
    (SMALL, 13_483_008, 13_549_057, 4_620_026),
    (BASE, 108_891_648, 109_483_009, 33_740_602),
    (LARGE, 334_092_288, 335_142_913, 51_295_290),
  ],
)
def test_counts_are_those_of_the_released_models(config, encoder, detector, generator):
  assert count(config.encoder, {}) == encoder
  assert count(config.generator, {"mlm": 0}) == generator
  head = detector - encoder
  tables = count_tables(config)
  # Both together hold tables and their norm once.
  assert count(config, RTD) == encoder + generator + head - tables


def count_tables(config):
  width = config.embedding or config.width
  return (30522 + 512 + 2 + 2) * width


def test_the_generator_of_the_small_model_has_the_sizes_of_its_code():
  assert (SMALL.generator.width, SMALL.generator.heads, SMALL.generator.hidden) == (64, 1, 256)
  assert (BASE.generator.width, BASE.generator.heads, BASE.generator.hidden) == (256, 4, 1024)
  assert (LARGE.generator.width, LARGE.generator.heads, LARGE.generator.layers) == (256, 4, 24)


def test_a_generator_as_wide_as_the_tables_has_no_mapping_and_a_full_one_is_as_big():
  half = dataclasses.replace(SMALL, generator_width=0.5)
  assert half.generator.embedding is None and half.encoder.embedding == 128
  full = dataclasses.replace(BASE, generator_width=1.0)
  assert full.generator == dataclasses.replace(full.encoder, hidden=3072)


@pytest.mark.slow
def test_both_read_one_table_and_its_gradient_is_the_sum_of_theirs():
  model = initial(TOY)
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
  assert [n for n in names if n.endswith("token/table")] == ["discriminator/embed/token/table"]
  batch = toy_batch()

  def of_generator(model):
    return jnp.square(model.masked_lm()(batch, FLOAT32)).sum()

  def of_discriminator(model):
    return jnp.square(model.encoder()(batch, FLOAT32)).sum()

  def table(f):
    return jax.jit(jax.grad(f))(model).discriminator.embed.token.table[...]

  one, other = table(of_generator), table(of_discriminator)
  both = table(lambda m: of_generator(m) + of_discriminator(m))
  assert jnp.abs(one).max() > 0 and jnp.abs(other).max() > 0
  np.testing.assert_allclose(both, one + other, rtol=1e-4, atol=1e-4)


def test_samples_follow_the_softmax_and_repeat_with_their_seeds():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  seeds = np.random.default_rng(0).integers(0, 2**32, (1, 20_000)).astype(np.uint32)
  draw = jax.jit(sample_tokens)
  tokens = draw(jnp.broadcast_to(logits, (1, 20_000, 4)), seeds)
  shares = np.bincount(np.asarray(tokens[0]), minlength=4) / 20_000
  np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.012)
  again = draw(jnp.broadcast_to(logits, (1, 20_000, 4)), seeds)
  np.testing.assert_array_equal(tokens, again)
  # Neighbouring seeds, as positions of one row might have, are as independent as any.
  neighbours = draw(
    jnp.broadcast_to(logits, (1, 20_000, 4)), np.arange(20_000, dtype=np.uint32)[None]
  )
  shares = np.bincount(np.asarray(neighbours[0]), minlength=4) / 20_000
  np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.012)
  repeats = np.mean(np.asarray(neighbours[0, 1:]) == np.asarray(neighbours[0, :-1]))
  np.testing.assert_allclose(repeats, np.square(shares).sum(), atol=0.015)


def test_no_gradient_passes_the_sampling():
  """F36: neither through the samples nor through what decides them."""
  seeds = np.arange(6, dtype=np.uint32).reshape(2, 3)

  def of(logits):
    return sample_tokens(logits, seeds).astype(jnp.float32).sum()

  assert not jnp.any(jax.grad(of)(jnp.ones((2, 3, 5))))


def test_slots_of_no_weight_write_nothing():
  batch = toy_batch()
  batch["mlm_weights"][:, 1:] = 0
  batch["mlm_positions"][:, 1:] = 0
  put_in = put(jnp.asarray(batch["input_ids"]), batch, jnp.full((4, 3), 49))
  changed = np.asarray(put_in) != batch["input_ids"]
  rows, columns = np.nonzero(changed)
  assert set(columns) <= {1, 2} and len(rows) <= 4
  assert not changed[:, 0].any()


@pytest.mark.slow
@pytest.mark.parametrize(
  "compute", [{"layers": "scan"}, pytest.param({"layers": "unroll"}, marks=pytest.mark.slow)]
)
def test_scanned_and_unrolled_layers_agree(compute):
  run = jax.jit(lambda model, batch: model(batch, Compute(dtype="float32", **compute)))
  passes = run(initial(TOY), toy_batch())
  reference = jax.jit(lambda m, b: m(b, FLOAT32))(initial(TOY), toy_batch())
  np.testing.assert_array_equal(passes.corrupted_BT, reference.corrupted_BT)
  np.testing.assert_allclose(passes.hidden_BTD, reference.hidden_BTD, atol=1e-5)


def test_the_encoder_of_electra_has_the_discriminator_s_body_and_knows_where_it_is():
  assert isinstance(TOY.encoder, Encoder)
  assert TOY.encoder == dataclasses.replace(TOY.encoder)
  assert TOY.encoder_path == "discriminator/" and TOY.frozen == ()
  plain = jax.eval_shape(lambda key: TOY.encoder.init(key, {}), jax.random.key(0))
  ours = {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(initial(TOY))}
  inside = {n.removeprefix("discriminator/") for n in ours if n.startswith("discriminator/")}
  assert inside == {path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(plain)}


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"generator_width": 0.0}, "above 0"),
    ({"generator_layers": 2.0}, "at most 1"),
    ({"width": 400, "heads": 4, "generator_width": 0.5}, "do not divide"),
  ],
)
def test_generators_that_cannot_be_are_refused(change, said):
  with pytest.raises(UserError, match=said):
    dataclasses.replace(TOY, **change)


def test_a_discriminator_without_an_objective_is_refused():
  with pytest.raises(UserError, match="RTD or ReplacedMLM"):
    TOY.init(jax.random.key(0), {"mlm": 0})
  with pytest.raises(UserError, match="has no head 'nsp'"):
    TOY.init(jax.random.key(0), {"nsp": 0, "rtd": 0})


LAYER = {
  "attention/query": "attention.self.query",
  "attention/key": "attention.self.key",
  "attention/value": "attention.self.value",
  "attention/output": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "feed_forward/up": "intermediate.dense",
  "feed_forward/down": "output.dense",
  "feed_forward_norm": "output.LayerNorm",
}


def arrays_of(model, config):
  """transformers' weights of one tower, under the names of an encoder."""
  weights = {name: w.detach().numpy() for name, w in model.named_parameters()}
  get = weights.__getitem__
  arrays = {
    f"embed/{ours}/table": get(f"electra.embeddings.{ours_to}_embeddings.weight")
    for ours, ours_to in (("token", "word"), ("position", "position"), ("segment", "token_type"))
  }
  arrays |= torch_names.norm(get, "embed/norm", "electra.embeddings.LayerNorm")
  if config.embedding:
    arrays |= torch_names.dense(get, "embed/project", "electra.embeddings_project")
  layers = torch_names.blocks(get, "electra.encoder.layer.{}", config.layers, config.heads, LAYER)
  return arrays | torch_names.under("blocks/", layers), get


def torch_config(transformers, config):
  return transformers.ElectraConfig(
    vocab_size=50,
    embedding_size=config.embedding or config.width,
    hidden_size=config.width,
    num_hidden_layers=config.layers,
    num_attention_heads=config.heads,
    intermediate_size=config.hidden or 4 * config.width,
    max_position_embeddings=12,
    hidden_act="gelu",
  )


def torch_batch(torch, batch):
  real = np.arange(12) < batch["length"][:, None]
  return {
    "input_ids": torch.tensor(batch["input_ids"], dtype=torch.long),
    "token_type_ids": torch.tensor(batch["segment_ids"], dtype=torch.long),
    "attention_mask": torch.tensor(real.astype(np.int64)),
  }, real


@pytest.mark.slow
def test_the_detector_s_scores_are_those_of_transformers():
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  config = TOY.encoder
  theirs = torch_names.randomised(
    torch, transformers.ElectraForPreTraining(torch_config(transformers, config))
  )
  arrays, get = arrays_of(theirs, config)
  head = torch_names.dense(get, "rtd/dense", "discriminator_predictions.dense")
  head |= torch_names.dense(get, "rtd/score", "discriminator_predictions.dense_prediction")
  model = initial(TOY)
  model.discriminator = torch_names.filled(model.discriminator, arrays)
  model.rtd = torch_names.filled(
    model.rtd, {name.removeprefix("rtd/"): array for name, array in head.items()}
  )
  batch = toy_batch()
  inputs, real = torch_batch(torch, batch)
  with torch.no_grad():
    expected = theirs(**inputs).logits.numpy()
  states = jax.jit(lambda m, b: m.rtd(m.encoder()(b, FLOAT32)))(model, batch)
  np.testing.assert_allclose(np.asarray(states)[real], expected[real], atol=1e-4)


@pytest.mark.slow
def test_the_generator_s_logits_are_those_of_transformers():
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  config = TOY.generator
  theirs = torch_names.randomised(
    torch, transformers.ElectraForMaskedLM(torch_config(transformers, config))
  )
  arrays, get = arrays_of(theirs, config)
  model = initial(TOY)
  is_own = {name: name.startswith(("blocks", "embed/project")) for name in arrays}
  own = {name.removeprefix("embed/"): array for name, array in arrays.items() if is_own[name]}
  own |= torch_names.dense(get, "mlm/dense", "generator_predictions.dense")
  own |= torch_names.norm(get, "mlm/norm", "generator_predictions.LayerNorm")
  own["mlm/bias"] = get("generator_lm_head.bias")
  model.generator = torch_names.filled(model.generator, own)
  embed = model.discriminator.embed
  for name in ("token", "position", "segment"):
    getattr(embed, name).table[...] = arrays[f"embed/{name}/table"]
  embed.norm.gain[...] = arrays["embed/norm/gain"]
  embed.norm.bias[...] = arrays["embed/norm/bias"]
  batch = toy_batch()
  inputs, real = torch_batch(torch, batch)
  with torch.no_grad():
    expected = theirs(**inputs).logits.numpy()

  @jax.jit
  def logits(model, batch):
    generator = model.masked_lm()
    return generator.token_logits(generator(batch, FLOAT32))

  np.testing.assert_allclose(np.asarray(logits(model, batch))[real], expected[real], atol=1e-4)
