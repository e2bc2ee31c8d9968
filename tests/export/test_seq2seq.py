"""Encoder-decoders of transformers give the same numbers here, and go back as they came."""

import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.families.t5 import FAMILY as T5_FAMILY
from plm_jax.export.options import Options
from plm_jax.export.tensors import read_tensors, write_safetensors
from tests.export.peers import assert_round_trip, difference, outputs, padded_rows, published

VOCAB = 59
T5 = {
  "vocab_size": VOCAB,
  "d_model": 15,
  "d_kv": 4,
  "d_ff": 22,
  "num_layers": 3,
  "num_decoder_layers": 2,
  "num_heads": 5,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 9,
}
BART = {
  "vocab_size": VOCAB,
  "d_model": 12,
  "encoder_layers": 3,
  "decoder_layers": 2,
  "encoder_attention_heads": 3,
  "decoder_attention_heads": 2,
  "encoder_ffn_dim": 20,
  "decoder_ffn_dim": 14,
  "max_position_embeddings": 18,
}
CASES = {
  "t5_relu": ("T5ForConditionalGeneration", T5),
  "t5_gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
  "t5_unscaled": (
    "T5ForConditionalGeneration",
    {**T5, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
  ),
  "t5_bare": ("T5Model", T5),
  "bart_scaled": ("BartForConditionalGeneration", {**BART, "scale_embedding": True}),
  "bart_bare": ("BartModel", {**BART, "activation_function": "relu"}),
  "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
}


def inputs_of(rng):
  """Source and target, padded on every side."""
  source, mask = padded_rows(rng, VOCAB, 1)
  target, target_mask = padded_rows(rng, VOCAB, 1, length=7)
  return {
    "input_ids": source,
    "attention_mask": mask,
    "decoder_input_ids": target,
    "decoder_attention_mask": target_mask,
  }


def gap(model, reference, inputs):
  ours, theirs = hf.run(model, **inputs), outputs(reference, inputs)
  source = "encoder_last_hidden_state"
  first = difference(
    {source: ours.pop(source)}, {source: theirs.pop(source)}, inputs["attention_mask"]
  )
  return max(first, difference(ours, theirs, inputs["decoder_attention_mask"]))


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_decoder_gives_the_numbers_of_transformers_and_goes_back(case, peers, tmp_path):
  architecture, options = CASES[case]
  reference = published(peers, architecture, tmp_path, **options)
  model = hf.load(tmp_path)
  inputs = inputs_of(np.random.default_rng(0))
  assert gap(model, reference, inputs) < 5e-5  # logits of T5 reach 15
  assert_round_trip(peers, model, reference, inputs, tmp_path / "back")


def test_an_output_table_of_its_own_is_kept(peers, tmp_path):
  """T5 1.1 as it is published: transformers ties a new model, and takes both tables of a file."""
  options = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
  published(peers, "T5ForConditionalGeneration", tmp_path, **options)
  tensors = read_tensors(tmp_path)
  table = np.random.default_rng(0).normal(size=(VOCAB, 15)).astype(np.float32)
  write_safetensors(tmp_path / "model.safetensors", tensors | {"lm_head.weight": table})
  model = hf.load(tmp_path)
  assert not model.config.tied and not model.config.logit_scale
  hf.save(model, tmp_path / "back")
  reference = peers.T5ForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
  np.testing.assert_array_equal(reference.lm_head.weight.detach().numpy(), table)
  assert gap(model, reference, inputs_of(np.random.default_rng(0))) < 5e-5


def test_a_bias_of_the_output_is_refused_unless_it_is_zero(peers, tmp_path):
  published(peers, "BartForConditionalGeneration", tmp_path, **BART)
  tensors = read_tensors(tmp_path)
  assert not tensors["final_logits_bias"].any()
  tensors["final_logits_bias"][0, 3] = 1
  write_safetensors(tmp_path / "model.safetensors", tensors)
  with pytest.raises(UserError, match=r"final_logits_bias in .* is not zero"):
    hf.load(tmp_path)


def test_what_says_twice_that_logits_are_not_scaled_is_read():
  """transformers' T5 1.1 says so by `scale_decoder_outputs`, and what we export also unties."""
  options = {"tie_word_embeddings": False, "scale_decoder_outputs": False}
  config, _ = T5_FAMILY.model_of(Options(options, "config.json"), {"lm"})
  assert not config.logit_scale and not config.tied
