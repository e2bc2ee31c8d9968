"""Decoders of transformers give the same numbers here, padded on either side, and go back as they
came."""

import json

import numpy as np
import pytest

from plm_jax.commands.check import compare
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.families.llama import FAMILY
from plm_jax.export.options import Options
from tests.export.peers import assert_round_trip, difference, outputs, padded_rows, published

VOCAB = 67
GPT2 = {
  "vocab_size": VOCAB,
  "n_positions": 17,
  "n_embd": 15,
  "n_layer": 3,
  "n_head": 5,
  "pad_token_id": 0,
}
LLAMA = {
  "vocab_size": VOCAB,
  "hidden_size": 24,
  "intermediate_size": 31,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "max_position_embeddings": 19,
  "pad_token_id": 0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 3.0,
  "original_max_position_embeddings": 16,
}
CASES = {
  "gpt2_scaled_by_layer": (
    "GPT2LMHeadModel",
    {**GPT2, "n_inner": 21, "scale_attn_by_inverse_layer_idx": True},
  ),
  "gpt2_untied": (
    "GPT2LMHeadModel",
    {**GPT2, "tie_word_embeddings": False, "activation_function": "relu"},
  ),
  "gpt2_bare": ("GPT2Model", GPT2),
  "gpt2_classes": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 3}),
  "gpt2_tokens": ("GPT2ForTokenClassification", {**GPT2, "num_labels": 4, "n_inner": 21}),
  "gpt2_tokens_dropout": (
    "GPT2ForTokenClassification",
    {**GPT2, "num_labels": 2, "classifier_dropout": 0.2},
  ),
  "gpt2_answers": ("GPT2ForQuestionAnswering", {**GPT2, "num_labels": 3}),
  "gpt1": ("OpenAIGPTLMHeadModel", GPT2),
  "gpt1_untied_silu": (
    "OpenAIGPTLMHeadModel",
    {**GPT2, "afn": "silu", "tie_word_embeddings": False},
  ),
  "llama_grouped_linear": (
    "LlamaForCausalLM",
    {**LLAMA, "num_key_value_heads": 2, "head_dim": 10, "attention_bias": True}
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
  ),
  "llama_tied_llama3": (
    "LlamaForCausalLM",
    {**LLAMA, "tie_word_embeddings": True, "mlp_bias": True, "hidden_act": "gelu"}
    | {"num_key_value_heads": 1, "rope_parameters": LLAMA3},
  ),
  "llama_classes": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 4}),
  "llama_tokens": (
    "LlamaForTokenClassification",
    {**LLAMA, "num_labels": 5, "num_key_value_heads": 2},
  ),
  "llama_answers": ("LlamaForQuestionAnswering", {**LLAMA, "rope_parameters": LLAMA3}),
  "llama_bare": ("LlamaModel", LLAMA),
  "qwen2": ("Qwen2ForCausalLM", {**LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True}),
  "qwen2_classes": (
    "Qwen2ForSequenceClassification",
    {**LLAMA, "num_labels": 4, "num_key_value_heads": 2},
  ),
  "mistral": ("MistralForCausalLM", {**LLAMA, "num_key_value_heads": 2, "sliding_window": 4}),
  "mistral_answers": (
    "MistralForQuestionAnswering",
    {**LLAMA, "sliding_window": None, "num_key_value_heads": 2},
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_decoder_gives_the_numbers_of_transformers_and_goes_back(case, peers, tmp_path):
  architecture, options = CASES[case]
  reference = published(peers, architecture, tmp_path, **options)
  model = hf.load(tmp_path)
  ids, mask = padded_rows(np.random.default_rng(0), VOCAB, 0)
  inputs = {"input_ids": ids, "attention_mask": mask}
  theirs = outputs(reference, inputs)
  assert difference(hf.run(model, **inputs), theirs, mask) < 1e-5
  assert_round_trip(peers, model, reference, inputs, tmp_path / "back")


@pytest.mark.parametrize(
  ("option", "sentence"),
  [
    ({"num_key_value_heads": "x"}, "sets num_key_value_heads='x'; expected a whole number"),
    ({"head_dim": {}}, "sets head_dim={}; expected a whole number"),
    ({"rope_scaling": "x"}, "sets rope_scaling='x'; expected an object"),
    ({"rope_parameters": {"rope_theta": "x"}}, "sets rope_theta='x' for the rope"),
    ({"rope_parameters": {"type": "linear", "factor": None}}, "sets factor=None for the rope"),
    ({"rope_parameters": {"type": [1]}}, r"sets rope_type=\[1\], which"),
    (
      {"rope_parameters": {"rope_theta": 9.0}, "rope_scaling": {"type": "linear", "factor": 2.0}},
      "sets rope_parameters and rope_scaling, which differ",
    ),
  ],
)
def test_an_option_of_another_kind_is_refused_by_name(option, sentence):
  with pytest.raises(UserError, match=sentence):
    FAMILY.model_of(Options(option, "config.json"), {"lm"})


@pytest.mark.parametrize("pad", [0, None])
def test_classes_are_read_where_transformers_reads_them(pad, peers, tmp_path):
  """At the last token that is not padding by its id; without an id of padding in single rows."""
  options = {**GPT2, "num_labels": 3, "pad_token_id": pad}
  reference = published(peers, "GPT2ForSequenceClassification", tmp_path, **options)
  rng = np.random.default_rng(0)
  inputs = {"input_ids": rng.integers(1, VOCAB, (1 if pad is None else 4, 9))}
  inputs["input_ids"][-1, 6:] = 0
  found = hf.run(hf.load(tmp_path), **inputs)
  assert difference(found, outputs(reference, inputs), np.ones((1, 1))) < 1e-5
  assert max(line.difference for line in compare(tmp_path)) < 1e-5


def test_old_names_of_rotary_options_are_read(peers, tmp_path):
  reference = published(peers, "LlamaForCausalLM", tmp_path, **LLAMA, rope_parameters=LLAMA3)
  document = json.loads((tmp_path / "config.json").read_text())
  rope = document.pop("rope_parameters")
  document["rope_theta"] = rope.pop("rope_theta")
  document["rope_scaling"] = rope
  (tmp_path / "config.json").write_text(json.dumps(document))
  ids, mask = padded_rows(np.random.default_rng(0), VOCAB, 0)
  inputs = {"input_ids": ids, "attention_mask": mask}
  found = hf.run(hf.load(tmp_path), **inputs)
  assert difference(found, outputs(reference, inputs), mask) < 1e-5

  document["rope_scaling"] = {"rope_type": "yarn", "factor": 2.0}
  (tmp_path / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match="rope_type='yarn', which this project does not support"):
    hf.load(tmp_path)
