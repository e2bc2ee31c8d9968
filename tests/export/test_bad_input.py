"""Whatever is not understood is refused by name, in one sentence; nothing is ignored."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.tensors import read_tensors, write_safetensors
from plm_jax.models.albert import Albert
from plm_jax.models.bert import Bert
from plm_jax.models.roberta import Roberta
from tests.export.peers import initial

CONFIG = Bert(layers=2, width=8, heads=2, vocab_size=20, positions=6)
IDS = [[1, 2, 3]]


@pytest.fixture
def folder(tmp_path):
  params = initial(CONFIG, {"mlm": 0})
  hf.save(hf.Pretrained(CONFIG, params), tmp_path / "bert")
  return tmp_path / "bert"


@pytest.fixture(scope="module")
def model():
  return hf.Pretrained(CONFIG, initial(CONFIG, {"mlm": 0}))


def with_options(folder, **options):
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | options))


def test_entries_of_other_tools_change_nothing(folder):
  before = hf.load(folder).config
  others = {
    "sentence_transformers": {"version": "4.1.0"},
    "transformers.js_config": {"dtype": "q4"},
  }
  others |= {"_commit_hash": None, "unsloth_version": "2024.9", "tie_encoder_decoder": False}
  with_options(folder, is_encoder_decoder=False, auto_map={"AutoModel": "x.y"}, **others)
  assert hf.load(folder).config == before


@pytest.mark.parametrize(
  ("option", "sentence"),
  [
    ({"model_type": "unheard"}, "of the family 'unheard', which this project does not know"),
    ({"model_type": None}, "of the family None"),
    ({"architectures": ["BertForMultipleChoice"]}, "the architecture 'BertForMultipleChoice'"),
    ({"architectures": ["BertLMHeadModel"]}, "the architecture 'BertLMHeadModel'"),
    ({"is_decoder": True}, "sets is_decoder=True, which this project does not support"),
    ({"position_embedding_type": "relative_key"}, "sets position_embedding_type='relative_key'"),
    ({"hidden_act": "xielu"}, "sets hidden_act='xielu', which this project does not support"),
    ({"pruned_heads": {"1": [0]}}, "sets pruned_heads="),
    ({"sliding_window": 4}, "sets sliding_window=4, which this project does not know"),
    ({"hidden_size": "8"}, "sets hidden_size='8'; expected a whole number"),
    ({"pad_token_id": -5}, "sets pad_token_id=-5; expected an id from 0"),
    ({"pad_token_id": "x"}, "sets pad_token_id='x'; expected an id from 0"),
    ({"pad_token_id": 20}, "sets pad_token_id=20, and vocab_size=20"),
    ({"eos_token_id": [1, 2.5]}, r"sets eos_token_id=\[1, 2.5\]; expected an id"),
    ({"layer_norm_eps": 1e400}, "sets layer_norm_eps=inf; expected a number"),
    ({"hidden_size": 9}, "model.width=9 is not a multiple of model.heads=2"),
    ({"num_hidden_layers": -1}, "model.layers=-1 must be at least 1"),
    ({"num_hidden_layers": 10**9}, "asks for 1000000000 tensors named bert.encoder.layer"),
    ({"intermediate_size": 2**63}, "sets intermediate_size=9223372036854775808; expected a whole"),
    ({"classifier_dropout": "x"}, "sets classifier_dropout='x'; expected a number"),
    ({"model_type": ["bert"]}, r"of the family \['bert'\], which this project does not know"),
    ({"num_labels": -5}, "id2label or num_labels of a wrong type or value"),
    ({"vocab_size": 21}, r"\[20, 8\] and config.json asks for \[21, 8\]"),
    ({"num_hidden_layers": 3}, r"encoder\.layer\.2\..* is missing"),
    ({"num_hidden_layers": 1}, r"encoder.layer.1.* has no place in the model"),
  ],
)
def test_an_option_is_refused_by_name(option, sentence, folder):
  with_options(folder, **option)
  with pytest.raises(UserError, match=sentence):
    hf.load(folder)


def test_tensors_are_refused_by_name(folder):
  tensors = read_tensors(folder)
  write_safetensors(folder / "model.safetensors", tensors | {"extra.weight": np.ones(3, "f4")})
  with pytest.raises(UserError, match=r"extra\.weight has no place in the model"):
    hf.load(folder)
  missing = "cls.predictions.transform.LayerNorm.bias"
  fewer = {name: array for name, array in tensors.items() if name != missing}
  write_safetensors(folder / "model.safetensors", fewer)
  with pytest.raises(UserError, match=f"{missing} is missing"):
    hf.load(folder)
  decoder = tensors["bert.embeddings.word_embeddings.weight"] + 1
  tied = tensors | {"cls.predictions.decoder.weight": decoder}
  write_safetensors(folder / "model.safetensors", tied)
  with pytest.raises(UserError, match=r"decoder\.weight and .* differ, although config.json ties"):
    hf.load(folder)


def test_a_pooler_that_no_head_reads_is_left_out_with_a_note(folder, capsys):
  tensors = read_tensors(folder)
  pooler = {"bert.pooler.dense.weight": np.ones((8, 8), "f4"), "bert.pooler.dense.bias": np.ones(8)}
  write_safetensors(folder / "model.safetensors", tensors | pooler)
  assert hf.load(folder).architecture == "BertForMaskedLM"
  assert "note: bert.pooler.dense" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("inputs", "sentence"),
  [
    ({}, "input_ids is missing"),
    ({"input_ids": [[]]}, "at least one of each"),
    ({"input_ids": [1, 2]}, r"expected whole numbers \[rows, tokens\]"),
    ({"input_ids": [[1.5]]}, "expected whole numbers"),
    ({"input_ids": [[1], [1, 2]]}, "rows of different lengths"),
    ({"input_ids": [[1, 20]]}, "input_ids has 20; expected 0 to 19"),
    ({"input_ids": [[-1]]}, "input_ids has -1; expected 0 to 19"),
    ({"input_ids": [[1] * 7]}, "7 tokens long; the model has 6 positions"),
    ({"input_ids": IDS, "attention_mask": [[1, 1]]}, r"\[1, 2\] and input_ids \[1, 3\]"),
    ({"input_ids": IDS, "attention_mask": [[1, 2, 1]]}, "attention_mask has 2; expected 0 to 1"),
    ({"input_ids": IDS, "token_type_ids": [[0, 2, 0]]}, "token_type_ids has 2; expected 0 to 1"),
    ({"input_ids": IDS, "labels": IDS}, "takes no labels; it takes input_ids"),
  ],
)
def test_an_input_is_refused_by_name(inputs, sentence, model):
  with pytest.raises(UserError, match=sentence):
    hf.run(model, **inputs)


@pytest.mark.parametrize(
  ("config", "heads", "sentence"),
  [
    (Bert(attention="causal", **{"width": 8, "heads": 2}), {"mlm": 0}, "model.attention=causal"),
    (Roberta(segments=1, first_position=0, width=8, heads=2), {"mlm": 0}, "first_position=0"),
    (Albert(sharing="ffn", width=8, heads=2), {"mlm": 0}, "model.sharing=ffn cannot be exported"),
    (Bert(width=8, heads=2), {"sop": 0}, "bert has no class with the heads pooler, sop"),
    (Bert(classifier="mean", width=8, heads=2), {"classes": 3, "mlm": 0}, "the heads classes, mlm"),
  ],
)
def test_what_transformers_lacks_is_not_exported(config, heads, sentence, tmp_path):
  config = dataclasses.replace(config, layers=2, vocab_size=10, positions=5, embedding=None)
  with pytest.raises(UserError, match=sentence):
    params = config.init(jax.random.key(0), heads)
    hf.save(hf.Pretrained(config, params), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_nothing_of_the_users_is_overwritten(model, tmp_path):
  (tmp_path / "mine.txt").write_text("precious")
  with pytest.raises(UserError, match="already exists"):
    hf.save(model, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_of_the_project_is_pointed_to_the_converter(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"format": 1, "experiment": {}}))
  with pytest.raises(UserError, match=r"python -m plm_jax\.convert"):
    hf.load(tmp_path)


@pytest.mark.slow
def test_the_command_leaves_with_code_2(tmp_path):
  """And without torch and transformers: nothing but the comparison imports them."""
  root = Path(__file__).resolve().parents[2]
  code = "import sys; import plm_jax.export.hf, plm_jax.convert; print(*sys.modules)"
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
  assert not {"torch", "transformers"} & set(done.stdout.split())
  command = [sys.executable, "-m", "plm_jax.check"]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (
    2,
    "error: nothing was given; expected DIR (--help tells more).\n",
  )
