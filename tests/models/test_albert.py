"""ALBERT: published parameter counts, sharing by structure, and the mathematics of transformers."""

import dataclasses
import math
import operator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.segments import SegmentPair
from plm_jax.errors import UserError
from plm_jax.models import albert
from plm_jax.models.albert import Albert
from plm_jax.models.attention import padding_mask
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.transformer import AttentionContext
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.sop import SOP
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.example_batch import example_batch
from tests import toy_run

TOY = Albert(vocab_size=50, layers=4, width=16, heads=4, embedding=8, positions=12)
FLOAT32 = Compute(dtype="float32", layers="scan")
SHARINGS = [("all", 1), ("all", 2), ("attention", 1), ("ffn", 2)]  # (sharing, groups)


def count(config, *heads):
  config = dataclasses.replace(config, vocab_size=config.vocab_size or 30_000)
  shapes = jax.eval_shape(lambda key: config.init(key, dict.fromkeys(heads, 2)), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def toy(sharing="all", groups=1, **changes):
  return dataclasses.replace(TOY, sharing=sharing, groups=groups, **changes)


@partial(jax.jit, static_argnums=0)
def initial(config, seed=0):
  return config.init(jax.random.key(seed), {"mlm": 0, "sop": 0})


def toy_batch(seed=0, rows=4, length=12):
  rng = np.random.default_rng(seed)
  return {
    "input_ids": rng.integers(5, 50, (rows, length)).astype(np.int32),
    "segment_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "length": np.array([12, 7, 9, 3], np.int32),
  }


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("config", "encoder", "mlm", "pretraining"),
  [
    (albert.BASE, 11_683_584, 11_221_680, 11_813_810),
    (albert.LARGE, 17_683_968, 16_795_824, 17_847_474),
    (albert.XLARGE, 58_724_864, 54_821_040, 59_021_490),
    (albert.XXLARGE, 222_595_584, 206_368_944, 223_158_450),
  ],
)
def test_parameter_counts_are_those_of_the_released_models(config, encoder, mlm, pretraining):
  assert count(config, "pooler") == encoder
  assert count(config, "mlm") == mlm
  assert count(config, "mlm", "sop") == pretraining


def test_heads_are_64_wide_and_those_of_xlarge_128():
  widths = [c.width // c.heads for c in (albert.BASE, albert.LARGE, albert.XLARGE, albert.XXLARGE)]
  assert widths == [64, 64, 128, 64]


@pytest.mark.parametrize("layers", [1, 3, 24, 48])
def test_depth_costs_no_parameters(layers):
  assert count(dataclasses.replace(albert.BASE, layers=layers), "pooler") == 11_683_584


@pytest.mark.parametrize(
  ("embedding", "published"), [(64, 9_681_408), (256, 15_687_936), (768, 31_705_344)]
)
def test_counts_by_embedding_width_are_those_of_transformers(embedding, published):
  assert count(dataclasses.replace(albert.BASE, embedding=embedding), "pooler") == published


def test_twelve_groups_of_one_layer_are_not_shared():
  groups = count(dataclasses.replace(albert.BASE, groups=12), "pooler")
  assert groups == count(dataclasses.replace(albert.BASE, sharing="none"), "pooler") == 89_650_176


@pytest.mark.parametrize(
  ("embedding", "sharing", "millions"),
  [
    (None, "all", 31), (None, "attention", 83), (None, "ffn", 57), (None, "none", 108),
    (128, "all", 12), (128, "attention", 64), (128, "ffn", 38), (128, "none", 89),
  ],
)  # fmt: skip
def test_sharing_gives_the_parameter_counts_of_albert_table_4(embedding, sharing, millions):
  config = dataclasses.replace(albert.BASE, embedding=embedding, sharing=sharing)
  # The table counts the pooler of shared models, and not that of the two that share nothing.
  heads = () if sharing == "none" else ("pooler",)
  assert round(count(config, *heads) / 1e6) == millions


@pytest.mark.parametrize(
  ("embedding", "shared", "not_shared"), [(64, 10, 87), (128, 12, 89), (256, 16, 93)]
)
def test_embedding_widths_give_the_parameter_counts_of_albert_table_3(
  embedding, shared, not_shared
):
  config = dataclasses.replace(albert.BASE, embedding=embedding)
  assert round(count(config, "pooler") / 1e6) == shared
  assert round(count(dataclasses.replace(config, sharing="none")) / 1e6) == not_shared


# --- sharing -------------------------------------------------------------------------------------

SHARED = {
  "none": (),
  "all": ("attention", "attention_norm", "feed_forward", "feed_forward_norm"),
  "attention": ("attention", "attention_norm"),
  "ffn": ("feed_forward", "feed_forward_norm"),
}


def sum_of_runs(x, runs):
  """`[L, ...] -> [runs, ...]`."""
  return x.reshape(runs, -1, *x.shape[1:]).sum(1)


@pytest.mark.parametrize(("sharing", "groups"), [("none", 1), ("all", 4), *SHARINGS])
def test_what_is_shared_has_a_row_per_group_and_the_rest_one_per_layer(sharing, groups):
  config = toy(sharing, groups)
  blocks = jax.eval_shape(lambda: config.init(jax.random.key(0), {})).blocks
  for name in SHARED["all"]:
    rows = groups if name in SHARED[sharing] else 4
    assert {x.shape[0] for x in jax.tree.leaves(getattr(blocks, name))} == {rows}, name


@pytest.mark.parametrize(("sharing", "groups"), SHARINGS)
@pytest.mark.slow
def test_the_gradient_of_what_is_shared_is_the_sum_over_the_layers_that_use_it(sharing, groups):
  weights = np.random.default_rng(3).normal(size=(4, 12, 16)).astype(np.float32)

  @jax.jit
  def gradient(model):
    return jax.grad(lambda m: (m(toy_batch(), FLOAT32) * weights).sum())(model)

  shared = initial(toy(sharing, groups, initializer_range=0.2))
  apart = initial(toy("none", initializer_range=0.2))
  for name in SHARED["all"]:  # the same numbers, an array for every layer
    part = getattr(shared.blocks, name)
    repeats = 4 // groups if name in SHARED[sharing] else 1
    setattr(apart.blocks, name, jax.tree.map(partial(jnp.repeat, repeats=repeats, axis=0), part))
  apart.embed = shared.embed
  got, each = gradient(shared).blocks, gradient(apart).blocks
  for name in SHARED["all"]:
    rows = groups if name in SHARED[sharing] else 4
    summed = jax.tree.map(partial(sum_of_runs, runs=rows), getattr(each, name))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      getattr(got, name),
      summed,
    )
  # And no layer's part is the whole.
  first, whole = (jax.tree.leaves(getattr(g, SHARED[sharing][0]))[0][0] for g in (each, got))
  assert not np.allclose(first, whole, rtol=0.05)


