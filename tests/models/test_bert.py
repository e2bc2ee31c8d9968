"""BERT: published parameter counts, invariances, and the original mathematics."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise

BASE = Bert(vocab_size=30522)
LARGE = Bert(vocab_size=30522, layers=24, width=1024, heads=16)
TOY = Bert(vocab_size=50, layers=2, width=16, heads=4, positions=12)
FLOAT32 = Compute(dtype="float32")


# Operation by operation, each is compiled on its own: many times slower.
states = jax.jit(lambda model, batch, compute: model(batch, compute), static_argnums=2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial(config, heads=("mlm", "nsp"), seed=0):
  return config.init(jax.random.key(seed), dict.fromkeys(heads, 2))


def count(config, *heads):
  shapes = jax.eval_shape(lambda key: config.init(key, dict.fromkeys(heads, 2)), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def toy_batch(seed=0, rows=4, length=12):
  rng = np.random.default_rng(seed)
  return {
    "input_ids": rng.integers(5, 50, (rows, length)).astype(np.int32),
    "segment_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "length": np.array([12, 7, 9, 3][:rows], np.int32),
  }


@pytest.mark.parametrize(
  ("config", "heads", "published"),
  [
    (BASE, ("pooler",), 109_482_240),
    (BASE, (), 108_891_648),
    (BASE, ("mlm",), 109_514_298),
    (BASE, ("mlm", "nsp"), 110_106_428),
    (BASE, ("classes",), 109_483_778),
    (dataclasses.replace(BASE, vocab_size=28996), ("mlm", "nsp"), 108_932_934),
    (dataclasses.replace(BASE, vocab_size=119547), ("pooler",), 177_853_440),
    (LARGE, ("pooler",), 335_141_888),
    (LARGE, ("mlm", "nsp"), 336_226_108),
    (Bert(vocab_size=30522, layers=2, width=128, heads=2), ("pooler",), 4_385_920),
    (Bert(vocab_size=30522, layers=4, width=256, heads=4), ("pooler",), 11_170_560),
    (Bert(vocab_size=30522, layers=4, width=512, heads=8), ("pooler",), 28_763_648),
    (Bert(vocab_size=30522, layers=8, width=512, heads=8), ("pooler",), 41_373_184),
  ],
)
def test_parameter_counts_are_those_of_the_released_models(config, heads, published):
  assert count(config, *heads) == published


@pytest.fixture(scope="module")
def model():
  return initial(TOY)


def test_states_of_real_tokens_do_not_depend_on_the_padding(model):
  batch = toy_batch()
  changed = batch | {"input_ids": batch["input_ids"].copy()}
  for row, length in enumerate(batch["length"]):
    changed["input_ids"][row, length:] = 7
  before, after = states(model, batch, FLOAT32), states(model, changed, FLOAT32)
  for row, length in enumerate(batch["length"]):
    np.testing.assert_array_equal(before[row, :length], after[row, :length])
  assert not np.array_equal(before[1, 7:], after[1, 7:])


def test_a_bidirectional_model_sees_the_future_and_a_causal_one_does_not(model):
  causal = initial(dataclasses.replace(TOY, attention="causal"), ("mlm",))
  batch = toy_batch()
  changed = batch | {"input_ids": batch["input_ids"].copy()}
  changed["input_ids"][0, 8] = 6
  np.testing.assert_array_equal(
    states(causal, batch, FLOAT32)[0, :8], states(causal, changed, FLOAT32)[0, :8]
  )
  assert not np.allclose(
    states(model, batch, FLOAT32)[0, :8], states(model, changed, FLOAT32)[0, :8]
  )


@pytest.mark.parametrize("noise", [None, "hash", "threefry"])
@pytest.mark.slow
def test_scanned_unrolled_and_rematerialised_layers_agree(model, noise):
  noise = noise and Noise.create(jax.random.key(1), noise)

  def norm_and_gradient(**compute):
    def loss(model):
      return jnp.square(model(toy_batch(), Compute(dtype="float32", **compute), noise)).sum()

    return jax.jit(jax.value_and_grad(loss))(model)

  reference = norm_and_gradient(layers="scan")
  for compute in ({"layers": "unroll"}, {"layers": "scan", "remat": True}):
    other = norm_and_gradient(**compute)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-4), reference, other
    )


def test_bfloat16_keeps_parameters_float32_and_stays_near_float32(model):
  low = states(model, toy_batch(), Compute(dtype="bfloat16"))
  assert low.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
  error = np.abs(np.asarray(low, np.float32) - states(model, toy_batch(), FLOAT32)).max()
  assert 0 < error < 0.05


def test_initial_weights_are_normal_cut_at_two_sigma(model):
  wide = Bert(vocab_size=4000, layers=1, width=64, heads=1, positions=8)
  table = np.asarray(initial(wide, (), 3).embed.token.table[...])
  assert np.abs(table).max() <= 0.04
  assert abs(table.std() - 0.88 * 0.02) < 2e-4


@pytest.mark.parametrize(
  ("field", "value"), [("heads", 5), ("layers", 0), ("dropout", 1.0), ("vocab_size", 0)]
)
def test_impossible_sizes_are_refused(field, value):
  with pytest.raises(UserError, match=field):
    dataclasses.replace(TOY, **{field: value})


def test_the_two_gelus_differ_by_their_known_maximum():
  from plm_jax.models.activations import activate

  x = jnp.linspace(-6, 6, 120_001)
  difference = np.abs(activate(x, "gelu_tanh") - activate(x, "gelu_erf"))
  assert abs(difference.max() - 4.73e-4) < 2e-6
  assert abs(abs(x[difference.argmax()]) - 2.70) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh"])
def test_logits_agree_with_transformers(activation):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  names = {"gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
  config = transformers.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=12,
    hidden_act=names[activation],
  )
  theirs = transformers.BertForPreTraining(config).eval()
  ours = initial(dataclasses.replace(TOY, activation=activation))
  with torch.no_grad():
    for parameter in theirs.parameters():  # away from the initial zeros and ones
      parameter.add_(0.1 * torch.randn_like(parameter))
  load_from_transformers(ours, {k: v.numpy() for k, v in theirs.state_dict().items()})
  batch = toy_batch()
  mask = np.arange(12)[None] < batch["length"][:, None]
  with torch.no_grad():
    expected = theirs(
      input_ids=torch.tensor(batch["input_ids"]).long(),
      token_type_ids=torch.tensor(batch["segment_ids"]).long(),
      attention_mask=torch.tensor(mask).long(),
    )
  hidden = states(ours, batch, FLOAT32)
  difference = np.abs(ours.token_logits(hidden) - expected.prediction_logits.numpy())[mask]
  assert difference.max() < 1e-4
  np.testing.assert_allclose(
    ours.next_sentence_logits(hidden, batch), expected.seq_relationship_logits.numpy(), atol=1e-4
  )


def load_from_transformers(model, state):
  """Sets the parameters of a toy model from a `BertForPreTraining`'s state dict."""

  def put(parameter, *arrays):
    value = np.stack(arrays) if len(arrays) > 1 else arrays[0]
    parameter[...] = jnp.asarray(value).reshape(parameter.shape)

  def linear(layer, name, layers=(None,)):
    put(layer.kernel, *[state[f"{name.format(i)}.weight"].T for i in layers])
    put(layer.bias, *[state[f"{name.format(i)}.bias"] for i in layers])

  def norm(layer, name, layers=(None,)):
    put(layer.gain, *[state[f"{name.format(i)}.weight"] for i in layers])
    put(layer.bias, *[state[f"{name.format(i)}.bias"] for i in layers])

  embed = "bert.embeddings."
  put(model.embed.token.table, state[embed + "word_embeddings.weight"])
  put(model.embed.position.table, state[embed + "position_embeddings.weight"])
  put(model.embed.segment.table, state[embed + "token_type_embeddings.weight"])
  norm(model.embed.norm, embed + "LayerNorm")
  blocks, each, prefix = model.blocks, range(2), "bert.encoder.layer.{}."
  for part in ("query", "key", "value"):
    linear(getattr(blocks.attention, part), prefix + f"attention.self.{part}", each)
  linear(blocks.attention.output, prefix + "attention.output.dense", each)
  norm(blocks.attention_norm, prefix + "attention.output.LayerNorm", each)
  linear(blocks.feed_forward.up, prefix + "intermediate.dense", each)
  linear(blocks.feed_forward.down, prefix + "output.dense", each)
  norm(blocks.feed_forward_norm, prefix + "output.LayerNorm", each)
  linear(model.pooler, "bert.pooler.dense")
  linear(model.mlm.dense, "cls.predictions.transform.dense")
  norm(model.mlm.norm, "cls.predictions.transform.LayerNorm")
  put(model.mlm.bias, state["cls.predictions.bias"])
  linear(model.nsp, "cls.seq_relationship")
