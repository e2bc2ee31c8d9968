"""Encoders of transformers give the same numbers here, with every head and on every padding, and go
back as they came."""

import json

import numpy as np
import pytest

from plm_jax.export import hf
from plm_jax.export.options import ACTIVATIONS
from plm_jax.models.activations import activate
from tests.export.peers import assert_round_trip, difference, outputs, padded_rows, published

VOCAB = 61
SIZES = {
  "vocab_size": VOCAB,
  "hidden_size": 15,
  "num_hidden_layers": 3,
  "num_attention_heads": 5,
  "intermediate_size": 22,
  "max_position_embeddings": 17,
  "layer_norm_eps": 1e-6,
}
DISTILBERT = {
  "vocab_size": VOCAB,
  "dim": 15,
  "n_layers": 3,
  "n_heads": 3,
  "hidden_dim": 20,
  "max_position_embeddings": 13,
}
HEADS = "ForMaskedLM ForSequenceClassification ForTokenClassification ForQuestionAnswering Model"
# Family -> options of its models in turn.
FAMILIES = {
  "Bert": [
    {**SIZES, "hidden_act": "gelu_new", "type_vocab_size": 3},
    {**SIZES, "hidden_act": "relu", "tie_word_embeddings": False},
  ],
  "Roberta": [
    {**SIZES, "hidden_act": "silu", "pad_token_id": 3, "type_vocab_size": 1},
    {**SIZES, "hidden_act": "gelu", "tie_word_embeddings": False},
  ],
  "XLMRoberta": [{**SIZES, "hidden_act": "tanh", "type_vocab_size": 1}],
  "Albert": [
    {**SIZES, "num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 3}
    | {"embedding_size": 7},
    {**SIZES, "embedding_size": 15, "tie_word_embeddings": False, "num_hidden_groups": 3},
  ],
  "Electra": [
    {**SIZES, "embedding_size": 7, "hidden_act": "quick_gelu"},
    {**SIZES, "embedding_size": 15, "hidden_act": "relu2", "tie_word_embeddings": False},
  ],
  "DistilBert": [
    {**DISTILBERT, "activation": "mish"},
    {**DISTILBERT, "activation": "relu", "tie_word_embeddings": False},
  ],
}
MORE_HEADS = {
  "Bert": ["ForPreTraining", "ForNextSentencePrediction"],
  "Albert": ["ForPreTraining"],
  "Electra": ["ForPreTraining"],
}
MODERN = {
  **{name: value for name, value in SIZES.items() if name != "layer_norm_eps"},
  "hidden_size": 20,
  "num_hidden_layers": 4,
  "pad_token_id": 3,
  "local_attention": 6,
}
MODERN_THETAS = {"sliding_attention": {"rope_type": "default", "rope_theta": 90.0}}
CASES = [
  (family + head, options[number % len(options)])
  for family, options in FAMILIES.items()
  for number, head in enumerate([*MORE_HEADS.get(family, []), *HEADS.split()])
]
CASES += [
  ("ModernBertForMaskedLM", MODERN),
  (
    "ModernBertForMaskedLM",
    {**MODERN, "tie_word_embeddings": False, "norm_bias": True, "mlp_bias": True}
    | {"attention_bias": True, "classifier_bias": True, "classifier_activation": "silu"},
  ),
  ("ModernBertModel", {**MODERN, "rope_parameters": MODERN_THETAS}),
]


@pytest.mark.parametrize(("architecture", "options"), CASES, ids=[name for name, _ in CASES])
def test_an_encoder_gives_the_numbers_of_transformers_and_goes_back(
  architecture, options, peers, tmp_path
):
  labels = {"num_labels": 5} if "Classification" in architecture else {}
  reference = published(peers, architecture, tmp_path, **options, **labels)
  model = hf.load(tmp_path)
  assert model.architecture == architecture
  rng = np.random.default_rng(0)
  ids, mask = padded_rows(rng, VOCAB, reference.config.pad_token_id)
  inputs = {"input_ids": ids, "attention_mask": mask}
  if "token_type_ids" in model.family.inputs:
    inputs["token_type_ids"] = rng.integers(0, reference.config.type_vocab_size, ids.shape)
  assert difference(hf.run(model, **inputs), outputs(reference, inputs), mask) < 1e-5
  assert_round_trip(peers, model, reference, inputs, tmp_path / "back")


def test_positions_given_by_name_are_read(peers, tmp_path):
  reference = published(peers, "BertModel", tmp_path, **FAMILIES["Bert"][0])
  ids, mask = padded_rows(np.random.default_rng(0), VOCAB, 0)
  places = np.random.default_rng(1).integers(0, 17, ids.shape)
  inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
  assert difference(hf.run(hf.load(tmp_path), **inputs), outputs(reference, inputs), mask) < 1e-5


def test_the_checkpoint_of_the_paper_has_both_heads_whatever_its_config_says(peers, tmp_path):
  """bert-base-uncased names BertForMaskedLM, and has the other head, the names of TensorFlow, and
  the position numbers that were a buffer once."""
  from plm_jax.data.published_folder import read_object
  from plm_jax.export.tensors import read_tensors, write_safetensors

  reference = published(peers, "BertForPreTraining", tmp_path, **FAMILIES["Bert"][0])
  document = read_object(tmp_path / "config.json")
  text = json.dumps(document | {"architectures": ["BertForMaskedLM"]})
  (tmp_path / "config.json").write_text(text)
  tensors = read_tensors(tmp_path)
  old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
  for name in [name for name in tensors if "LayerNorm" in name]:
    ending = name[name.index("LayerNorm") :]
    tensors[name.replace(ending, old[ending])] = tensors.pop(name)
  tensors["bert.embeddings.position_ids"] = np.arange(17)[None]
  tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
  write_safetensors(tmp_path / "model.safetensors", tensors)
  model = hf.load(tmp_path)
  assert model.architecture == "BertForPreTraining"
  ids, mask = padded_rows(np.random.default_rng(0), VOCAB, 0)
  inputs = {"input_ids": ids, "attention_mask": mask}
  assert difference(hf.run(model, **inputs), outputs(reference, inputs), mask) < 1e-5


@pytest.mark.slow
def test_every_activation_of_transformers_without_parameters_is_here(peers):
  torch = pytest.importorskip("torch")
  from transformers.activations import ACT2CLS, ACT2FN

  x = np.linspace(-12, 12, 4001, dtype=np.float32)
  for theirs, ours in ACTIVATIONS.items():
    expected = ACT2FN[theirs](torch.tensor(x)).numpy()
    np.testing.assert_allclose(activate(x, ours), expected, rtol=1e-5, atol=2e-6, err_msg=theirs)
  assert ACT2CLS.keys() - ACTIVATIONS.keys() == {"prelu", "xielu"}