@pytest.mark.parametrize(("sharing", "groups"), SHARINGS)
@pytest.mark.slow
def test_scanned_unrolled_and_rematerialised_layers_agree(sharing, groups):
  """With two layers to a group: unrolled, every layer is compiled."""
  model = initial(toy(sharing, groups, layers=2 * groups))
  noise = Noise.create(jax.random.key(1), "hash")

  def norm_and_gradient(**compute):
    def loss(model):
      return jnp.square(model(toy_batch(), Compute(dtype="float32", **compute), noise)).sum()

    return jax.jit(jax.value_and_grad(loss))(model)

  reference = norm_and_gradient(layers="scan")
  for compute in ({"layers": "unroll"}, {"layers": "scan", "remat": True}):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-4),
      reference,
      norm_and_gradient(**compute),
    )


def test_layers_of_one_group_follow_each_other():
  """Layer l of L reads group l * groups // L: with groups A and B of two, A A B B."""
  model = initial(toy("all", 2, initializer_range=0.2))
  mask = padding_mask(toy_batch()["length"], 12)

  @jax.jit
  def by_hand(model, groups):
    x = model.embed(toy_batch(), jnp.float32, None)
    for group in groups:
      block = jax.tree.map(operator.itemgetter(group), model.blocks)
      x, _ = block(x, AttentionContext(mask), None)
    return x

  states = jax.jit(lambda m: m(toy_batch(), FLOAT32))(model)
  np.testing.assert_allclose(states, by_hand(model, [0, 0, 1, 1]), rtol=1e-5, atol=1e-5)
  assert not np.allclose(states, by_hand(model, [0, 1, 0, 1]), rtol=0.05)


def test_groups_that_no_layer_would_read_are_refused():
  with pytest.raises(UserError, match=r"model\.groups=5"):
    toy("all", 5)
  with pytest.raises(UserError, match=r"model\.inner_layers=2 needs model.sharing=all"):
    toy("ffn", 1, inner_layers=2)
  with pytest.raises(UserError, match=r"model\.groups=2 needs model.sharing"):
    toy("none", 2)


# --- the loop ------------------------------------------------------------------------------------


@cache
def experiment(sharing="all", groups=1, **mesh):
  model = toy(sharing, groups, vocab_size=None, positions=32)
  data = dataclasses.replace(toy_run.TOY.data, segments=SegmentPair(next="swapped"))
  return dataclasses.replace(
    toy_run.TOY,
    model=model,
    data=data,
    objectives=(MLM(), SOP()),
    mesh=MeshShape(**(mesh or {"data": 1})),
    compute=FLOAT32,
  )


def stepped(config):
  program = toy_run.program(config)
  vocabulary = config.resolve(64)
  batch = example_batch(vocabulary)
  rng = np.random.default_rng(0)
  batch |= {
    "input_ids": rng.integers(5, 64, batch["input_ids"].shape).astype(np.int32),
    "pair_label": rng.integers(0, 2, 8).astype(np.int32),
  }
  state = program.step(program.create(), to_global(batch, program.mesh))
  return jax.device_get((state.params, state.metrics))


