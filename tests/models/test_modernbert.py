"""ModernBERT: published counts, the first layer without a norm, windows, and words for blanks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plm_jax as plm
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.options import Options
from plm_jax.export.published_tokenizer import read_tokenizer
from plm_jax.export.to_run import write_run
from plm_jax.models.compute import Compute
from plm_jax.models.modernbert import BASE, LARGE, ModernBert
from tests.data import published_folders
from tests.export.peers import initial

TOY = ModernBert(layers=4, width=12, heads=3, hidden=9, positions=40, window=2, vocab_size=30)


@pytest.mark.parametrize(("config", "published"), [(BASE, 149_655_232), (LARGE, 395_881_664)])
def test_counts_are_the_published_ones_and_the_norm_that_the_first_layer_lacks(config, published):
  config = dataclasses.replace(config, vocab_size=50368)
  shapes = jax.eval_shape(lambda key: config.init(key, {"mlm": 0}), jax.random.key(0))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == published + config.width


def batch_of(ids):
  return {"input_ids": ids, "segment_ids": 0 * ids, "length": jnp.full(len(ids), ids.shape[1])}


def test_only_the_first_layer_reads_states_that_are_not_normalised():
  params = initial(TOY, {})

  @jax.jit
  def gradient(params):
    batch = batch_of(jnp.arange(24).reshape(2, 12))
    return jax.grad(lambda p: jnp.square(p(batch, Compute(layers="scan"))).sum())(params)

  gains = gradient(params).blocks.attention_norm.gain[...]
  assert not gains[0].any() and (abs(gains[1:]).max(axis=1) > 0).all()


@pytest.mark.slow
def test_a_token_is_seen_through_every_third_layer_however_far_it_is():
  ids = jnp.arange(12)[None] % 30
  other = ids.at[0, 0].set(29)

  @jax.jit
  def difference(params):
    states = [params(batch_of(each), Compute(layers="unroll")) for each in (ids, other)]
    return abs(states[0] - states[1]).max(axis=(0, 2))

  far = difference(initial(dataclasses.replace(TOY, layers=1), {}))
  assert (far > 0).all()  # layer 0 sees the row
  near = dataclasses.replace(TOY, layers=2, global_every=0)
  seen = difference(initial(near, {}))
  assert (seen[:5] > 0).all() and (seen[5:] == 0).all()  # two tokens for each layer


def test_an_imported_model_fills_blanks(tmp_path):
  folder = published_folders.modernbert(tmp_path / "tokenizer")
  tokenizer = read_tokenizer(folder)
  config = dataclasses.replace(TOY, vocab_size=tokenizer.vocab.size)
  pad = {"pad_token_id": tokenizer.vocab.pad}
  hf.save(hf.Pretrained(config, initial(config, {"mlm": 0}), None, pad), tmp_path / "public")
  write_run(hf.load(tmp_path / "public"), tokenizer, tmp_path / "run", tmp_path / "public")
  (blank,) = plm.load(tmp_path / "run").fill_mask("Für [MASK] müsste", best=3)
  assert len(blank) == 3


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers=0"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "yarn"),
    ({"rope_parameters": {"sliding_attention": 3}}, "rope_parameters to 3"),
    ({"embedding_dropout": 0.1}, "embedding_dropout"),
    ({"new_switch": 1}, "new_switch"),
  ],
)
def test_entries_of_config_json_that_would_change_the_outputs_are_refused(entries, message):
  from plm_jax.export.families.modernbert import FAMILY

  document = {"model_type": "modernbert", "num_hidden_layers": 4, **entries}
  with pytest.raises(UserError, match=message):
    FAMILY.model_of(Options(document, "config.json"), {"mlm"})


def test_the_entries_of_older_files_are_read():
  from plm_jax.export.families.modernbert import FAMILY

  old = {"global_rope_theta": 500.0, "local_rope_theta": 20.0, "global_attn_every_n_layers": 2}
  old |= {"num_hidden_layers": 5, "local_attention": 10}
  config, _ = FAMILY.model_of(Options(old, "config.json"), {"mlm"})
  assert (config.rope_theta, config.local_rope_theta) == (500.0, 20.0)
  assert (config.global_every, config.window) == (2, 5)
  new = FAMILY.document_of(config, {"mlm": 0})
  assert new["layer_types"] == [
    "full_attention" if layer % 2 == 0 else "sliding_attention" for layer in range(5)
  ]
  assert FAMILY.model_of(Options(new, "config.json"), {"mlm"})[0] == config
  np.testing.assert_equal(new["local_attention"], 10)
