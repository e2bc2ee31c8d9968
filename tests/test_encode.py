"""Vectors and pieces of texts by command and from Python."""

import dataclasses
import json
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from plm_jax import cli
from plm_jax.api import LoadedModel
from plm_jax.commands import encode, tokenize
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.to_run import write_run
from plm_jax.models.compute import Compute
from plm_jax.runs import Run
from plm_jax.tasks.frozen_states import LastStates
from plm_jax.tasks.predicting import outputs, trained
from plm_jax.tasks.rows import frame_of, framed_rows
from tests.decode.test_commands import own_flags
from tests.export.golden.record import FOLDER

TEXTS = ["a\u2028b", "c", "a b c d a b", "", "d d"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """family -> (published model, its run, tokenizer): an encoder, a decoder, an encoder-decoder."""
  folder, made = tmp_path_factory.mktemp("encode"), {}
  tokenizer = WordPiece(vocab_size=16).train(iter(["a b c d"] * 9))
  for family in ("bert", "gpt2", "t5"):
    published = hf.load(FOLDER / family)
    write_run(published, tokenizer, folder / family, FOLDER / family)
    made[family] = published, folder / family, tokenizer
  return made


@pytest.fixture
def call(monkeypatch, capsys):
  def run(module, *words):
    with own_flags(module):
      monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
      if hasattr(module, "keep_compilations"):
        monkeypatch.setattr(module, "keep_compilations", lambda cache: None)
      with pytest.raises(SystemExit) as ended:
        cli.run(module.main)
    flags.FLAGS.unparse_flags()
    out = capsys.readouterr()
    return ended.value.code or 0, out.out, out.err

  return run


def states_alone(published, tokenizer, text, layer):
  """float32 [T, D]: the states of one text in a batch of its own, by `hf.run`."""
  before, between, after = frame_of(published.config, tokenizer)
  del between
  ids = [[*before, *tokenizer.encode(text), *after]]
  more = {"decoder_input_ids": ids} if hasattr(published.config, "has_decoder") else {}
  outputs = hf.run(published, input_ids=ids, **more, output_hidden_states=True)
  return outputs.get("hidden_states", outputs.get("encoder_hidden_states"))[layer][0]


POOLED = {
  "mean": lambda x: x.mean(axis=0),
  "cls": lambda x: x[0],
  "max": lambda x: x.max(axis=0),
  "last": lambda x: x[-1],
}


@pytest.mark.parametrize("family", ["bert", "gpt2", pytest.param("t5", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("pooling", "layer"), [("mean", -1), ("max", 1), ("last", -1), ("cls", 0)])
def test_a_vector_pools_the_states_of_the_text_alone(models, family, pooling, layer):
  published, run, tokenizer = models[family]
  texts = [text for text in TEXTS if text]
  array_ND = encode.encode(run, texts, pooling, layer)
  assert array_ND.dtype == np.float32 and array_ND.shape == (len(texts), published.config.width)
  for text, vector in zip(texts, array_ND):
    expected = POOLED[pooling](states_alone(published, tokenizer, text, layer))
    np.testing.assert_allclose(vector, expected, atol=1e-5)


class Ones(NamedTuple):
  """A reader with the fields of `LastStates`."""

  compute: Compute

  def __call__(self, model, hidden, batch):
    return jnp.ones((len(hidden), 3))


def test_readers_of_equal_fields_are_not_taken_for_each_other(models):
  run = Run.load(models["bert"][1])
  rows = framed_rows([(np.array([5, 6]),)], run.config, run.tokenizer, 8)
  shapes = [outputs(trained(run), rows, kind(run.compute)).shape for kind in (Ones, LastStates)]
  assert shapes[0] == (1, 3) and shapes[1][-1] == run.config.width


def test_the_command_writes_a_vector_for_every_line_in_order(models, call, tmp_path, monkeypatch):
  _, run, _ = models["bert"]
  monkeypatch.setattr(encode, "BLOCK", 2)
  (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
  out = tmp_path / "v.npy"
  code, said, _ = call(
    encode, f"--model={run}", f"--file={tmp_path / 'texts.txt'}", f"--out={out}", "--pooling=cls"
  )
  assert code == 0 and "float32 [5, 6]" in said
  np.testing.assert_allclose(np.load(out), encode.encode(run, TEXTS, "cls"), atol=1e-6)
  code, _, err = call(encode, f"--model={run}", "--text=a", f"--out={out}")
  assert code == 2 and "already exists" in err
  code, said, _ = call(encode, f"--model={run}", "--text=a b", "--pooling=cls")
  assert json.loads(said) == pytest.approx(np.load(out)[0].tolist(), abs=1e-5)


def test_a_column_of_a_table_is_encoded(models, call, tmp_path):
  (tmp_path / "t.csv").write_text("id,note,text\n1,x,a b\n2,x,c d\n")
  words = (f"--model={models['bert'][1]}", f"--file={tmp_path / 't.csv'}", "--column=text")
  code, said, err = call(encode, *words)
  assert code == 0, err
  found = np.array([json.loads(line) for line in said.splitlines()])
  np.testing.assert_allclose(found, encode.encode(models["bert"][1], ["a b", "c d"]), atol=1e-5)


def test_a_picture_shows_the_texts_in_the_colors_of_a_column(models, call, tmp_path):
  (tmp_path / "t.csv").write_text("text,kind\na b,x\nc d,y\nb a,x\n")
  words = (f"--model={models['bert'][1]}", f"--file={tmp_path / 't.csv'}", "--column=text")
  code, said, err = call(encode, *words, f"--out={tmp_path / 'map.png'}", "--color=kind")
  assert code == 0 and "shows 3 texts" in said, err
  assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
  code, _, err = call(encode, *words, f"--out={tmp_path / 'other.png'}", "--color=sort")
  assert code == 2 and "--color=sort was given" in err
  code, _, err = call(encode, *words, "--color=kind")
  assert code == 2 and "--out=FILE.png" in err


def test_a_layer_or_a_pooling_that_is_not_there_is_named(models):
  _, run, _ = models["bert"]
  with pytest.raises(UserError, match="has the states -3 to 2"):
    encode.encode(run, ["a"], layer=3)
  with pytest.raises(UserError, match="expected one of mean, cls, max, last"):
    encode.encode(run, ["a"], "sum")
  with pytest.raises(UserError, match="no text to encode"):
    encode.encode(run, [])


def test_a_text_becomes_pieces_and_ids_and_text_again(models, call):
  _, run, tokenizer = models["bert"]
  code, said, _ = call(tokenize, f"--model={run}", "--text=a b", "--text=d")
  first, second = (json.loads(line) for line in said.splitlines())
  assert code == 0 and first["pieces"] == ["a", "b"] and second["text"] == "d"
  assert first["offsets"] == [[0, 1], [2, 3]]
  assert first["ids"] == tokenizer.encode("a b").tolist()
  ids = ",".join(map(str, first["ids"]))
  assert call(tokenize, f"--model={run}", f"--ids={ids}")[1] == "a b\n"
  marked = call(tokenize, f"--model={run}", "--text=a [MASK]", "--special")[1]
  assert json.loads(marked)["pieces"] == ["a", "[MASK]"]


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (("--ids=1,x",), "expected numbers such as 5,17,9"),
    (("--ids=999",), "the tokenizer has the ids 0 to"),
    (("--ids=1", "--text=a"), "give one of --text, --file and --ids"),
  ],
)
def test_ids_that_are_none_are_one_sentence(models, call, words, said):
  code, _, err = call(tokenize, f"--model={models['bert'][1]}", *words)
  assert code == 2 and said in err and len(err.splitlines()) == 1


def test_a_loaded_model_encodes_and_tokenizes(models):
  _, run, tokenizer = models["bert"]
  loaded = LoadedModel(Run.load(run), run)
  np.testing.assert_array_equal(loaded.encode("a b", "cls"), encode.encode(run, ["a b"], "cls"))
  assert loaded.tokenize("a b")["ids"] == tokenizer.encode("a b").tolist()


def test_a_run_reads_as_far_as_its_pretraining_and_counts_the_texts_that_are_cut(models, capsys):
  run = Run.load(models["bert"][1])
  data = dataclasses.replace(run.experiment.data, length=8)
  own = dataclasses.replace(
    run, document={}, experiment=dataclasses.replace(run.experiment, data=data)
  )
  assert own.config.positions > 8
  array_ND = encode.encode(own, ["a b c d a b c d a b", "a b", "a b c d a b"])
  assert "note: 1 of 3 texts are longer than 8 tokens and were cut" in capsys.readouterr().err
  np.testing.assert_allclose(array_ND[0], array_ND[2], atol=1e-5)
