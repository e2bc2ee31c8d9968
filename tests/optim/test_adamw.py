"""Schedules and AdamW against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plm_jax import overrides
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.optim.adamw import LAMB, AdamW, is_decayed, layer_rates, scale_by_trust_ratio
from tests.toy_run import TOY


def first_update(optim, gradient):
  transform = optim.transform(steps=1000)
  params = {"pooler": {"kernel": jnp.zeros_like(gradient)}}
  updates, _ = transform.update({"pooler": {"kernel": gradient}}, transform.init(params), params)
  return np.asarray(updates["pooler"]["kernel"])


@pytest.mark.parametrize(("corrected", "factor"), [(False, 0.1 / np.sqrt(0.001)), (True, 1.0)])
def test_first_step_is_3_162_lr_without_bias_correction_and_1_lr_with(corrected, factor):
  optim = AdamW(
    peak=1e-3, warmup=0, schedule="constant", decay=0, clip=0, bias_correction=corrected
  )
  gradient = jnp.array([3.0, -0.5, 2.0])
  np.testing.assert_allclose(
    first_update(optim, gradient), -1e-3 * factor * np.sign(gradient), rtol=1e-4
  )


def test_uncorrected_adam_follows_bert_s_formula_for_many_steps():
  optim = AdamW(peak=1e-3, warmup=10, clip=0, decay=0.01).paper_faithful()
  transform, rate = optim.transform(40), optim.learning_rate(40)
  rng = np.random.default_rng(0)
  w = rng.normal(size=5)
  m, v = np.zeros(5), np.zeros(5)
  params = {"pooler": {"kernel": jnp.asarray(w, jnp.float32)}}
  state = transform.init(params)
  for step in range(20):
    g = rng.normal(size=5)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w = w - float(rate(step)) * (m / (np.sqrt(v) + 1e-6) + 0.01 * w)
    gradient = {"pooler": {"kernel": jnp.asarray(g, jnp.float32)}}
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params["pooler"]["kernel"], w, rtol=1e-5)


def test_bert_s_schedule_decays_under_its_warmup():
  rate = AdamW(peak=1e-4, warmup=10_000).paper_faithful().learning_rate(1_000_000)
  assert rate(0) == 0
  np.testing.assert_allclose(rate(5_000), 0.5e-4, rtol=1e-5)
  np.testing.assert_allclose(rate(10_000), 1e-4 * (1 - 0.01), rtol=1e-5)
  assert rate(1_000_000) == 0


@pytest.mark.parametrize(
  ("schedule", "middle", "end"),
  [("linear", 0.5, 0), ("cosine", 0.5, 0), ("constant", 1, 1), ("wsd", 1, 0)],
)
def test_recommended_schedules_reach_the_peak_and_end_at_zero(schedule, middle, end):
  rate = AdamW(peak=2.0, warmup=10, schedule=schedule).learning_rate(110)
  np.testing.assert_allclose(rate(0), 0.2, rtol=1e-6)
  np.testing.assert_allclose(rate(9), 2.0, rtol=1e-6)
  np.testing.assert_allclose(rate(10), 2.0, rtol=1e-6)
  np.testing.assert_allclose(rate(60), 2.0 * middle, rtol=1e-5)
  np.testing.assert_allclose(rate(110), 2.0 * end, atol=1e-6)


def test_wsd_falls_in_the_last_fifth_alone():
  rate = AdamW(peak=2.0, warmup=10, schedule="wsd").learning_rate(110)
  np.testing.assert_allclose([rate(u) for u in (89, 90, 100, 109)], [2, 2, 1, 0.1], rtol=1e-5)


def test_biases_and_gains_of_norms_are_not_decayed_and_everything_else_is():
  model = Bert(vocab_size=20, layers=2, width=8, heads=2, positions=8)
  params = jax.eval_shape(lambda key: model.init(key, {"mlm": 0, "nsp": 0}), jax.random.key(0))
  decayed = jax.tree_util.tree_leaves_with_path(is_decayed(params))
  for path, flag in decayed:
    name = jax.tree_util.keystr(path)
    assert flag == (".kernel" in name or ".table" in name), name
  assert {flag for _, flag in decayed} == {True, False}


@pytest.mark.parametrize(("decays", "bias"), [("kernels", 0.0), ("all", -0.1 * 0.5)])
def test_roberta_s_code_decays_biases_too(decays, bias):
  optim = AdamW(peak=0.1, warmup=0, schedule="constant", decay=0.5, clip=0, decays=decays)
  transform = optim.transform(10)
  params = {"pooler": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zeros, transform.init(params), params)
  np.testing.assert_allclose(updates["pooler"]["bias"], bias, atol=1e-7)
  np.testing.assert_allclose(updates["pooler"]["kernel"], -0.1 * 0.5, rtol=1e-6)


def test_decay_is_scaled_by_the_learning_rate_once():
  optim = AdamW(peak=0.1, warmup=0, schedule="constant", decay=0.5, clip=0)
  transform = optim.transform(10)
  params = {"pooler": {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zeros, transform.init(params), params)
  np.testing.assert_allclose(updates["pooler"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
  assert updates["pooler"]["bias"] == 0


@pytest.mark.parametrize(
  "bad",
  [{"peak": 0}, {"warmup": -1}, {"b2": 1.0}, {"eps": 0.0}, {"decay": -0.1}, {"layer_decay": 0.0}],
)
def test_nonsense_is_refused(bad):
  with pytest.raises(UserError, match=f"optim.{next(iter(bad))}"):
    AdamW(**bad)


def rates_of(model, decay=0.5):
  heads = {"mlm": 0, "classes": 3}
  params = jax.eval_shape(lambda key: model.init(key, heads), jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), params)
  return layer_rates(params, decay)


def test_rates_fall_from_the_head_to_the_embeddings_as_electra_s():
  """F52: heads have exponent 0, the last of L layers 2, layer i L + 1 - i, the embeddings L + 2."""
  rates = rates_of(Bert(vocab_size=20, layers=3, width=8, heads=2, positions=8))
  kernel = rates.blocks.feed_forward.up.kernel[...]
  np.testing.assert_allclose(kernel.ravel(), [0.5**4, 0.5**3, 0.5**2])
  assert kernel.shape == (3, 1, 1)
  np.testing.assert_allclose(rates.blocks.attention_norm.gain[...].ravel(), kernel.ravel())
  for leaf in jax.tree.leaves(rates.embed):
    np.testing.assert_allclose(leaf, 0.5**5)
  for leaf in jax.tree.leaves((rates.mlm, rates.classes, rates.pooler)):
    assert leaf == 1


def test_shared_layers_have_the_rate_of_the_last_that_reads_them():
  sizes = {"vocab_size": 20, "layers": 4, "width": 8, "heads": 2, "positions": 8}
  rates = rates_of(Bert(**sizes, sharing="attention", groups=2))
  attention = rates.blocks.attention.query.kernel[...].ravel()
  np.testing.assert_allclose(attention, [0.5**4, 0.5**2])  # layers 1 and 3 of 0..3
  once = rates_of(Bert(**sizes, sharing="all"))
  np.testing.assert_allclose(once.blocks.attention.query.kernel[...].ravel(), [0.5**2])
  np.testing.assert_allclose(once.embed.token.table[...], 0.5**3)


@pytest.mark.slow
def test_layer_decay_scales_the_whole_update_and_changes_nothing_else():
  model = Bert(vocab_size=20, layers=2, width=8, heads=2, positions=8)
  params = jax.jit(lambda key: model.init(key, {"classes": 2}))(jax.random.key(0))
  grads = jax.tree.map(jnp.ones_like, params)

  def updates(**settings):
    transform = AdamW(peak=0.1, warmup=0, decay=0.1, **settings).transform(10)
    return transform.update(grads, transform.init(params), params)[0]

  plain, scaled = updates(), updates(layer_decay=0.5)
  jax.tree.map(
    lambda a, b, r: np.testing.assert_allclose(a * r, b, rtol=1e-6),
    plain,
    scaled,
    layer_rates(params, 0.5),
  )
  assert jax.tree.structure(AdamW().transform(1).init(params)).num_leaves == (
    jax.tree.structure(AdamW(layer_decay=0.5).transform(1).init(params)).num_leaves
  )


# --- LAMB ----------------------------------------------------------------------------------------


def random_tree(seed):
  rng = np.random.default_rng(seed)
  shapes = {"pooler": {"kernel": (3, 4)}, "nsp": {"kernel": (5, 1)}, "token": {"table": (6, 2)}}
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def after(transform, params, steps=5):
  """The parameters after some steps with random gradients."""
  update, state = jax.jit(transform.update), transform.init(params)
  for step in range(steps):
    updates, state = update(random_tree(100 + step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_corrected_lamb_of_kernels_outside_of_stacks_is_optax_s():
  ours = LAMB(peak=0.02, warmup=0, schedule="constant", clip=0, decay=0.1).transform(10)
  theirs = optax.lamb(0.02, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.1)
  got = after(ours, random_tree(0))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, after(theirs, random_tree(0))
  )
  without = after(optax.adamw(0.02, eps=1e-6, weight_decay=0.1), random_tree(0))
  assert not np.allclose(without["pooler"]["kernel"], got["pooler"]["kernel"], rtol=0.01)


def test_faithful_lamb_follows_the_formula_of_albert_s_code():
  optim = LAMB(peak=0.01, warmup=4, clip=0, decay=0.01).paper_faithful()
  transform, rate = optim.transform(40), optim.learning_rate(40)
  rng = np.random.default_rng(0)
  w = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
  m, v = ({name: np.zeros_like(x) for name, x in w.items()} for _ in range(2))
  params = {"pooler": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)}
  state = transform.init(params)
  for step in range(12):
    gradient = {name: rng.normal(size=x.shape) for name, x in w.items()}
    for name, g in gradient.items():
      m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
      update = m[name] / (np.sqrt(v[name]) + 1e-6)
      if name == "kernel":
        update = update + 0.01 * w[name]
        update = update * np.linalg.norm(w[name]) / np.linalg.norm(update)
      w[name] = w[name] - float(rate(step)) * update
    gradient = {"pooler": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradient)}
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params["pooler"], w)


def adapted(params, updates):
  scale = scale_by_trust_ratio()
  return jax.tree.map(np.asarray, scale.update(updates, scale.init(params), params)[0])


def test_the_trust_ratio_is_one_for_norms_and_biases_and_where_a_norm_is_zero():
  threes = 3.0 * jnp.ones((4, 1))
  params = {
    "pooler": {"kernel": threes, "bias": threes[:, 0]},
    "norm": {"gain": threes[:, 0], "bias": threes[:, 0]},
    "nsp": {"kernel": 0 * threes},
  }
  got = adapted(params, jax.tree.map(jnp.ones_like, params))
  assert (got["pooler"]["kernel"] == 3).all()
  for ratio_of_one in (got["pooler"]["bias"], *got["norm"].values(), got["nsp"]["kernel"]):
    assert (ratio_of_one == 1).all()
  still = adapted(params, jax.tree.map(jnp.zeros_like, params))
  assert all((x == 0).all() for x in jax.tree.leaves(still))


def test_each_layer_of_a_stack_has_a_trust_ratio_of_its_own():
  weights, ones = np.array([1.0, 2.0, 5.0])[:, None, None] * np.ones((3, 2, 4)), np.ones((3, 2, 4))
  stack = lambda x: {"blocks": {"feed_forward": {"up": {"kernel": x}}}}  # noqa: E731
  got = adapted(stack(weights), stack(ones))
  np.testing.assert_allclose(jax.tree.leaves(got)[0], weights, rtol=1e-6)
  one = lambda x: {"attention": {"query": {"kernel": x}}}  # noqa: E731
  whole = adapted(one(weights), one(ones))
  np.testing.assert_allclose(jax.tree.leaves(whole)[0], np.sqrt(10), rtol=1e-6)


def test_lamb_can_be_chosen_from_the_command_line():
  chosen = overrides.apply(TOY, ["optim=LAMB(warmup=2)", "optim.peak=1e-2"])
  assert chosen.optim == LAMB(peak=1e-2, warmup=2)
  assert overrides.from_json(overrides.to_json(chosen)) == chosen


@pytest.mark.slow
def test_layers_are_unfrozen_from_the_head_to_the_embeddings_and_not_touched_before():
  config = Bert(layers=2, width=16, heads=2, positions=8, vocab_size=20)
  params = config.init(jax.random.key(0), {"classes": 2})
  optim = AdamW(peak=1e-2, warmup=0, schedule="constant", unfreeze=2)
  transform = optim.transform(10)
  state, grads = transform.init(params), jax.tree.map(jnp.ones_like, params)
  turns = {"classes": 0, "layer 1": 2, "layer 0": 4, "embed": 6}

  def parts(tree):
    kernel = tree.blocks.feed_forward.up.kernel[...]
    embed = tree.embed.token.table[...]
    return dict(zip(turns, (tree.classes.kernel[...], kernel[1], kernel[0], embed)))

  moved = params
  for step in range(8):
    updates, state = transform.update(grads, state, moved)
    for name, update in parts(updates).items():
      assert bool(np.any(update)) == (step >= turns[name]), (step, name)
    first = parts(state.inner[1].mu)
    assert not np.any(first["embed"]) or step >= 6  # the moments begin with the layer
    moved = optax.apply_updates(moved, updates)
