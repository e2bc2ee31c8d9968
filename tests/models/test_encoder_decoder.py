"""Encoder-decoders: published counts, the mathematics of transformers, caches and invariances."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models import bart, t5, vaswani
from plm_jax.models.bart import Bart, MBart
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.positions import sinusoids
from plm_jax.models.relative import RelativeBias, buckets_of
from plm_jax.models.t5 import T5, T5v11
from plm_jax.models.vaswani import Transformer
from tests.data.toy_store import toy_vocab

FLOAT32 = Compute(dtype="float32", layers="scan")
UNROLLED = Compute(dtype="float32", layers="unroll")
V, KEY = 53, jax.random.key(0)
TOY = {"vocab_size": V, "layers": 2, "decoder_layers": 3, "width": 12, "heads": 3, "hidden": 20}
MODELS = {
  "vaswani": Transformer(**TOY),
  "t5": T5(**TOY, head_width=5),
  "t5 v1.1": T5v11(**TOY, head_width=5),
  "bart": Bart(**TOY, positions=40),
  "mbart": MBart(**TOY, positions=40),
}

states = jax.jit(lambda model, batch, compute: model(batch, compute), static_argnums=2)
logits = jax.jit(
  lambda model, batch, compute: model.token_logits(model(batch, compute)), static_argnums=2
)


def count(config, vocab_size, *heads):
  config = dataclasses.replace(config, vocab_size=vocab_size)
  shapes = jax.eval_shape(lambda key: config.init(key, dict.fromkeys(heads, 2)), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@functools.cache
def initial(name, heads=("lm",)):
  """Larger than usual weights, so that nothing is lost in rounding."""
  shapes = jax.eval_shape(lambda key: MODELS[name].init(key, dict.fromkeys(heads, 2)), KEY)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


def toy_batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "input_ids": rng.integers(3, V, (3, 11)).astype(np.int32),
    "length": np.array([11, 4, 7], np.int32),
    "decoder_input_ids": rng.integers(3, V, (3, 9)).astype(np.int32),
    "decoder_length": np.array([9, 9, 5], np.int32),
  }


@pytest.mark.parametrize(
  ("config", "vocab_size", "published"),
  [
    (t5.SMALL, 32_128, 60_506_624),
    (t5.BASE, 32_128, 222_903_552),
    (t5.LARGE, 32_128, 737_668_096),
    (t5.T5_3B, 32_128, 2_851_598_336),
    (t5.T5_11B, 32_128, 11_307_321_344),
    (t5.V11_SMALL, 32_128, 76_961_152),
    (t5.V11_BASE, 32_128, 247_577_856),
    (t5.V11_LARGE, 32_128, 783_150_080),
    (t5.V11_XL, 32_128, 2_849_757_184),
    (t5.V11_XXL, 32_128, 11_135_332_352),
    (bart.BASE, 50_265, 139_420_416),
    (bart.LARGE, 50_265, 406_291_456),
    (bart.LARGE, 50_264, 406_290_432),
    (bart.MBART_LARGE, 250_027, 610_851_840),
    (bart.MBART_LARGE, 250_054, 610_879_488),
    (vaswani.BASE, 37_000, 63_082_496),
    (dataclasses.replace(vaswani.BASE, attention_bias=False), 37_000, 63_045_632),
  ],
)
def test_parameter_counts_are_those_of_the_released_models(config, vocab_size, published):
  assert count(config, vocab_size, "lm") == published


def test_buckets_begin_where_the_original_s_do():
  """32 buckets up to 128: one-way, and 16 of them in either direction."""
  one_way = buckets_of(301, 32, 128)
  starts = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
  assert np.flatnonzero(np.diff(one_way, prepend=-1)).tolist() == [*range(16), *starts]
  both = buckets_of(301, 16, 128)
  starts = [8, 12, 16, 23, 32, 46, 64, 91]
  assert np.flatnonzero(np.diff(both, prepend=-1)).tolist() == [*range(8), *starts]
  assert one_way[-1] == 31 and both[-1] == 15


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_of_a_pair_is_that_of_its_distance(bidirectional):
  bias = RelativeBias(jax.random.key(0), 32, 128, 3, bidirectional)
  bias.relative.table[...] = jax.random.normal(jax.random.key(1), (32, 3))
  made = bias(130, 150)
  relative = np.arange(150) - np.arange(130)[:, None]
  np.testing.assert_array_equal(made, bias.at(jnp.int32(0), 130, 150))
  np.testing.assert_array_equal(made[:, :, 4:7], bias.at(jnp.int32(4), 3, 150))
  bucket = np.asarray(bias.bucket(relative))
  sixteen = buckets_of(200, 16, 128)
  expected = sixteen[np.abs(relative)] + 16 * (relative > 0)
  if not bidirectional:
    expected = buckets_of(200, 32, 128)[np.maximum(-relative, 0)]
  np.testing.assert_array_equal(bucket, expected)


def test_sinusoids_are_those_of_the_paper():
  rows = np.asarray(sinusoids(jnp.arange(50), 8))
  for i in range(4):
    angle = np.arange(50) / 10_000 ** (2 * i / 8)
    np.testing.assert_allclose(rows[:, i], np.sin(angle), atol=1e-5)
    np.testing.assert_allclose(rows[:, 4 + i], np.cos(angle), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_sees_no_later_token_and_no_padding_of_the_source(name):
  model, batch = initial(name), toy_batch()
  later = batch | {"decoder_input_ids": batch["decoder_input_ids"].copy()}
  later["decoder_input_ids"][:, 5] = 7
  padded = batch | {"input_ids": batch["input_ids"].copy()}
  padded["input_ids"][1, 4:] = 7
  before = states(model, batch, FLOAT32)
  np.testing.assert_array_equal(before[:, :5], states(model, later, FLOAT32)[:, :5])
  assert not np.allclose(before[:, 5:], states(model, later, FLOAT32)[:, 5:])
  np.testing.assert_array_equal(before, states(model, padded, FLOAT32))
  padded["input_ids"][1, 3] = 7
  assert not np.allclose(before[1], states(model, padded, FLOAT32)[1])


@pytest.mark.parametrize(
  ("name", "compute"),
  [
    *(("t5", FLOAT32), ("vaswani", UNROLLED)),
    pytest.param("mbart", FLOAT32, marks=pytest.mark.slow),
    pytest.param("t5 v1.1", UNROLLED, marks=pytest.mark.slow),
  ],
)
def test_reading_token_by_token_from_a_cache_equals_one_forward_pass(name, compute):
  model, batch = initial(name), toy_batch()
  ids = batch["decoder_input_ids"]
  expected = logits(model, batch, compute)

  @jax.jit
  def read(model, batch, pad):
    generator = model.generator(compute)
    cache = generator.start({**batch, "pad": pad}, 12)
    prompt = jnp.concatenate([jnp.zeros((3, 2), jnp.int32), ids[:, :4]], axis=1)
    first, cache = generator.extend(prompt, cache)

    def step(cache, ids_B):
      found, cache = generator.extend(ids_B[:, None], cache)
      return cache, found

    rest = jax.lax.scan(step, cache, ids[:, 4:].T)[1]
    return jnp.concatenate([first[None], rest]).swapaxes(0, 1)

  found = read(model, batch, jnp.full(3, 2))
  np.testing.assert_allclose(found, expected[:, 3:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.slow
def test_scanned_unrolled_and_rematerialised_layers_agree(name):
  noise = Noise.create(jax.random.key(1), "hash")

  def loss(model, compute):
    return jnp.square(model.token_logits(model(toy_batch(), compute, noise))).mean()

  reference, other = (
    jax.jit(jax.value_and_grad(functools.partial(loss, compute=compute)))(initial(name))
    for compute in (dataclasses.replace(FLOAT32, remat=True), UNROLLED)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), reference, other
  )


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_bfloat16_stays_near_float32(name):
  low = states(initial(name), toy_batch(), Compute(dtype="bfloat16"))
  assert low.dtype == jnp.bfloat16
  exact = states(initial(name), toy_batch(), FLOAT32)
  assert 0 < np.abs(low.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_t5_scales_its_logits_and_its_successor_does_not():
  hidden = jnp.ones((1, 1, 12))
  for name, scale in (("t5", 12**-0.5), ("t5 v1.1", 1.0)):
    model = initial(name)
    expected = scale * model.output_table().sum(axis=1)
    np.testing.assert_allclose(model.token_logits(hidden)[0, 0], expected, atol=1e-6)


@pytest.mark.slow
def test_shared_layers_are_one_set_of_arrays_with_the_gradients_of_both_sides():
  toy = dataclasses.replace(MODELS["t5"], decoder_layers=None)
  own, shared = toy, dataclasses.replace(toy, arrangement="shared")
  cross = 2 * (4 * 12 * 15 + 12)
  stack = 2 * (4 * 12 * 15 + 2 * 12 * 20 + 2 * 12)
  assert count(own, V, "lm") - count(shared, V, "lm") == stack
  model = jax.jit(lambda key: shared.init(key, {"lm": 0}))(KEY)
  assert model.encoder_stack.blocks is None
  leaves = jax.tree.leaves(model.decoder_stack.blocks)
  assert sum(x.size for x in leaves) == cross + stack

  def source_loss(model):
    return jnp.square(model.encode(toy_batch(), FLOAT32)).sum()

  gradient = jax.jit(jax.grad(source_loss))(model).decoder_stack.blocks
  assert jnp.abs(gradient.attention.query.kernel[...]).max() > 0
  assert jnp.abs(gradient.cross.query.kernel[...]).max() == 0
  with pytest.raises(UserError, match=r"model\.arrangement=shared has one set"):
    dataclasses.replace(MODELS["t5"], arrangement="shared")


@pytest.mark.slow
@pytest.mark.parametrize("arrangement", ["prefix", "causal"])
def test_a_single_stack_reads_the_target_behind_its_source(arrangement):
  toy = dataclasses.replace(MODELS["t5"], decoder_layers=None, arrangement=arrangement)
  shapes = shapes_of(toy)
  rng = np.random.default_rng(0)
  model = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)
  assert sum(x.size for x in jax.tree.leaves(model)) < 0.6 * count(MODELS["t5"], V, "lm")
  batch = toy_batch()
  before = states(model, batch, FLOAT32)
  assert before.shape == (3, 9, 12)
  # The rows one by one, without padding between source and target.
  for row, length in enumerate(batch["length"]):
    ids = np.concatenate([batch["input_ids"][row, :length], batch["decoder_input_ids"][row]])
    alone = {"input_ids": ids[None], "length": np.array([length])}
    if arrangement == "prefix":
      alone = {k: v[row : row + 1] for k, v in batch.items()}
      alone["input_ids"] = alone["input_ids"][:, :length]
      expected = states(model, alone, FLOAT32)[0]
    else:
      expected = states(model, alone, FLOAT32)[0, length:]
    np.testing.assert_allclose(before[row], expected, atol=2e-5)
  last = batch | {"input_ids": batch["input_ids"].copy()}
  last["input_ids"][0, 10] = 9  # the source's last token: the state of its first sees it, or not
  sources = [{k: b[k] for k in ("input_ids", "length")} for b in (batch, last)]
  unlike = np.subtract(*(states(model, source, FLOAT32)[0, 0] for source in sources))
  assert (np.abs(unlike).max() > 1e-4) == (arrangement == "prefix")


def test_rows_to_classify_are_read_by_both_sides_and_told_by_their_last_state():
  model = initial("bart", ("classes",))
  batch = {k: v for k, v in toy_batch().items() if not k.startswith("decoder")}
  hidden = states(model, batch, FLOAT32)
  scores = model.class_logits(hidden, batch, None)
  assert scores.shape == (3, 2)
  rolled = np.stack([np.roll(r[:n], 1)[:4] for r, n in zip(batch["input_ids"], batch["length"])])
  explicit = batch | {"decoder_input_ids": rolled}
  np.testing.assert_allclose(states(model, explicit, FLOAT32), hidden[:, :4], atol=1e-5)
  changed = batch | {"input_ids": batch["input_ids"].copy()}
  changed["input_ids"][1, 5:] = 9
  same = model.class_logits(states(model, changed, FLOAT32), changed, None)
  np.testing.assert_allclose(same[1], scores[1], atol=1e-6)


@pytest.mark.slow
def test_initial_queries_of_t5_make_up_for_the_missing_scale():
  config = dataclasses.replace(t5.SMALL, vocab_size=64, layers=1)
  model = jax.jit(lambda key: config.init(key, {"lm": 0, "classes": 2}))(jax.random.key(0))
  attention = model.encoder_stack.blocks.attention
  expected = {
    (512 * 64) ** -0.5: attention.query.kernel,
    512**-0.5: attention.key.kernel,
    (8 * 64) ** -0.5: attention.output.kernel,
    2048**-0.5: model.decoder_stack.blocks.feed_forward.down.kernel,
    1.0: model.token.table,
    0.02: model.classes.kernel,
  }
  for stddev, parameter in expected.items():
    assert float(parameter[...].std()) == pytest.approx(stddev, rel=0.1)


def test_a_source_is_framed_and_a_decoder_begun_as_in_training():
  vocab = toy_vocab()  # pad 0, [CLS] 2, [SEP] 3
  assert (t5.SMALL.source_ids([7, 8], vocab), t5.SMALL.decoder_start(vocab)) == ([7, 8, 3], [0])
  assert bart.BASE.source_ids([7, 8], vocab) == vaswani.BASE.source_ids([7, 8], vocab)
  assert bart.BASE.source_ids([7, 8], vocab) == [2, 7, 8, 3]
  assert (bart.BASE.decoder_start(vocab), vaswani.BASE.decoder_start(vocab)) == ([3, 2], [2])
  spoken = dataclasses.replace(vocab, languages={"en_XX": 999})
  assert bart.MBART_LARGE.source_ids([7, 8], spoken) == [7, 8, 3, 999]
  assert bart.MBART_LARGE.decoder_start(spoken) == [999]
  with pytest.raises(UserError, match="no language code 'en_XX'"):
    bart.MBART_LARGE.decoder_start(vocab)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("heads", 5),
    ("dropout", 1.0),
    ("decoder_layers", 0),
    ("relative_buckets", 2),
    ("arrangement", "prefix"),
    ("norm_eps", 0.0),
  ],
)
def test_impossible_sizes_are_refused(field, value):
  config = MODELS["bart"]
  if field == "arrangement":  # of learned positions
    config = dataclasses.replace(config, decoder_layers=None)
  name = {"heads": "model.width"}.get(field, field)
  with pytest.raises(UserError, match=name):
    dataclasses.replace(config, **{field: value})


def shapes_of(config):
  return jax.eval_shape(lambda key: config.init(key, {"lm": 0}), KEY)


def their_logits(torch, theirs, batch):
  mask = np.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
  with torch.no_grad():
    return theirs(
      input_ids=torch.tensor(batch["input_ids"]).long(),
      attention_mask=torch.tensor(mask).long(),
      decoder_input_ids=torch.tensor(batch["decoder_input_ids"]).long(),
    ).logits.numpy()


def assert_agree(ours, torch, theirs, batch):
  found = logits(ours, batch, FLOAT32)
  expected = their_logits(torch, theirs, batch)
  assert np.abs(expected).max() > 0.5
  assert np.abs(found - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
  ("projection", "tied"), [("relu", True), ("gated-gelu", False), ("gated-silu", False)]
)
def test_t5_s_logits_agree_with_transformers(projection, tied):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from tests.models.torch_encoder import randomised
  from tests.models.torch_seq2seq import t5_parameters

  config = transformers.T5Config(
    vocab_size=V,
    d_model=12,
    d_kv=5,
    d_ff=20,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=7,
    feed_forward_proj=projection,
    tie_word_embeddings=tied,
    decoder_start_token_id=0,
  )
  theirs = transformers.T5ForConditionalGeneration(config)
  if not tied:  # transformers ties a new model of this config: the head is given as a checkpoint's
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(V, 12))
  theirs = randomised(torch, theirs)
  base = MODELS["t5" if tied else "t5 v1.1"]
  ours = dataclasses.replace(
    base,
    gated=projection != "relu",
    activation={"relu": "relu", "gated-gelu": "gelu_tanh", "gated-silu": "silu"}[projection],
    relative_buckets=8,
    relative_distance=7,
  )
  ours = shapes_of(ours)
  assert_agree(t5_parameters(ours, theirs), torch, theirs, toy_batch())


@pytest.mark.slow
@pytest.mark.parametrize(
  ("family", "scale"), [("Bart", False), ("Bart", True), ("MBart", True), ("Marian", True)]
)
def test_bart_s_mbart_s_and_marian_s_logits_agree_with_transformers(family, scale):
  """Marian is Vaswani's Transformer as transformers has it."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from tests.models.torch_encoder import randomised
  from tests.models.torch_seq2seq import bart_parameters

  activation = {"Bart": "gelu", "MBart": "gelu_pytorch_tanh", "Marian": "relu"}[family]
  config = getattr(transformers, f"{family}Config")(
    vocab_size=V,
    d_model=12,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=3,
    decoder_attention_heads=2,
    encoder_ffn_dim=20,
    decoder_ffn_dim=18,
    max_position_embeddings=40,
    activation_function=activation,
    scale_embedding=scale,
    pad_token_id=1,
    decoder_start_token_id=2,
  )
  kind = "MarianMTModel" if family == "Marian" else f"{family}ForConditionalGeneration"
  theirs = getattr(transformers, kind)(config)
  computed = {k: v.clone() for k, v in theirs.state_dict().items() if "embed_positions" in k}
  theirs = randomised(torch, theirs)
  if family == "Marian":  # sinusoids, though they are in its state
    theirs.load_state_dict(computed, strict=False)
  base = {"Bart": Bart, "MBart": MBart, "Marian": Transformer}[family]
  ours = base(
    **TOY,
    positions=40,
    decoder_heads=2,
    decoder_hidden=18,
    embedding_scale=scale,
    norm_eps=1e-5,
    activation={"Bart": "gelu_erf", "MBart": "gelu_tanh", "Marian": "relu"}[family],
  )
  ours = shapes_of(ours)
  assert_agree(bart_parameters(ours, theirs), torch, theirs, toy_batch())