@pytest.mark.parametrize(
  ("sharing", "groups", "mesh"),
  [("all", 1, {"data": 8}), ("ffn", 2, {"data": 2, "fsdp": 2, "tensor": 2})],
)
@pytest.mark.slow
def test_eight_devices_make_the_step_that_one_makes(sharing, groups, mesh):
  one, eight = stepped(experiment(sharing, groups)), stepped(experiment(sharing, groups, **mesh))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, eight)


@pytest.mark.slow
def test_sentence_order_is_trained_through_the_loop(tmp_path):
  state, records = toy_run.run(tmp_path / "run", experiment())
  assert {"mlm/loss", "sop/loss", "sop/accuracy"} <= set(records[-1])
  fresh = jax.device_get(toy_run.program(experiment()).create().params)
  assert not np.array_equal(state.params.sop.kernel[...], fresh.sop.kernel[...])
  assert state.params.blocks.attention.query.kernel.shape == (1, 16, 4, 4)


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_logits_agree_with_transformers(groups):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = transformers.AlbertConfig(
    vocab_size=50,
    embedding_size=8,
    hidden_size=16,
    num_hidden_layers=4,
    num_hidden_groups=groups,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=12,
    hidden_act="gelu_new",
  )
  theirs = transformers.AlbertForPreTraining(config).eval()
  ours = initial(toy("all", groups))
  with torch.no_grad():
    for parameter in theirs.parameters():  # away from the initial zeros and ones
      parameter.add_(0.1 * torch.randn_like(parameter))
  load_from_transformers(ours, {k: v.numpy() for k, v in theirs.state_dict().items()}, groups)
  batch = toy_batch()
  mask = np.arange(12)[None] < batch["length"][:, None]
  inputs = {
    "input_ids": torch.tensor(batch["input_ids"]).long(),
    "token_type_ids": torch.tensor(batch["segment_ids"]).long(),
    "attention_mask": torch.tensor(mask).long(),
  }
  with torch.no_grad():
    states, expected = theirs.albert(**inputs), theirs(**inputs)
  hidden = jax.jit(lambda m: m(batch, FLOAT32))(ours)
  pooled, tokens = ours.pool(hidden, batch), ours.token_logits(hidden)
  assert np.abs(hidden - states.last_hidden_state.numpy())[mask].max() < 1e-4
  assert np.abs(pooled - states.pooler_output.numpy()).max() < 1e-4
  assert np.abs(tokens - expected.prediction_logits.numpy())[mask].max() < 1e-4
  np.testing.assert_allclose(
    ours.sentence_order_logits(hidden, batch), expected.sop_logits.numpy(), atol=1e-4
  )


def load_from_transformers(model, state, groups):
  """Sets the parameters of a toy model from an `AlbertForPreTraining`'s state dict."""

  def put(parameter, arrays):
    parameter[...] = jnp.asarray(np.stack(arrays)).reshape(parameter.shape)

  def linear(layer, name, groups=1):
    put(layer.kernel, [state[f"{name.format(g)}.weight"].T for g in range(groups)])
    put(layer.bias, [state[f"{name.format(g)}.bias"] for g in range(groups)])

  def norm(layer, name, groups=1):
    put(layer.gain, [state[f"{name.format(g)}.weight"] for g in range(groups)])
    put(layer.bias, [state[f"{name.format(g)}.bias"] for g in range(groups)])

  embed = "albert.embeddings."
  for ours, theirs in (("token", "word"), ("position", "position"), ("segment", "token_type")):
    table = state[f"{embed}{theirs}_embeddings.weight"]
    put(getattr(model.embed, ours).table, [table])
  norm(model.embed.norm, embed + "LayerNorm")
  linear(model.embed.project, "albert.encoder.embedding_hidden_mapping_in")
  blocks, group = model.blocks, "albert.encoder.albert_layer_groups.{}.albert_layers.0."
  for part in ("query", "key", "value"):
    linear(getattr(blocks.attention, part), group + f"attention.{part}", groups)
  linear(blocks.attention.output, group + "attention.dense", groups)
  norm(blocks.attention_norm, group + "attention.LayerNorm", groups)
  linear(blocks.feed_forward.up, group + "ffn", groups)
  linear(blocks.feed_forward.down, group + "ffn_output", groups)
  norm(blocks.feed_forward_norm, group + "full_layer_layer_norm", groups)
  linear(model.pooler, "albert.pooler")
  linear(model.mlm.dense, "predictions.dense")
  norm(model.mlm.norm, "predictions.LayerNorm")
  put(model.mlm.bias, [state["predictions.bias"]])
  linear(model.sop, "sop_classifier.classifier")
