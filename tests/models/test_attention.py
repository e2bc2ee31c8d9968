import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plm_jax.models import attention
from plm_jax.models.attention import (
  Attention,
  attend,
  attend_causally,
  causal_mask,
  document_mask,
  padding_mask,
)
from plm_jax.models.dropout import Noise
from plm_jax.models.layers import Embedding, scores
from plm_jax.models.products import contract

B, T, N, H = 2, 7, 3, 5
D = N * H


def reference(q, k, v, mask):
  """Scaled dot-product attention in float64, one query at a time."""
  out = np.zeros(q.shape)
  mask = np.broadcast_to(mask, (B, N, T, T))
  for b, t, n in np.ndindex(B, T, N):
    seen = mask[b, n, t]
    scores = k[b, seen, n] @ q[b, t, n] / np.sqrt(H)
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights / weights.sum() @ v[b, seen, n]
  return out


@pytest.fixture(scope="module")
def qkv():
  return np.random.default_rng(0).normal(size=(3, B, T, N, H))


MASKS = {
  "everything": np.ones((1, 1, 1, T), bool),
  "padding": np.asarray(padding_mask(jnp.array([4, T]), T)),
  "causal": np.asarray(causal_mask(T)),
  "padding and causal": np.asarray(padding_mask(jnp.array([4, T]), T) & causal_mask(T)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_equals_the_formula_in_float64(qkv, mask):
  ours = attend(*jnp.asarray(qkv, jnp.float32), jnp.asarray(mask), 0.0, None)
  np.testing.assert_allclose(ours, reference(*qkv, mask), atol=2e-6)


def test_attention_without_the_scale_would_be_noticed(qkv):
  q, k, v = qkv
  ours = attend(*jnp.asarray((q * np.sqrt(H), k, v), jnp.float32), MASKS["everything"], 0.0, None)
  assert np.abs(ours - reference(*qkv, MASKS["everything"])).max() > 0.1


def test_what_is_masked_has_no_influence_on_values_or_gradients(qkv):
  q, k, v = jnp.asarray(qkv, jnp.float32)
  mask = padding_mask(jnp.array([4, T]), T)

  def total(k, v):
    return jnp.square(attend(q, k, v, mask, 0.0, None)).sum()

  for gradient in jax.grad(total, (0, 1))(k, v):
    assert not gradient[0, 4:].any()
    assert gradient[0, :4].any()
  assert total(k, v) == total(k.at[0, 4:].set(9.0), v.at[0, 4:].set(9.0))


def test_a_row_with_every_position_masked_gives_no_nan(qkv):
  nothing = jnp.zeros((1, 1, 1, T), bool)
  assert jnp.isfinite(attend(*jnp.asarray(qkv, jnp.float32), nothing, 0.0, None)).all()


def test_bfloat16_attention_keeps_scores_and_softmax_in_float32(qkv):
  q, k, v = jnp.asarray(qkv, jnp.bfloat16)
  close = reference(*(np.asarray(x, np.float64) for x in (q, k, v)), MASKS["everything"])
  ours = attend(q, k, v, jnp.asarray(MASKS["everything"]), 0.0, None)
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(ours.astype(jnp.float32), close, atol=0.02)
  primitives = str(jax.make_jaxpr(attend, static_argnums=(4, 5))(q, k, v, True, 0.0, None))
  assert "preferred_element_type=float32" in primitives
  assert "f32[2,3,7,7] = exp" in primitives


def test_self_attention_projects_every_head_with_its_own_matrix():
  attention = Attention(jax.random.key(0), D, N)
  x = np.random.default_rng(1).normal(size=(B, T, D))
  attention.query.bias = nnx.Param(jnp.full((N, H), 0.3))
  w = {name: np.asarray(getattr(attention, name).kernel[...], np.float64) for name in _PROJECTIONS}
  q, k, v = (np.einsum("btd,dnh->btnh", x, w[name]) for name in ("query", "key", "value"))
  heads = reference(q + 0.3, k, v, MASKS["causal"])
  ours = attention(jnp.asarray(x, jnp.float32), causal_mask(T), 0.0, None)
  np.testing.assert_allclose(ours, np.einsum("btnh,nhd->btd", heads, w["output"]), atol=1e-6)


@pytest.mark.parametrize("generator", ["hash", "threefry"])
def test_causal_attention_in_blocks_equals_that_of_whole_rows(qkv, generator, monkeypatch):
  """Blocks of 3, 3 and 1 queries: results, gradients and what is dropped."""
  monkeypatch.setattr(attention, "BLOCK", 3)
  documents = jnp.array([[1, 1, 1, 1, 2, 2, 3], [1] * T])
  mask = causal_mask(T) & document_mask(documents)
  bias = jnp.asarray(np.random.default_rng(5).normal(size=(1, N, T, T)), jnp.float32)

  def run(how):
    def total(q, k, v, bias):
      noise = Noise.create(jax.random.key(1), generator)
      y = how(q, k, v, mask, 0.4, noise, 0.7, bias)
      return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    gradient = jax.grad(total, (0, 1, 2, 3), has_aux=True)
    return jax.jit(gradient)(*jnp.asarray(qkv, jnp.float32), bias)

  blocked, whole = run(attend_causally), run(attend)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), blocked, whole)
  shapes = str(jax.make_jaxpr(attend_causally, static_argnums=(4,))(*qkv, mask, 0.0, None))
  assert "2,3,3,3]" in shapes and "2,3,1,7]" in shapes and "2,3,7,7]" not in shapes


