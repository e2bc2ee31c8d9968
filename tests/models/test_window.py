"""Layers that differ: within a window or over all, by hand, in every loop and with a cache."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models import attention
from plm_jax.models.attention import attend, attend_causally, causal_mask
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.encoder import Encoder
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.t5 import T5
from plm_jax.models.transformer import AttentionContext
from tests.models.torch_encoder import filled, randomised

T, LAYERS, WINDOW = 12, 5, 2
SIZES = {"vocab_size": 50, "width": 24, "heads": 6, "positions": 16, "initializer_range": 0.2}
LOCAL = {"layers": LAYERS, "window": WINDOW, "global_every": 2} | SIZES
MODELS = {
  "gpt2": Gpt2(**LOCAL),
  "llama": Llama(kv_heads=2, local_rope_theta=100.0, **LOCAL),
  "bert": Bert(**LOCAL),
  "modern": Encoder(
    position="rotary",
    local_rope_theta=100.0,
    norm="rms",
    norm_at="pre",
    gated=True,
    attention_bias=False,
    feed_forward_bias=False,
    **LOCAL,
  ),
  "all within the window": Gpt2(**LOCAL | {"global_every": 0}),
  "albert": Bert(sharing="all", **LOCAL),
}
SOME_SLOW = [
  n if n in ("gpt2", "modern") else pytest.param(n, marks=pytest.mark.slow) for n in MODELS
]
LOOPS = {name: Compute(dtype="float32", layers=name) for name in ("scan", "unroll")}


@functools.cache
def initial(name, **changes):
  config = dataclasses.replace(MODELS[name], **changes)
  heads = {"mlm": 0} if isinstance(config, Encoder) else {"lm": 0}
  return jax.jit(lambda: config.init(jax.random.key(0), heads))()


def toy_batch(name):
  """Rows that are padded, and of several documents where the model tells them apart."""
  ids = np.random.default_rng(0).integers(5, 50, (3, T)).astype(np.int32)
  batch = {"input_ids": ids, "length": np.array([12, 7, 9], np.int32)}
  if isinstance(MODELS[name], Encoder):
    return batch | {"segment_ids": np.zeros_like(ids)}
  documents = [[0] * T, [0] * 4 + [1] * 8, [0, 0] + [1] * 7 + [2] * 3]
  return batch | {"document_ids": np.array(documents, np.int32)}


def masks_by_hand(name, batch):
  """[of layers that see all, of those that see a window], pair by pair."""
  both = np.zeros((2, 3, 1, T, T), bool)
  for b, t, s in np.ndindex(3, T, T):
    if "document_ids" in batch:
      sees = s <= t and batch["document_ids"][b, s] == batch["document_ids"][b, t]
    else:
      sees = s < batch["length"][b]
    both[:, b, 0, t, s] = sees, sees and abs(s - t) <= WINDOW
  return both


def states_by_hand(name, model, batch):
  config = MODELS[name]
  wide, near = masks_by_hand(name, batch)
  positions = jnp.arange(T)[None]
  if "document_ids" in batch:
    first = [[list(row).index(d) for d in row] for row in batch["document_ids"]]
    positions = positions - np.array(first)
    x = model.embed(batch["input_ids"], positions, jnp.float32, None)
  else:
    x = model.embed(batch, jnp.float32, None)
  local_config = dataclasses.replace(config, rope_theta=config.local_rope_theta or 10_000.0)
  for layer in range(LAYERS):
    sees_all = config.global_every and layer % config.global_every == 0
    rotation = (config if sees_all else local_config).rotation(positions)
    row = 0 if getattr(config, "sharing", "none") == "all" else layer
    block = jax.tree.map(operator.itemgetter(row), model.blocks)
    x, _ = block(x, AttentionContext(wide if sees_all else near, rotation), None)
  return x if model.norm is None else model.norm(x)


@functools.cache
def references(name):
  """The states with masks made by hand, and those without a window."""
  model, batch = initial(name), toy_batch(name)
  expected = jax.jit(lambda model: states_by_hand(name, model, batch))(model)
  dense = initial(name, window=None, global_every=0, local_rope_theta=None)
  return expected, jax.jit(lambda model: model(batch, LOOPS["scan"]))(dense)


@pytest.mark.parametrize("block", [64, 5])
@pytest.mark.parametrize("loop", ["unroll", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOME_SLOW)
def test_every_layer_sees_the_tokens_of_a_mask_made_by_hand(name, loop, block, monkeypatch):
  """With block=5 causal attention on a CPU is computed in blocks of 5, 5 and 2 queries."""
  monkeypatch.setattr(attention, "BLOCK", block)
  model, batch = initial(name), toy_batch(name)
  real = np.arange(T) < batch["length"][:, None]
  ours = jax.jit(lambda model: model(batch, LOOPS[loop]))(model)
  expected, dense = references(name)
  np.testing.assert_allclose(ours[real], expected[real], atol=2e-5, rtol=1e-4)
  assert np.abs(dense - ours)[real].max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "modern"])
def test_scanned_unrolled_and_rematerialised_layers_agree(name, monkeypatch):
  """The reference attends to whole rows, the others in blocks of 5, 5 and 2 queries."""
  noise, batch = Noise.create(jax.random.key(1), "hash"), toy_batch(name)

  def norm_and_gradient(**compute):
    def loss(model):
      return jnp.square(model(batch, Compute(dtype="float32", **compute), noise)).mean()

    return jax.jit(jax.value_and_grad(loss))(initial(name))

  reference = norm_and_gradient(layers="scan")
  monkeypatch.setattr(attention, "BLOCK", 5)
  for compute in ({"layers": "unroll"}, {"layers": "scan", "remat": True}):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      reference,
      norm_and_gradient(**compute),
    )


def test_blocks_leave_out_the_sources_before_all_windows(monkeypatch):
  """Blocks of 3 queries with windows of 2: results, gradients, and the weights that are dropped."""
  monkeypatch.setattr(attention, "BLOCK", 3)
  qkv = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 9, 3, 5)), jnp.float32)
  mask = causal_mask(9) & attention.window_mask(2, 9, 9)

  def run(how):
    def total(q, k, v):
      y = how(q, k, v, mask, 0.4, Noise.create(jax.random.key(1), "hash"))
      return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)

  blocks = functools.partial(attend_causally, window=2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), run(blocks), run(attend))
  shapes = str(jax.make_jaxpr(lambda q, k, v: blocks(q, k, v, mask, 0.0, None))(*qkv))
  assert "2,3,3,5]" in shapes and "2,3,3,6]" not in shapes and "2,3,3,9]" not in shapes


@pytest.mark.parametrize("loop", ["unroll", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_cache_changes_no_logit(name, loop):
  """A prompt padded on the left and five tokens, one at a time, against the whole row at once."""
  ids, prompts, compute = toy_batch(name)["input_ids"], np.array([7, 2, 4]), LOOPS[loop]

  @jax.jit
  def cached(model):
    generator = model.generator(compute)
    cache = generator.start({"pad": 7 - prompts}, 16)
    prompt = np.zeros((3, 7), np.int32)
    for row, length in enumerate(prompts):
      prompt[row, 7 - length :] = ids[row, :length]
    logits, cache = generator.extend(jnp.asarray(prompt), cache)
    steps = [logits]
    for step in range(5):
      logits, cache = generator.extend(ids[np.arange(3), prompts + step][:, None], cache)
      steps.append(logits)
    return jnp.stack(steps, axis=1)

  whole = jax.jit(lambda model: model.token_logits(model({"input_ids": ids}, compute)))
  logits, expected = cached(initial(name)), whole(initial(name))
  for row, length in enumerate(prompts):
    np.testing.assert_allclose(
      logits[row], expected[row, length - 1 : length + 5], atol=2e-5, rtol=1e-4
    )


FEW = 5  # tokens that are generated, more than the window reaches
SEQ2SEQ = {"vocab_size": 50, "layers": 3, "width": 12, "heads": 3, "initializer_range": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [T5, Bart])
def test_both_sides_of_an_encoder_decoder_have_windows(kind, loop):
  """A source token out of reach of all layers changes no state; a cache changes no logit."""
  config, compute = kind(window=1, **SEQ2SEQ), LOOPS[loop]
  model = jax.jit(lambda: config.init(jax.random.key(0), {"lm": 0}))()
  ids = np.random.default_rng(0).integers(5, 50, (2, T)).astype(np.int32)
  changed, length = ids.copy(), np.full(2, T, np.int32)
  changed[:, 0] = 3
  encode = jax.jit(lambda model, ids: model.encode({"input_ids": ids, "length": length}, compute))
  before, after = encode(model, ids), encode(model, changed)
  np.testing.assert_array_equal(before[:, 4:], after[:, 4:])
  assert (np.abs(before - after)[:, :4].max(axis=-1) > 1e-4).all()

  batch = {"input_ids": ids, "length": length, "decoder_input_ids": ids[:, ::-1]}
  whole = jax.jit(lambda model: model.token_logits(model(batch, compute)))(model)

  @jax.jit
  def cached(model):
    generator = model.generator(compute)
    cache = generator.start({"pad": np.zeros(2, int), "input_ids": ids, "length": length}, T)
    steps = []
    for column in range(FEW):
      logits, cache = generator.extend(batch["decoder_input_ids"][:, column][:, None], cache)
      steps.append(logits)
    return jnp.stack(steps, axis=1)

  np.testing.assert_allclose(cached(model), whole[:, :FEW], atol=2e-5, rtol=1e-4)


def test_a_window_as_long_as_the_row_changes_nothing():
  batch = toy_batch("gpt2")
  both = [
    jax.jit(lambda model: model(batch, LOOPS["unroll"]))(initial("gpt2", window=window, **change))
    for window, change in ((T - 1, {}), (None, {"global_every": 0}))
  ]
  np.testing.assert_allclose(*both, atol=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"global_every": 2}, r"model\.global_every=2 needs model\.window"),
    ({"attention_scale": 0.0}, r"model\.attention_scale=0\.0 must be above 0"),
    ({"window": 0}, r"model\.window=0 must be at least 1"),
    (
      {"window": 2, "local_rope_theta": 100.0},
      r"local_rope_theta=100\.0 needs model\.position",
    ),
  ],
)
@pytest.mark.parametrize("kind", [Bert, Gpt2, T5])
def test_settings_without_a_meaning_are_refused_by_name(kind, change, message):
  with pytest.raises(UserError, match=message):
    kind(**change)


@pytest.mark.parametrize(
  ("kind", "position", "known"),
  [
    (Bert, "relative", "learned, rotary"),
    (Gpt2, "sinusoidal", "learned, rotary"),
    (Bart, "rotary", "learned, sinusoidal, relative"),
  ],
)
def test_positions_that_a_stack_lacks_are_refused(kind, position, known):
  with pytest.raises(UserError, match=rf"no model\.position={position}; it has {known}"):
    kind(position=position)


@pytest.mark.slow
def test_states_agree_with_transformers_modern_bert():
  """Its first layer has no norm before its attention. Ours has one, which changes nothing after the
  norm of the embeddings, with gain 1 and a tiny eps."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  their_config = transformers.ModernBertConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=LAYERS,
    num_attention_heads=6,
    max_position_embeddings=64,
    local_attention=6,
    norm_eps=1e-12,
    pad_token_id=0,
  )
  torch.manual_seed(1)
  theirs = randomised(torch, transformers.ModernBertModel(their_config))
  with torch.no_grad():
    theirs.embeddings.norm.weight.fill_(1.0)
  config = Encoder(
    **{**SIZES, "layers": LAYERS, "hidden": 20, "positions": 64, "segments": 0},
    position="rotary",
    rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    window=3,
    global_every=3,
    norm_at="pre",
    norm_eps=1e-12,
    activation="gelu_erf",
    gated=True,
    attention_bias=False,
    feed_forward_bias=False,
  )
  state = {name: value.numpy() for name, value in theirs.state_dict().items()}
  ours = filled(jax.jit(lambda: config.init(jax.random.key(0), {}))(), ours_of(state))
  ids = np.random.default_rng(1).integers(1, 50, (2, 20)).astype(np.int32)
  mask = np.ones((2, 20), np.int32)
  mask[1, 13:] = 0
  with torch.no_grad():
    inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask)}
    expected = theirs(**inputs).last_hidden_state.numpy()
  batch = {"input_ids": ids, "length": mask.sum(axis=1, dtype=np.int32)}
  states = jax.jit(lambda model: model(batch, LOOPS["unroll"]))(ours)
  assert np.abs(states - expected)[mask == 1].max() < 5e-5
  assert np.abs(expected[mask == 1]).max() > 0.3


