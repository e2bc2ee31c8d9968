"""RoBERTa: published parameter counts, its positions, its head, and logits of transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.embeddings import position_ids
from plm_jax.models.roberta import Roberta
from tests.models.test_bert import (
  FLOAT32,
  count,
  initial,
  load_from_transformers,
  states,
  toy_batch,
)

BASE = Roberta(vocab_size=50265)
LARGE = Roberta(vocab_size=50265, layers=24, width=1024, heads=16)
TOY = Roberta(vocab_size=50, layers=2, width=16, heads=4, positions=12)


@pytest.mark.parametrize(
  ("config", "heads", "published"),
  [
    (BASE, ("mlm",), 124_697_433),
    (LARGE, ("mlm",), 355_412_057),
    (BASE, ("classes",), 124_647_170),
    (LARGE, ("classes",), 355_361_794),
    (BASE, ("pooler",), 124_645_632),
    (LARGE, (), 354_310_144),
    (dataclasses.replace(BASE, segments=0), ("mlm",), 124_697_433 - 768),
  ],
)
def test_parameter_counts_are_those_of_the_released_models(config, heads, published):
  assert count(config, *heads) == published


def test_positions_begin_at_two_and_padding_has_one():
  # Facts of fairseq's make_positions for [<s>, a, b, </s>, <pad>, <pad>]
  batch = {"input_ids": np.zeros((1, 6), int), "length": np.array([4])}
  assert position_ids(batch, BASE.first_position).tolist() == [[2, 3, 4, 5, 1, 1]]


def test_no_segment_is_told_from_another():
  model, batch = initial(TOY), toy_batch()
  swapped = batch | {"segment_ids": 1 - batch["segment_ids"]}
  np.testing.assert_array_equal(states(model, batch, FLOAT32), states(model, swapped, FLOAT32))


@pytest.mark.slow
def test_initial_weights_are_normal_and_not_cut():
  wide = Roberta(vocab_size=4000, layers=3, width=64, heads=1, positions=8)
  model = initial(wide, ("mlm",), 3)
  table, kernel = model.embed.token.table[...], model.blocks.feed_forward.up.kernel[...]
  for weights in (np.asarray(table), np.asarray(kernel)):
    assert abs(weights.std() - 0.02) < 3e-4
    assert abs(np.mean(np.abs(weights) > 0.04) - 0.0455) < 0.003
  assert not np.array_equal(kernel[0], kernel[1])
  assert not np.asarray(model.blocks.feed_forward.up.bias[...]).any()
  half = dataclasses.replace(wide, initializer_range=0.01)
  np.testing.assert_allclose(initial(half, ("mlm",), 3).embed.token.table[...], table / 2)


@pytest.mark.slow
def test_the_class_head_drops_out_before_and_after_its_dense_layer():
  config = dataclasses.replace(TOY, dropout=0.5)
  model, batch = initial(config, ("classes",)), toy_batch()
  hidden = states(model, batch, FLOAT32)
  noise = Noise.create(jax.random.key(0), "hash")
  plain = dataclasses.replace(config, classifier="pooler")
  model_plain = initial(plain, ("classes",))
  np.testing.assert_array_equal(
    model.class_logits(hidden, batch, None), model_plain.class_logits(hidden, batch, None)
  )
  state = hidden[:, 0]
  before, after = noise.fold(0), noise.fold(1)
  kept = jnp.where(before.keep(state.shape, 0.5), 2 * state, 0)
  pooled = jnp.tanh(model.pooler(kept))
  expected = model.classes(jnp.where(after.keep(pooled.shape, 0.5), 2 * pooled, 0))
  np.testing.assert_allclose(model.class_logits(hidden, batch, noise), expected, atol=1e-6)


def from_roberta(state):
  """The state dict under the names that BERT has for the same parameters."""
  renamed = {
    "roberta.": "bert.",
    "lm_head.bias": "cls.predictions.bias",
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "classifier.dense.": "bert.pooler.dense.",
    "classifier.out_proj.": "cls.seq_relationship.",
  }

  def bert(name):
    for start, other in renamed.items():
      if name.startswith(start):
        return other + name.removeprefix(start)
    return name

  return {bert(name): value.numpy() for name, value in state.items()}


@pytest.mark.slow
def test_logits_agree_with_transformers():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = transformers.RobertaConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=14,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
  )
  words = transformers.RobertaForMaskedLM(config).eval()
  classes = transformers.RobertaForSequenceClassification(config).eval()
  classes.roberta = words.roberta
  with torch.no_grad():
    for parameter in {*words.parameters(), *classes.parameters()}:  # away from zeros and ones
      parameter.add_(0.1 * torch.randn_like(parameter))
  ours = initial(TOY, ("mlm", "nsp", "classes"))
  load_from_transformers(ours, from_roberta(words.state_dict() | classes.state_dict()))
  ours.classes = ours.nsp
  batch = toy_batch()
  mask = np.arange(12)[None] < batch["length"][:, None]
  batch["input_ids"] = np.where(mask, batch["input_ids"], 1)  # they find padding by its id
  given = {
    "input_ids": torch.tensor(batch["input_ids"]).long(),
    "attention_mask": torch.tensor(mask).long(),
  }
  with torch.no_grad():
    hidden = words.roberta(**given).last_hidden_state.numpy()
    logits = words(**given).logits.numpy()
    scores = classes(**given).logits.numpy()
  for compute in (FLOAT32, Compute(dtype="float32", layers="scan")):
    states_BTD = states(ours, batch, compute)
    assert np.abs(states_BTD - hidden)[mask].max() < 1e-4
    assert np.abs(ours.token_logits(states_BTD) - logits)[mask].max() < 1e-4
    np.testing.assert_allclose(ours.class_logits(states_BTD, batch, None), scores, atol=1e-4)