_PROJECTIONS = ("query", "key", "value", "output")


@pytest.mark.parametrize("subscripts", ["btd,dnh->btnh", "btnh,nhd->btd"])
def test_a_projection_and_its_gradients_equal_the_einsum(subscripts):
  inputs = 1 if subscripts.startswith("btd") else 2
  random = np.random.default_rng(2)
  x = random.normal(size=(B, T, D) if inputs == 1 else (B, T, N, H)).astype(np.float32)
  w = random.normal(size=(D, N, H) if inputs == 1 else (N, H, D)).astype(np.float32)

  def ours(x, w):
    return jnp.sin(contract(x, w, inputs)).sum()

  def einsum(x, w):
    return jnp.sin(jnp.einsum(subscripts, x, w)).sum()

  for a, b in zip(jax.grad(ours, (0, 1))(x, w), jax.grad(einsum, (0, 1))(x, w), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(("wide", "narrow"), [(9, 4), (4, 9)])
def test_scores_by_a_table_and_their_gradients_equal_the_einsum(wide, narrow):
  random = np.random.default_rng(2)
  x = random.normal(size=(B, T, narrow)).astype(np.float32)
  table = random.normal(size=(wide, narrow)).astype(np.float32)

  def ours(x, table):
    return jnp.sin(scores(x, table)).sum()

  def einsum(x, table):
    return jnp.sin(jnp.einsum("btd,vd->btv", x, table)).sum()

  both = (jax.grad(ours, (0, 1))(x, table), jax.grad(einsum, (0, 1))(x, table))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *both)


def test_the_gradient_of_a_kernel_is_one_product_of_two_matrices():
  # A stack of matrices here is three times as slow on a CPU (docs/speed.md).
  def loss(w, x):
    return contract(x, w, 1).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones((D, N, H)), jnp.ones((B, T, D)))
  operands = [e.invars for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
  assert operands and all(v.aval.ndim == 2 for pair in operands for v in pair)


def test_no_product_of_a_bfloat16_step_has_float32_operands():
  # JAX's own gradient of a product with float32 result would have them (docs/speed.md).
  def loss(q, k, v):
    return attend(q, k, v, jnp.ones((1, 1, 1, T), bool), 0.0, None).astype(jnp.float32).sum()

  operands = [jnp.ones((B, T, N, H), jnp.bfloat16)] * 3
  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*operands)
  products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
  assert len(products) >= 4
  assert all(v.aval.dtype == jnp.bfloat16 for e in products for v in e.invars)


def test_accelerators_read_small_tables_and_odd_vocabularies_by_products_with_the_same_result(
  monkeypatch,
):
  segment = Embedding(jax.random.key(0), 2, 8)
  ids, x = jnp.array([[0, 1, 1]]), jax.random.normal(jax.random.key(1), (1, 3, 8))
  table = jax.random.normal(jax.random.key(2), (50, 8))

  def both(table, x):
    return segment(ids, jnp.float32), scores(x, table)

  def loss(table, x):
    return sum(jnp.square(y).sum() for y in both(table, x))

  on_cpu = both(table, x), jax.grad(loss, (0, 1))(table, x)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  program = str(jax.make_jaxpr(both)(table, x))
  assert "f32[3,128] = dot_general" in program or "f32[128,8]" in program
  assert "gather" not in program
  on_gpu = both(table, x), jax.grad(loss, (0, 1))(table, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), on_gpu, on_cpu)
