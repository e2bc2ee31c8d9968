"""Decoders: published sizes, what a token sees, the original mathematics, and the cache."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models import attention, gpt, llama, mistral, qwen2
from plm_jax.models.compute import Compute
from plm_jax.models.decoder import Decoder
from plm_jax.models.dropout import Noise
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.positions import LinearScaling, Llama3Scaling, document_positions
from tests.models.torch_encoder import filled, randomised

FLOAT32 = Compute(dtype="float32")
SIZES = {"vocab_size": 50, "layers": 2, "width": 24, "positions": 16, "initializer_range": 0.2}
KINDS = {
  "gpt1": Gpt1(heads=3, **SIZES),
  "gpt2": Gpt2(heads=3, inverse_layer_scale=True, **SIZES),
  "llama": Llama(heads=6, kv_heads=2, head_width=10, hidden=20, **SIZES),
}

states = jax.jit(lambda model, batch, compute: model(batch, compute), static_argnums=2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial(config, heads=("lm",)):
  return config.init(jax.random.key(0), dict.fromkeys(heads, 3))


def count(config, **vocabulary):
  config = dataclasses.replace(config, **vocabulary)
  shapes = jax.eval_shape(lambda key: config.init(key, {"lm": 0}), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def toy_batch(rows=3, length=12):
  ids = np.random.default_rng(0).integers(5, 50, (rows, length)).astype(np.int32)
  return {"input_ids": ids, "length": np.array([12, 7, 9][:rows], np.int32)}


@pytest.mark.parametrize(
  ("config", "vocab_size", "published"),
  [
    (Gpt1(), 40_478, 116_534_784),
    (gpt.SMALL, 50_257, 124_439_808),
    (gpt.MEDIUM, 50_257, 354_823_168),
    (gpt.LARGE, 50_257, 774_030_080),
    (gpt.XL, 50_257, 1_557_611_200),
    (Gpt2(layers=6), 50_257, 81_912_576),
    (llama.B7, 32_000, 6_738_415_616),
    (llama.B13, 32_000, 13_015_864_320),
    (llama.B30, 32_000, 32_528_943_616),
    (llama.B65, 32_000, 65_285_660_672),
    (llama.LLAMA2_70B, 32_000, 68_976_648_192),
    (llama.LLAMA3_8B, 128_256, 8_030_261_248),
    (mistral.B7, 32_000, 7_241_732_096),
    (qwen2.B0_5, 151_936, 494_032_768),
    (qwen2.B1_5, 151_936, 1_543_714_304),
    (qwen2.B7, 152_064, 7_615_616_512),
  ],
)
def test_parameter_counts_are_those_of_the_released_models(config, vocab_size, published):
  assert count(config, vocab_size=vocab_size) == published


@pytest.mark.parametrize(("name", "size"), gpt.GPT3.items())
def test_the_sizes_of_gpt_3_have_about_the_parameters_of_their_names(name, size):
  """Within 10%: what is printed for 1.3B has attention half as wide again as its width."""
  told = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
  off = count(size, vocab_size=50_257) / told - 1
  assert abs(off) < (0.20 if name == "1.3B" else 0.10)


def test_llama_s_feed_forward_is_two_thirds_of_four_widths_rounded_up():
  widths = (llama.B7, llama.B13, llama.B30, llama.B65)
  assert [c.width_of_feed_forward for c in widths] == [11008, 13824, 17920, 22016]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
  return initial(KINDS[request.param])


def test_a_token_sees_none_of_those_after_it(model):
  batch = toy_batch()
  changed = batch | {"input_ids": batch["input_ids"].copy()}
  changed["input_ids"][0, 8:] += 1
  before, after = states(model, batch, FLOAT32), states(model, changed, FLOAT32)
  np.testing.assert_array_equal(before[0, :8], after[0, :8])
  assert (np.abs(before[0, 8:] - after[0, 8:]).max(axis=1) > 1e-3).all()


def test_documents_of_one_row_are_computed_as_rows_of_their_own(model):
  ids = toy_batch()["input_ids"]
  packed = np.concatenate([ids[0, :5], ids[1, :4], ids[2, :3]])[None]
  documents = np.repeat([7, 8, 9], [5, 4, 3])[None].astype(np.int32)
  together = states(model, {"input_ids": packed, "document_ids": documents}, FLOAT32)[0]
  alone = states(model, {"input_ids": ids}, FLOAT32)
  np.testing.assert_allclose(together[:5], alone[0, :5], atol=1e-5)
  np.testing.assert_allclose(together[5:9], alone[1, :4], atol=1e-5)
  np.testing.assert_allclose(together[9:], alone[2, :3], atol=1e-5)
  merged = states(model, {"input_ids": packed}, FLOAT32)[0]
  assert np.abs(merged[5:] - together[5:]).max() > 0.01  # without documents they do see each other


def test_positions_begin_anew_with_every_document():
  ids = np.array([[4, 4, 4, 5, 5, 9], [0, 0, 1, 1, 1, 1]])
  assert document_positions(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]


@pytest.mark.parametrize("layers", ["unroll", pytest.param("scan", marks=pytest.mark.slow)])
def test_a_cache_changes_no_logit(model, layers):
  """A prompt padded on the left and five tokens, one at a time, against the whole row at once."""
  batch, compute = toy_batch(), Compute(dtype="float32", layers=layers)
  ids, prompts = batch["input_ids"], np.array([7, 2, 4])
  width = prompts.max()

  @jax.jit
  def cached(model):
    generator = model.generator(compute)
    cache = generator.start({"pad": width - prompts}, 16)
    prompt = np.zeros((3, width), np.int32)
    for row, length in enumerate(prompts):
      prompt[row, width - length :] = ids[row, :length]
    logits, cache = generator.extend(jnp.asarray(prompt), cache)
    found = [logits]
    for step in range(5):
      logits, cache = generator.extend(ids[np.arange(3), prompts + step][:, None], cache)
      found.append(logits)
    return jnp.stack(found, axis=1)

  whole = jax.jit(lambda model: model.token_logits(model(batch, FLOAT32)))(model)
  for row, length in enumerate(prompts):
    np.testing.assert_allclose(
      cached(model)[row], whole[row, length - 1 : length + 5], atol=2e-5, rtol=1e-5
    )


@pytest.mark.slow
def test_scanned_unrolled_and_rematerialised_layers_agree(model, monkeypatch):
  """The reference attends to whole rows, the others in blocks of 5, 5 and 2 queries."""
  noise = Noise.create(jax.random.key(1), "hash")

  def norm_and_gradient(**compute):
    def loss(model):
      return jnp.square(model(toy_batch(), Compute(dtype="float32", **compute), noise)).sum()

    return jax.jit(jax.value_and_grad(loss))(model)

  reference = norm_and_gradient(layers="scan")
  monkeypatch.setattr(attention, "BLOCK", 5)
  for compute in ({"layers": "unroll"}, {"layers": "scan", "remat": True}):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3),
      reference,
      norm_and_gradient(**compute),
    )


def test_a_scan_on_a_tpu_keeps_results_of_products_only_with_the_same_gradients(monkeypatch):
  model = initial(Gpt2(heads=3, **SIZES))
  noise = Noise.create(jax.random.key(1), "hash")

  def gradient_and_kept():
    """The gradient, and the shapes that the scan over layers leaves for the backward pass."""

    def loss(model):
      compute = Compute(dtype="float32", layers="scan", attention="plain")
      return jnp.square(model(toy_batch(), compute, noise)).sum()

    gradient = jax.grad(loss)
    forward = next(e for e in jax.make_jaxpr(gradient)(model).eqns if e.primitive.name == "scan")
    return jax.jit(gradient)(model), [v.aval.shape for v in forward.outvars if v.aval.ndim > 3]

  expected, all_of_them = gradient_and_kept()
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  found, products = gradient_and_kept()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
  hidden = [[shape[-1] for shape in kept].count(4 * 24) for kept in (all_of_them, products)]
  assert hidden[0] > 3 and hidden[1] <= 1
  assert len(products) < len(all_of_them) / 2


@pytest.mark.parametrize("block", [64, 5])
def test_bfloat16_keeps_parameters_float32_and_stays_near_float32(model, block, monkeypatch):
  monkeypatch.setattr(attention, "BLOCK", block)
  low = jax.jit(lambda model: model(toy_batch(), Compute(dtype="bfloat16")))(model)
  assert low.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
  error = np.abs(np.asarray(low, np.float32) - states(model, toy_batch(), FLOAT32))
  assert 0 < error.mean() < 0.05


@pytest.mark.parametrize(
  "change",
  [
    {"heads": 5},
    {"kv_heads": 2},
    {"layers": 0},
    {"dropout": 1.0},
    {"head_width": 3, "position": "rotary"},
    {"rope_scaling": LinearScaling(factor=2.0)},
    {"rope_theta": 0.0},
  ],
)
def test_impossible_settings_are_refused_by_name(change):
  with pytest.raises(UserError, match=next(iter(change)).removesuffix("s")):
    dataclasses.replace(KINDS["gpt2"], **change)


def test_a_decoder_has_no_head_for_masked_tokens():
  with pytest.raises(UserError, match=r"no head 'mlm'.*CLM"):
    jax.eval_shape(lambda key: KINDS["gpt2"].init(key, {"mlm": 0}), jax.random.key(0))


# Parity with transformers, on sizes that divide nothing by chance.


def ours_of_gpt(state, config):
  """Theirs under our names: GPT-1 and GPT-2 keep q, k and v in one matrix, inputs first."""
  width, layers, heads = config.width, config.layers, config.heads
  stacked = lambda name: np.stack([state[f"transformer.h.{i}.{name}"] for i in range(layers)])  # noqa: E731
  arrays = {
    "token/table": state[
      f"transformer.{'wte' if 'transformer.wte.weight' in state else 'tokens_embed'}.weight"
    ],
    "position/table": state[
      f"transformer.{'wpe' if 'transformer.wpe.weight' in state else 'positions_embed'}.weight"
    ],
  }
  if "transformer.ln_f.weight" in state:
    arrays |= {
      "norm/gain": state["transformer.ln_f.weight"],
      "norm/bias": state["transformer.ln_f.bias"],
    }
  kernel, bias = stacked("attn.c_attn.weight"), stacked("attn.c_attn.bias")
  for i, part in enumerate(("query", "key", "value")):
    of = slice(i * width, (i + 1) * width)
    arrays[f"blocks/attention/{part}/kernel"] = kernel[..., of].reshape(layers, width, heads, -1)
    arrays[f"blocks/attention/{part}/bias"] = bias[:, of].reshape(layers, heads, -1)
  arrays["blocks/attention/output/kernel"] = stacked("attn.c_proj.weight").reshape(
    layers, heads, -1, width
  )
  arrays["blocks/attention/output/bias"] = stacked("attn.c_proj.bias")
  for part, theirs in (("up", "c_fc"), ("down", "c_proj")):
    arrays[f"blocks/feed_forward/{part}/kernel"] = stacked(f"mlp.{theirs}.weight")
    arrays[f"blocks/feed_forward/{part}/bias"] = stacked(f"mlp.{theirs}.bias")
  for part, theirs in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
    arrays[f"blocks/{part}/gain"] = stacked(f"{theirs}.weight")
    arrays[f"blocks/{part}/bias"] = stacked(f"{theirs}.bias")
  return arrays


def ours_of_llama(state, config):
  layers, heads = config.layers, {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
  stacked = lambda name: np.stack([state[f"model.layers.{i}.{name}"] for i in range(layers)])  # noqa: E731
  arrays = {
    "token/table": state["model.embed_tokens.weight"],
    "norm/gain": state["model.norm.weight"],
  }
  if not config.tied:
    arrays["lm/table"] = state["lm_head.weight"]
  for part in ("query", "key", "value"):
    kernel = stacked(f"self_attn.{part[0]}_proj.weight").swapaxes(1, 2)
    shape = (heads[part[0]], -1)
    arrays[f"blocks/attention/{part}/kernel"] = kernel.reshape(*kernel.shape[:2], *shape)
    if config.attention_bias:
      bias = stacked(f"self_attn.{part[0]}_proj.bias")
      arrays[f"blocks/attention/{part}/bias"] = bias.reshape(layers, *shape)
  kernel = stacked("self_attn.o_proj.weight").swapaxes(1, 2)
  arrays["blocks/attention/output/kernel"] = kernel.reshape(layers, config.heads, -1, config.width)
  if config.attention_bias:
    arrays["blocks/attention/output/bias"] = stacked("self_attn.o_proj.bias")
  for part in ("gate", "up", "down"):
    arrays[f"blocks/feed_forward/{part}/kernel"] = stacked(f"mlp.{part}_proj.weight").swapaxes(1, 2)
    if config.feed_forward_bias:
      arrays[f"blocks/feed_forward/{part}/bias"] = stacked(f"mlp.{part}_proj.bias")
  arrays["blocks/attention_norm/gain"] = stacked("input_layernorm.weight")
  arrays["blocks/feed_forward_norm/gain"] = stacked("post_attention_layernorm.weight")
  return arrays


LLAMA = {
  "vocab_size": 50,
  "hidden_size": 24,
  "intermediate_size": 34,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
GPT = {"vocab_size": 50, "n_positions": 64, "n_embd": 30, "n_layer": 3, "n_head": 5}
LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
GPT_SIZES = {"vocab_size": 50, "positions": 64, "width": 30, "layers": 3, "heads": 5}
LLAMA_SIZES = {
  **{"vocab_size": 50, "positions": 64, "width": 24, "hidden": 34, "layers": 3, "heads": 6},
  "kv_heads": 2,
}
PAIRS = {
  "gpt1": ("OpenAIGPT", GPT, Gpt1(**GPT_SIZES)),
  "gpt2": ("GPT2", GPT | {"activation_function": "gelu"}, Gpt2(activation="gelu_erf", **GPT_SIZES)),
  "gpt2 by inverse layer": (
    "GPT2",
    GPT | {"n_inner": 37, "scale_attn_by_inverse_layer_idx": True},
    Gpt2(hidden=37, inverse_layer_scale=True, **GPT_SIZES),
  ),
  "llama": ("Llama", LLAMA, Llama(**LLAMA_SIZES)),
  "llama with wide heads, biases and tied tables": (
    "Llama",
    LLAMA | {"head_dim": 10, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    Llama(head_width=10, attention_bias=True, feed_forward_bias=True, tied=True, **LLAMA_SIZES),
  ),
  "llama with linear scaling": (
    "Llama",
    LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    Llama(rope_theta=500.0, rope_scaling=LinearScaling(factor=3.0), **LLAMA_SIZES),
  ),
  "llama with llama3 scaling": (
    "Llama",
    LLAMA | {"rope_parameters": LLAMA3_ROPE},
    Llama(
      rope_theta=100.0,
      rope_scaling=Llama3Scaling(factor=4.0, original_positions=16),
      **LLAMA_SIZES,
    ),
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_logits_agree_with_transformers(pair):
  """On padding right and left, which for us is a document of its own."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  name, settings, config = PAIRS[pair]
  their_config = getattr(transformers, f"{name}Config")(**settings)
  head = "LMHeadModel" if "GPT" in name else "ForCausalLM"
  theirs = randomised(torch, getattr(transformers, f"{name}{head}")(their_config))
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  arrays = (ours_of_gpt if "GPT" in name else ours_of_llama)(state, config)
  ours = filled(initial(config), arrays)
  ids = np.random.default_rng(1).integers(0, 50, (3, 40)).astype(np.int32)
  mask = np.ones((3, 40), np.int32)
  mask[1, 33:], mask[2, :9] = 0, 0
  position_ids = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(ids).long(),
      attention_mask=torch.tensor(mask),
      position_ids=torch.tensor(position_ids),
    ).logits.numpy()
  batch = {"input_ids": ids, "document_ids": mask}
  logits = jax.jit(lambda m: m.token_logits(m(batch, FLOAT32)))(ours)
  assert np.abs(logits - expected)[mask == 1].max() < 1e-4
  assert np.abs(expected[mask == 1]).max() > 0.3


def test_a_class_is_read_at_the_last_token_of_a_row():
  model = initial(KINDS["gpt2"], ("classes",))
  batch = toy_batch()
  hidden = np.zeros((3, 12, 24), np.float32)
  hidden[np.arange(3), batch["length"] - 1] = 1.0
  logits = model.class_logits(jnp.asarray(hidden), batch, None)
  assert logits.shape == (3, 3)
  np.testing.assert_allclose(logits, model.class_logits(jnp.ones_like(hidden), batch, None))


def test_projections_into_the_residual_stream_start_smaller_by_the_square_root_of_their_number():
  small, plain = (
    initial(Decoder(heads=3, residual_init=residual_init, **SIZES))
    for residual_init in (True, False)
  )
  for path in ("attention.output", "feed_forward.down"):
    one, other = (
      functools.reduce(getattr, path.split("."), m.blocks).kernel for m in (small, plain)
    )
    np.testing.assert_allclose(one[...], other[...] / math.sqrt(4), rtol=1e-6)
  np.testing.assert_array_equal(small.token.table[...], plain.token.table[...])
