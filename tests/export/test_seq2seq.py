"""Encoder-decoders of transformers give the same numbers here, and go back as they came."""

import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.families.bart import FAMILY as BART_FAMILY
from plm_jax.export.families.t5 import FAMILY as T5_FAMILY
from plm_jax.export.options import Options
from plm_jax.export.tensors import read_tensors, write_safetensors
from plm_jax.models.bart import Bart
from plm_jax.models.t5 import T5 as T5Config
from tests.export.peers import (
  assert_round_trip,
  difference,
  initial,
  outputs,
  padded_rows,
  published,
)

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
  "t5_answers": ("T5ForQuestionAnswering", {**T5, "decoder_start_token_id": 5}),
  "bart_answers": ("BartForQuestionAnswering", BART),
  "mbart_answers": ("MBartForQuestionAnswering", {**BART, "decoder_layers": 3}),
}
SIDES, TABLE = ("encoder", "decoder"), ".embed_tokens.weight"
# Classes whose decoder reads the source, and those that have none.
ON_SOURCES = {
  "t5_classes": (
    "T5ForSequenceClassification",
    {**T5, "decoder_start_token_id": 0, "classifier_dropout": 0.3, "num_labels": 4},
  ),
  "t5_classes_gated": (
    "T5ForSequenceClassification",
    {**T5, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 4, "eos_token_id": 7},
  ),
  "t5_answers": ("T5ForQuestionAnswering", {**T5, "decoder_start_token_id": 0}),
  "t5_tokens": ("T5ForTokenClassification", {**T5, "num_labels": 5}),
  "t5_encoder": ("T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}),
  "bart_classes": ("BartForSequenceClassification", {**BART, "scale_embedding": True}),
  "bart_classes_2": (
    "BartForSequenceClassification",
    {**BART, "id2label": {0: "no", 1: "yes"}, "decoder_start_token_id": 6, "eos_token_id": 3},
  ),
  "bart_answers": ("BartForQuestionAnswering", BART),
  "bart_bare": ("BartModel", BART),
  "mbart_classes": ("MBartForSequenceClassification", {**BART, "num_labels": 7}),
  "mbart_answers": ("MBartForQuestionAnswering", BART),
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
  source, mask = "encoder_last_hidden_state", inputs["attention_mask"]
  first = 0.0
  if source in theirs:
    first = difference({source: ours.pop(source)}, {source: theirs.pop(source)}, mask)
  return max(first, difference(ours, theirs, inputs.get("decoder_attention_mask", mask)))


@pytest.mark.parametrize("case", CASES)
def test_an_encoder_decoder_gives_the_numbers_of_transformers_and_goes_back(case, peers, tmp_path):
  architecture, options = CASES[case]
  reference = published(peers, architecture, tmp_path, **options)
  model = hf.load(tmp_path)
  inputs = inputs_of(np.random.default_rng(0))
  assert gap(model, reference, inputs) < 5e-5  # logits of T5 reach 15
  assert_round_trip(peers, model, reference, inputs, tmp_path / "back")


@pytest.mark.parametrize("case", ON_SOURCES)
def test_what_reads_sources_alone_gives_the_numbers_of_transformers_and_goes_back(
  case, peers, tmp_path
):
  architecture, options = ON_SOURCES[case]
  reference = published(peers, architecture, tmp_path, **options)
  model = hf.load(tmp_path)
  inputs = sources(np.random.default_rng(0), reference.config)
  assert gap(model, reference, inputs) < 5e-5
  assert_round_trip(peers, model, reference, inputs, tmp_path / "back")


def sources(rng, config):
  """Rows padded on every side, with two ends each, where the second is not always the last."""
  pad, end = config.pad_token_id, config.eos_token_id
  ids, mask = padded_rows(rng, VOCAB, pad)
  ids[ids == end] = VOCAB - 1
  ids[:, 3] = end
  ids[[0, 1, 2, 3], [10, 7, 8, 6]] = end
  return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
  ("ids", "more", "sentence"),
  [
    ([[5, 2], [5, 6]], {}, "last 2 of a row .* there are rows with 0, 1"),
    ([[5, 6], [7, 6]], {}, "at least one; there are rows with 0"),
    ([[5, 2]], {"decoder_input_ids": [[2]]}, r"shape \[1, 1\] and input_ids \[1, 2\]"),
    ([[5, 2]], {"document": {"eos_token_id": [2]}}, r"eos_token_id=\[2\]; expected the id of one"),
    ([[5, 2]], {"document": {"decoder_start_token_id": 99}}, "lets the decoder begin with 99"),
  ],
)
def test_rows_whose_classes_have_no_place_are_refused(ids, more, sentence):
  config = Bart(layers=1, width=8, heads=2, vocab_size=20, positions=6)
  params = initial(config, {"classes": 3})
  more = dict(more)
  model = hf.Pretrained(config, params, None, more.pop("document", {}))
  assert model.architecture == "BartForSequenceClassification"
  with pytest.raises(UserError, match=sentence):
    hf.run(model, input_ids=ids, **more)


def test_an_encoder_alone_takes_no_target_and_a_language_model_needs_one():
  sizes = {"layers": 1, "width": 8, "heads": 2, "vocab_size": 20}
  alone = T5Config(**sizes, arrangement="encoder")
  model = hf.Pretrained(alone, initial(alone, {}))
  assert model.architecture == "T5EncoderModel"
  with pytest.raises(UserError, match="takes no decoder_input_ids; it takes input_ids"):
    hf.run(model, input_ids=[[3]], decoder_input_ids=[[0]])
  both = T5Config(**sizes)
  model = hf.Pretrained(both, initial(both, {"lm": 0}))
  with pytest.raises(UserError, match="decoder_input_ids is missing"):
    hf.run(model, input_ids=[[3]])


@pytest.mark.parametrize("config", [T5Config, Bart])
def test_classes_of_tokens_beside_a_decoder_have_no_form_in_transformers(config):
  config = config(layers=1, width=8, heads=2, vocab_size=20)
  params = initial(config, {"token_classes": 3})
  with pytest.raises(UserError, match="has no class with the heads token_classes"):
    hf.Pretrained(config, params)


def test_buffers_of_older_releases_are_left_out(peers, tmp_path):
  """t5-small has a table of the cross-attention that nothing reads, bart-large its version."""
  for architecture, options, name, array in (
    ("T5ForConditionalGeneration", T5, "decoder.block.0.layer.1.EncDecAttention.", (8, 5)),
    ("BartForSequenceClassification", BART, "model.encoder.version", (1,)),
  ):
    folder = tmp_path / architecture
    published(peers, architecture, folder, **options)
    name += "relative_attention_bias.weight" if name.endswith(".") else ""
    tensors = read_tensors(folder) | {name: np.ones(array, np.float32)}
    write_safetensors(folder / "model.safetensors", tensors)
    assert hf.load(folder).architecture == architecture


def test_a_bare_model_with_copies_of_its_table_is_read(peers, tmp_path):
  """bart-base as it was published: a bare model by torch, which writes every name of a table."""
  published(peers, "BartModel", tmp_path, **BART)
  tensors = read_tensors(tmp_path)
  copies = {side + TABLE: tensors["shared.weight"] for side in SIDES}
  write_safetensors(tmp_path / "model.safetensors", tensors | copies)
  assert hf.load(tmp_path).architecture == "BartModel"
  write_safetensors(tmp_path / "model.safetensors", tensors | {SIDES[0] + TABLE: np.ones((59, 12))})
  with pytest.raises(UserError, match=r"encoder\.embed_tokens\.weight and shared\.weight in"):
    hf.load(tmp_path)


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
  options["scale_decoder_outputs"] = True  # counts where they differ, in transformers 5
  assert T5_FAMILY.model_of(Options(options, "config.json"), {"lm"})[0].logit_scale


@pytest.mark.parametrize(
  ("family", "options", "sentence"),
  [
    (T5_FAMILY, {"dense_act_fn": "silu"}, "'relu' and something else by dense_act_fn"),
    (T5_FAMILY, {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "'gated-gelu' and"),
    (T5_FAMILY, {"is_gated_act": True}, "something else by dense_act_fn or is_gated_act"),
    (BART_FAMILY, {"encoder_layers": 3, "num_hidden_layers": 2}, "sets num_hidden_layers=2, which"),
  ],
)
def test_what_is_said_twice_and_differs_is_refused(family, options, sentence):
  with pytest.raises(UserError, match=sentence):
    family.model_of(Options(options, "config.json"), {"lm"})