def ours_of(state):
  """ModernBERT's arrays under our names: its norms have no biases, one matrix makes q, k and v."""
  zeros = np.zeros((LAYERS, 24), np.float32)
  stacked = lambda name: np.stack([state[f"layers.{i}.{name}.weight"] for i in range(LAYERS)])  # noqa: E731
  qkv = stacked("attn.Wqkv").swapaxes(1, 2).reshape(LAYERS, 24, 3, 6, 4)
  up = stacked("mlp.Wi").swapaxes(1, 2)
  later = [state[f"layers.{i}.attn_norm.weight"] for i in range(1, LAYERS)]
  arrays = {
    "embed/token/table": state["embeddings.tok_embeddings.weight"],
    "embed/norm/gain": state["embeddings.norm.weight"],
    "embed/norm/bias": zeros[0],
    "norm/gain": state["final_norm.weight"],
    "norm/bias": zeros[0],
    "blocks/attention_norm/gain": np.stack([np.ones(24, np.float32), *later]),
    "blocks/attention_norm/bias": zeros,
    "blocks/attention/output/kernel": stacked("attn.Wo").swapaxes(1, 2).reshape(LAYERS, 6, 4, 24),
    "blocks/feed_forward_norm/gain": stacked("mlp_norm"),
    "blocks/feed_forward_norm/bias": zeros,
    "blocks/feed_forward/gate/kernel": up[..., :20],
    "blocks/feed_forward/up/kernel": up[..., 20:],
    "blocks/feed_forward/down/kernel": stacked("mlp.Wo").swapaxes(1, 2),
  }
  for part, name in enumerate(("query", "key", "value")):
    arrays[f"blocks/attention/{name}/kernel"] = qkv[:, :, part]
  return arrays
