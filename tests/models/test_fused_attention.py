"""Attention in one kernel equals plain attention. On a CPU the kernels are interpreted, those for
GPUs and those for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from plm_jax.errors import UserError
from plm_jax.models import attention, tpu_attention
from plm_jax.models.attention import attend, causal_mask, document_mask, padding_mask, window_mask
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.fused_attention import fused_attention
from plm_jax.models.gpt import Gpt2
from plm_jax.models.groups import Groups, real_sources
from plm_jax.models.t5 import T5
from plm_jax.sharding import MeshShape

B, H = 2, 16
LENGTHS = jnp.array([80, 33])
DOCUMENTS = jnp.asarray(np.repeat([[0, 1, 2, 2], [0, 0, 0, 1]], 20, axis=1), jnp.int32)
PADDED = real_sources(80, jnp.arange(80) < LENGTHS[:, None])
CASES = {
  # name: key heads of 4, rate, the mask as an array, as groups, causal, window
  "padding and dropout": (4, 0.2, padding_mask(LENGTHS, 80), PADDED, False, None),
  "causal documents, shared keys, dropout": (
    *(2, 0.2, document_mask(DOCUMENTS) & causal_mask(80), Groups(DOCUMENTS, DOCUMENTS)),
    *(True, None),
  ),
  "causal with a window": (4, 0.0, causal_mask(80) & window_mask(9, 80, 80), Groups(), True, 9),
  "a window to both sides": (
    *(4, 0.0, padding_mask(LENGTHS, 80) & window_mask(70, 80, 80), PADDED, False, 70),
  ),
  "no mask, and rows that blocks do not divide": (
    *(4, 0.0, jnp.ones((1, 1, 1, 80), bool), Groups(), False, None),
  ),
}


def inputs(key_heads, targets=80, sources=80):
  shapes = [(B, targets, 4, H), (B, sources, key_heads, H), (B, sources, key_heads, H)]
  keys = jax.random.split(jax.random.key(0), 4)
  normal = [jax.random.normal(k, s) for k, s in zip(keys, [*shapes, shapes[0]], strict=True)]
  return normal[:3], normal[3]


def results(function, qkv, gradient):
  """Result and gradients, in one program."""

  def both(qkv, gradient):
    result, pull_back = jax.vjp(function, *qkv)
    return result, pull_back(gradient)

  return jax.jit(both)(qkv, gradient)


PLATFORMS = pytest.mark.parametrize("platform", ["gpu", "tpu"])


@PLATFORMS
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_and_its_gradients_equal_plain_attention(name, platform, monkeypatch):
  monkeypatch.setattr(tpu_attention, "ROWS", 32)
  key_heads, rate, mask, groups, causal, window = CASES[name]
  qkv, gradient = inputs(key_heads)
  sees = jnp.broadcast_to(mask, (B, 1, 80, 80)).any(-1)[:, 0, :, None, None]
  noise = Noise.create(jax.random.key(9), "hash") if rate else None
  seed = None if noise is None else noise.seed

  def kernel(q, k, v):
    options = {"causal": causal, "window": window, "rate": rate, "seed": seed}
    options["platform"] = platform
    return jnp.where(sees, fused_attention(q, k, v, groups, **options), 0)

  def plain(q, k, v):
    return jnp.where(sees, attend(q, k, v, mask, rate, noise), 0)

  fused, expected = results(kernel, qkv, gradient), results(plain, qkv, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), fused, expected)


LONG_DOCUMENTS = jnp.asarray(np.repeat([[0, 1, 2], [0, 0, 1]], 100, axis=1), jnp.int32)
LONG_LENGTHS = jnp.array([300, 140])
LONG_PADDED = real_sources(300, jnp.arange(300) < LONG_LENGTHS[:, None])


@pytest.mark.parametrize(("mask", "groups", "causal", "window"), [
  (causal_mask(300), Groups(), True, None),
  (document_mask(LONG_DOCUMENTS) & causal_mask(300), Groups(LONG_DOCUMENTS, LONG_DOCUMENTS),
   True, None),
  (padding_mask(LONG_LENGTHS, 300) & window_mask(70, 300, 300), LONG_PADDED, False, 70),
  (causal_mask(300) & window_mask(150, 300, 300), Groups(), True, 150),
  (jnp.ones((1, 1, 1, 300), bool), Groups(), False, None),
], ids=["causal", "documents", "padding and a window", "causal window", "no mask"])  # fmt: skip
def test_long_rows_of_a_tpu_equal_plain_attention(mask, groups, causal, window, monkeypatch):
  """In three blocks, the last of which is filled up; query heads share keys."""
  monkeypatch.setattr("plm_jax.models.fused_attention.LONGEST", 256)
  monkeypatch.setattr("plm_jax.models.long_rows.BLOCK", 128)
  qkv, gradient = inputs(2, targets=300, sources=300)
  sees = jnp.broadcast_to(mask, (B, 1, 300, 300)).any(-1)[:, 0, :, None, None]

  def kernel(q, k, v):
    options = {"causal": causal, "window": window, "platform": "tpu"}
    return jnp.where(sees, fused_attention(q, k, v, groups, **options), 0)

  def plain(q, k, v):
    return jnp.where(sees, attend(q, k, v, mask, 0.0, None), 0)

  found, expected = results(kernel, qkv, gradient), results(plain, qkv, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)


@PLATFORMS
def test_a_target_reads_sources_of_another_length(platform):
  qkv, gradient = inputs(4, targets=24, sources=80)
  real_BS = jnp.arange(80) < LENGTHS[:, None]
  groups, mask = real_sources(24, real_BS), real_BS[:, None, None, :]

  def kernel(q, k, v):
    return fused_attention(q, k, v, groups, platform=platform)

  fused = results(kernel, qkv, gradient)
  expected = results(lambda q, k, v: attend(q, k, v, mask, 0.0, None), qkv, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), fused, expected)


@pytest.mark.parametrize(
  ("heads", "width", "programs"), [(4, 64, 2), (3, 64, 1), (2, 128, 2)], ids=str
)
def test_a_program_of_a_tpu_has_the_heads_of_128_numbers(heads, width, programs):
  """Each head reads its own numbers and drops its own weights, in whichever program it is."""
  shape = (B, 24, heads, width)
  q, k, v, gradient = (
    jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(1), 4)
  )
  noise = Noise.create(jax.random.key(9), "hash")

  def kernel(q, k, v):
    return fused_attention(q, k, v, Groups(), rate=0.3, seed=noise.seed, platform="tpu")

  def plain(q, k, v):
    return attend(q, k, v, jnp.ones((1, 1, 1, 24), bool), 0.3, noise)

  found, expected = (results(f, (q, k, v), gradient) for f in (kernel, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)
  traced = jax.make_jaxpr(kernel)(q, k, v).jaxpr
  (call,) = (e for e in everywhere(traced) if e.primitive.name == "pallas_call")
  assert call.params["grid_mapping"].grid == (programs, B)


@pytest.mark.parametrize(("causal", "heads", "width"), [(True, 4, 16), (False, 4, 64)], ids=str)
@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_biases_of_the_scores_and_their_gradients_equal_plain_attention(
  causal, heads, width, devices, monkeypatch
):
  """T5's relative positions on a TPU. All rows add to the gradient of one bias."""
  monkeypatch.setattr(tpu_attention, "ROWS", 128)
  rows, T = 4, 150
  random = np.random.default_rng(0)
  q, k, v, gradient = (
    jnp.asarray(random.normal(size=(rows, T, heads, width)), jnp.float32) for _ in range(4)
  )
  bias_NTS = jnp.asarray(random.normal(size=(heads, T, T)), jnp.float32)
  real_RT = jnp.arange(T) < jnp.array([T, 33, 140, 80])[:, None]
  mask = real_RT[:, None, None, :] & (causal_mask(T) if causal else True)
  sees = (real_RT[:, None, :] & mask[:, 0]).any(-1)[:, :, None, None]
  noise = Noise.create(jax.random.key(9), "hash")

  def kernel(q, k, v, bias_NTS):
    options = {"causal": causal, "rate": 0.2, "seed": noise.seed, "platform": "tpu"}
    groups = real_sources(T, real_RT)
    return jnp.where(sees, fused_attention(q, k, v, groups, bias_NTS=bias_NTS, **options), 0)

  def plain(q, k, v, bias_NTS):
    return jnp.where(sees, attend(q, k, v, mask, 0.2, noise, score_bias=bias_NTS[None]), 0)

  expected = results(plain, (q, k, v, bias_NTS), gradient)
  if devices == 1:
    found = results(kernel, (q, k, v, bias_NTS), gradient)
  else:
    with jax.set_mesh(MeshShape(data=2, tensor=2).build(jax.devices()[:4])):
      found = results(kernel, (q, k, v, bias_NTS), gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


def everywhere(jaxpr):
  """All equations, those of inner functions included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from everywhere(inner)


SIZES = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 64}
BATCH = {
  "input_ids": jnp.asarray(np.random.default_rng(0).integers(5, 60, (4, 16)), jnp.int32),
  "segment_ids": jnp.zeros((4, 16), jnp.int32),
  "length": jnp.array([16, 9, 12, 3]),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", [Bert(**SIZES), Gpt2(**SIZES)], ids=["bert", "gpt"])
@pytest.mark.parametrize(
  "mesh",
  [None, pytest.param(MeshShape(data=2, tensor=2), marks=pytest.mark.slow)],
  ids=["alone", "mesh"],
)
@PLATFORMS
def test_a_model_gives_the_same_states_and_gradients_with_the_kernel(
  config, mesh, platform, monkeypatch
):
  """With dropout, on one device and with rows and heads on four."""
  of_platform = functools.partial(fused_attention, platform=platform)
  monkeypatch.setattr("plm_jax.models.fused_attention.fused_attention", of_platform)
  model = config.init(jax.random.key(0), {})
  noise = Noise.create(jax.random.key(1), "hash")
  real_BT1 = (jnp.arange(16) < BATCH["length"][:, None])[..., None]

  def gradient_and_states(kind):
    compute = Compute(attention=kind, dtype="float32")

    def loss(model, noise):
      states = model(BATCH, compute, noise) * real_BT1
      return jnp.power(states, 4).sum() / 100, states

    return jax.jit(jax.grad(loss, has_aux=True))(model, noise)

  expected = gradient_and_states("plain")
  if mesh is None:
    fused = gradient_and_states("pallas")
  else:
    with jax.set_mesh(mesh.build(jax.devices()[:4])):
      fused = gradient_and_states("pallas")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), fused, expected)


@pytest.mark.parametrize("kind", ["pallas", "cudnn"])
def test_a_kernel_that_does_not_fit_is_refused_with_the_reason(kind):
  model = T5(**SIZES, head_width=16, hidden=32).init(jax.random.key(0), {"lm": 0})
  batch = {name: BATCH[name] for name in ("input_ids", "length")}
  with pytest.raises(
    UserError, match=f"attention={kind} does not fit here: the scores have a bias"
  ):
    model(batch, Compute(attention=kind), None)


def chosen(
  monkeypatch, backend="gpu", *, rate=0.0, groups=None, causal=True, dtype=jnp.bfloat16, width=64,
  heads=4, positions=8, bias=None,
):  # fmt: skip
  """The kind that `auto` takes, and what it says."""
  said = []
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  has_cores = backend == "gpu"
  monkeypatch.setattr(
    attention, "has_tensor_cores", lambda dtype: has_cores and dtype != jnp.float32
  )
  q = jax.ShapeDtypeStruct((2, positions, heads, width), dtype)
  noise = Noise.create(jax.random.key(0), "hash") if rate else None
  monkeypatch.setattr(attention, "_refusal_of_cudnn", lambda q, k: None)
  monkeypatch.setattr(attention, "say_once", said.append)
  form = {"causal": causal, "window": None}
  kind = attention.chosen_kind("auto", _Sized(q), q, groups, noise, bias, **form)
  return kind, "".join(said)


class _Sized:
  """A shape with a length, in place of an array."""

  def __init__(self, shape):
    self.shape, self.dtype, self.ndim = shape.shape, shape.dtype, len(shape.shape)

  def __len__(self):
    return self.shape[0]


def test_auto_takes_the_fastest_kernel_that_fits(monkeypatch):
  def kind(**options):
    return chosen(monkeypatch, **options)[0]

  assert kind(groups=Groups()) == "cudnn"
  assert kind(groups=Groups(), rate=0.1) == "pallas"
  assert kind(groups=PADDED, causal=False) == "pallas"
  assert kind(groups=None) == "plain"
  assert kind(groups=Groups(), width=48) == "plain"
  assert kind(groups=Groups(), dtype=jnp.float32) == "blocks"


@pytest.mark.parametrize(
  ("options", "kind", "said"),
  [
    ({}, "pallas", "attention: pallas"),
    ({"rate": 0.1, "groups": PADDED, "causal": False}, "pallas", "attention: pallas"),
    ({"bias": 1.0}, "pallas", "attention: pallas"),
    ({"bias": 1.0, "positions": 1536}, "plain", "attention: plain (the biases of 2 heads"),
    ({"bias": 1.0, "positions": 1024}, "pallas", "attention: pallas"),
    ({"bias": 1.0, "positions": 1024, "width": 32}, "plain", "attention: plain (the biases of 4"),
    ({"heads": 5}, "plain", "attention: plain (a device has 5 heads of 64"),
    ({"positions": 4096}, "pallas", "attention: pallas"),
    ({"positions": 4096, "rate": 0.1}, "plain", "attention: plain (rows of 4096 positions, more"),
    ({"dtype": jnp.float32}, "blocks", ""),
  ],
  ids=str,
)
def test_auto_on_a_tpu_says_what_it_takes_and_why(options, kind, said, monkeypatch):
  found = chosen(monkeypatch, "tpu", **({"groups": Groups()} | options))
  assert found[0] == kind and found[1].startswith(said)


LONG = {
  "input_ids": jnp.full((2, 96), 5),
  "segment_ids": jnp.zeros((2, 96), jnp.int32),
  "length": jnp.array([96, 40]),
}
WIDE = SIZES | {"layers": 2, "positions": 96, "dropout": 0.1, "attention_dropout": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("config", "batch"),
  [
    (Bert(**WIDE), LONG),
    (Gpt2(**WIDE), LONG),
    (Gpt2(**WIDE), LONG | {"document_ids": jnp.zeros((2, 96), jnp.int32)}),
    (Bart(**WIDE), LONG),
  ],
  ids=["bert", "gpt", "documents", "bart"],
)
@PLATFORMS
def test_no_step_of_an_accelerator_makes_all_weights_or_multiplies_float32(
  config, batch, platform, monkeypatch
):
  """Of the traced program: nothing is compiled."""
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  if platform == "gpu":
    monkeypatch.setattr(attention, "has_tensor_cores", lambda dtype: dtype == jnp.bfloat16)
  model = jax.eval_shape(lambda key: config.init(key, {}), jax.random.key(0))
  noise = Noise.create(jax.random.key(1), "hash")

  def loss(model):
    return model(batch, Compute(dtype="bfloat16"), noise).astype(jnp.float32).sum()

  equations = list(outside_kernels(jax.make_jaxpr(jax.grad(loss))(model).jaxpr))
  assert any(e.primitive.name == "pallas_call" for e in equations)
  arrays = [v.aval for e in equations for v in e.outvars]  # unread masks are left out by XLA
  assert not [
    a for a in arrays if a.shape[-2:] == (96, 96) and jnp.issubdtype(a.dtype, jnp.floating)
  ]
  products = [e for e in equations if e.primitive.name == "dot_general"]
  assert products and not [e for e in products if e.invars[0].aval.dtype == jnp.float32]


def outside_kernels(jaxpr):
  """All equations, those of inner functions included, but not those of kernels."""
  for equation in jaxpr.eqns:
    yield equation
    if equation.primitive.name != "pallas_call":
      for inner in jaxprs_in_params(equation.params):
        yield from outside_kernels(inner)
