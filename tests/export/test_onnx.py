"""Every family runs in ONNX Runtime and as StableHLO with our numbers, for rows of any length."""

import dataclasses
import functools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.commands import export as command
from plm_jax.compression.forms import expanded, stored_as
from plm_jax.errors import UserError
from plm_jax.export import agreement
from plm_jax.export.agreement import check, differences, reference
from plm_jax.export.onnx_convert import convert
from plm_jax.export.onnx_file import runner, write_cached, write_onnx
from plm_jax.export.portable import COMPUTE, Portable, portable
from plm_jax.export.stablehlo import loaded, write_stablehlo
from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.electra import ElectraEncoder
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.lstm import Lstm
from plm_jax.models.mistral import Mistral
from plm_jax.models.modernbert import ModernBert
from plm_jax.models.nnlm import Nnlm
from plm_jax.models.qwen2 import Qwen2
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.runs import Run
from tests import toy_run
from tests.decode.test_commands import own_flags

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 50, "positions": 32}
GROUPED = SIZES | {"kv_heads": 1, "hidden": 24}
CASES = {
  "bert": (Bert(**SIZES), {"mlm": 0, "nsp": 0}),
  "bert_classes": (Bert(**SIZES), {"classes": 3}),
  "bert_tags": (Bert(**SIZES), {"token_classes": 3}),
  "bert_answers": (Bert(**SIZES), {"span": 0}),
  "roberta": (Roberta(**SIZES), {"classes": 3}),
  "albert": (Albert(**SIZES), {"mlm": 0, "sop": 0}),
  "electra": (ElectraEncoder(**SIZES), {"rtd": 0}),
  "distilbert": (DistilBert(**SIZES), {"mlm": 0}),
  "modernbert": (ModernBert(**SIZES | {"layers": 4, "hidden": 24, "window": 4}), {}),
  "gpt1": (Gpt1(**SIZES), {"classes": 3}),
  "gpt2": (Gpt2(**SIZES), {"lm": 0}),
  "llama": (Llama(**GROUPED), {"lm": 0}),
  "mistral": (Mistral(**GROUPED | {"window": 4}), {"lm": 0}),
  "qwen2": (Qwen2(**GROUPED), {"lm": 0}),
  "t5": (T5(**SIZES), {"lm": 0}),
  "bart": (Bart(**SIZES), {"lm": 0}),
  "bart_classes": (Bart(**SIZES), {"classes": 3}),
}
OUTPUTS = {
  "albert": ["last_hidden_state", "logits", "pooler_output", "sentence_embedding", "sop_logits"],
  "bert_classes": ["last_hidden_state", "logits"],
  "bert_answers": ["end_logits", "last_hidden_state", "start_logits"],
  "electra": ["last_hidden_state", "logits", "sentence_embedding"],
  "gpt2": ["last_hidden_state", "logits", "sentence_embedding"],
  "t5": ["encoder_last_hidden_state", "last_hidden_state", "logits", "sentence_embedding"],
}
SLOW = ("bert_tags", "bert_answers", "distilbert", "gpt1", "mistral", "qwen2", "bart")


def drawn(config, heads):
  """Parameters without a program that makes them, all different from 0 and gains near 1."""
  random = np.random.default_rng(0)

  def draw(path, leaf):
    is_gain = "gain" in jax.tree_util.keystr(path)
    return jnp.asarray(is_gain + 0.1 * random.normal(size=leaf.shape), jnp.float32)

  shapes = jax.eval_shape(lambda key: config.init(key, heads), jax.random.key(0))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def run_of(config, heads, **fields) -> Run:
  experiment = dataclasses.replace(toy_run.TOY, model=config, **fields)
  tokenizer = toy_run.prepared().tokenizer
  return Run(experiment=experiment, params=drawn(config, heads), tokenizer=tokenizer, document={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("onnx")


@functools.cache
def exported(name, folder):
  """The run, the file and the loaded model of a case."""
  run = run_of(*CASES[name])
  file = write_onnx(run, folder / f"{name}.onnx")
  return run, file, onnx.load(file.path)


@pytest.fixture(
  params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def case(request, folder):
  return request.param, *exported(request.param, folder)


def test_onnx_runtime_agrees_on_parts_of_many_shapes(case):
  name, _, file, _ = case
  assert file.difference < 1e-5
  assert sorted(file.outputs) == OUTPUTS.get(name, sorted(file.outputs))
  assert file.inputs["input_ids"] == file.inputs["attention_mask"] == ("batch", "length")
  assert all(shape[0] == "batch" for shape in file.outputs.values())


def test_kernels_are_matrices_that_nothing_transposes(case):
  graph = case[3].graph
  sizes = {array.name: len(array.dims) for array in graph.initializer}
  products = [node for node in graph.node if node.op_type == "MatMul"]
  assert not [n for n in graph.node if n.op_type == "Transpose" and n.input[0] in sizes]
  assert all(node.input[0] not in sizes for node in products)
  kernels = [sizes[node.input[1]] for node in products if node.input[1] in sizes]
  assert len(kernels) >= 12 and set(kernels) == {2}


@pytest.mark.parametrize("name", ["bert_classes", "roberta"])
def test_norms_gelu_and_softmax_are_single_operations(name, folder):
  _, _, model = exported(name, folder)
  made = [node.op_type for node in model.graph.node]
  counts = {kind: made.count(kind) for kind in ("LayerNormalization", "Gelu", "Softmax", "Erf")}
  assert counts == {"LayerNormalization": 5, "Gelu": 2, "Softmax": 2, "Erf": 0}
  # The mask of scores is made once, for all layers.
  assert made.count("Where") <= 4 and "ReduceMean" not in made


@pytest.mark.parametrize(
  "name",
  ["gpt2", "t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "bart"))],
)
def test_generation_with_a_cache_gives_the_logits_of_the_forward_pass(name, folder):
  run, *_ = exported(name, folder)
  (folder / name).mkdir()
  files = write_cached(run, folder / name)
  assert files[0].difference < 1e-5
  assert files[0].inputs["past_key_values.1.value"][0::2] == ("batch", "past")
  assert [file.path.name for file in files] == (
    ["decoder_with_past_model.onnx"] + ["encoder_model.onnx"] * (name in ("t5", "bart"))
  )


def test_our_numbers_are_those_of_the_loaded_model(folder):
  """`plm_jax.load(DIR)(**inputs)` has another path to the outputs."""
  from plm_jax.export.outputs import outputs

  run, file, _ = exported("bert_classes", folder)
  inputs = reference(portable(run)).inputs
  ours = outputs(run, **inputs)
  theirs = runner(file.path)(inputs)
  np.testing.assert_allclose(theirs["logits"], ours["logits"], atol=1e-5)


def test_sentence_vectors_are_those_of_encode(folder, tmp_path):
  from plm_jax.commands.encode import encode

  run, file, _ = exported("modernbert", folder)
  (text,) = run.tokenizer.encode_batch(["der da le"])
  begin, end = run.config.text_frame(run.tokenizer.vocab)
  ids = np.array([[*begin, *text, *end, 0, 0]])
  mask = np.ones_like(ids)
  mask[:, -2:] = 0
  made = runner(file.path)({"input_ids": ids, "attention_mask": mask})
  np.testing.assert_allclose(
    made["sentence_embedding"], encode(run, ["der da le"], "mean"), atol=1e-5
  )


def test_a_wrong_function_is_noticed(folder):
  run, file, _ = exported("bert_classes", folder)
  right = runner(file.path)

  def wrong(inputs):
    made = right(inputs)
    return made | {"logits": made["logits"] + 2e-4 * (len(made["logits"]) == 1)}

  apart = differences(reference(portable(run)), wrong)
  with pytest.raises(UserError, match=r"the output logits in it differs from JAX by 0.0002"):
    check(apart, "it")


def test_a_file_that_differs_is_not_kept(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(agreement, "TOLERANCE", -1.0)
  run, *_ = exported("bert_classes", folder)
  with pytest.raises(UserError, match="no file was kept"):
    write_onnx(run, tmp_path / "m.onnx")
  assert not list(tmp_path.iterdir())


def test_int8_is_smaller_and_near(folder, tmp_path):
  config = Bert(**SIZES | {"width": 64, "hidden": 256, "segments": 0})
  run, random = run_of(config, {"token_classes": 3}), np.random.default_rng(1)
  rows = [{"input_ids": random.integers(0, 50, (1, n))} for n in range(4, 20)]
  rows = [row | {"attention_mask": np.ones_like(row["input_ids"])} for row in rows]
  file = write_onnx(run, tmp_path / "m.onnx", int8=True, calibration=rows)
  for made, bound in zip(file.smaller, (0.05, 0.15), strict=True):
    assert made.size < 0.5 * file.size and 1e-4 < made.error < bound
    loaded = onnx.load(made.path)
    weights = {w.name for w in loaded.graph.initializer if w.data_type == onnx.TensorProto.INT8}
    assert len(weights) >= 2 * 6  # the kernels of the layers
    # Dynamic scales are computed by the graph, static ones are numbers in it.
    kinds = Counter(node.op_type for node in loaded.graph.node)
    assert ("QuantizeLinear" in kinds) == (made.path.name == "m.static8.onnx")
    assert ("DynamicQuantizeLinear" in kinds) == (made.path.name == "m.int8.onnx")


@pytest.mark.slow
def test_calibration_reads_texts_as_the_model_does(stored, tmp_path, flags, capsys):
  texts = tmp_path / "texts.txt"
  texts.write_text("the old man\nthe sea is cold\n" * 100)
  flags.calibrate = str(texts)
  command.main("onnx", str(stored), str(tmp_path / "m.onnx"))
  assert "m.static8.onnx: int8" in capsys.readouterr().out
  rows = command.calibration_rows(Run.load(stored), ["the old man", "the sea is cold"])
  vocab = Run.load(stored).tokenizer.vocab
  assert rows[0]["input_ids"][0, 0] == vocab.cls and rows[0]["attention_mask"].all()
  for content, column, sentence in (
    ("\n \n", None, "has no text; --calibrate needs some"),
    ("a text\n", "text", "--column=text was given, and .* has lines and no columns"),
  ):
    texts.write_text(content)
    flags.column = column
    with pytest.raises(UserError, match=sentence):
      command.main("onnx", str(stored), str(tmp_path / "n.onnx"))
  flags.calibrate = None
  with pytest.raises(UserError, match="is that of --calibrate=FILE"):
    command.main("onnx", str(stored), str(tmp_path / "n.onnx"))


@pytest.mark.slow
def test_a_run_of_integers_is_exported_with_its_rounded_weights(tmp_path):
  run = run_of(*CASES["gpt2"], objectives=(CLM(),))
  small = dataclasses.replace(
    run, params=stored_as("int8", run.params), document={"shrunk": {"form": "int8"}}
  )
  made = runner(write_onnx(small, tmp_path / "m.onnx").path)
  ids = np.arange(5)[None]
  batch = {"input_ids": ids, "length": np.array([5])}
  full = expanded(small.params, run.params)
  right = full.token_logits(full(batch, COMPUTE))
  logits = made({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
  np.testing.assert_allclose(logits, right, atol=1e-4)


def small(function, *shapes) -> Portable:
  batch, length = jax.export.symbolic_shape("batch, length")
  sizes = {"b": batch, "t": length}
  inputs = {
    name: jax.ShapeDtypeStruct([sizes.get(n, n) for n in shape], jnp.float32)
    for name, shape in zip("xy", shapes)
  }
  return Portable(lambda params, **x: {"out": function(**x)}, {}, inputs, {}, 9)


def test_sizes_are_computed_in_the_graph(tmp_path):
  """A shape that is a product of sums of both dimensions."""
  from plm_jax.export.onnx_file import save_graph

  def function(x):
    pairs = jnp.concatenate([x, x[:, :1]], axis=1).reshape(-1)
    return jnp.cumsum(pairs) * jnp.arange(pairs.shape[0]) + x.shape[0]

  save_graph(small(function, "bt"), tmp_path / "m.onnx")
  for shape in ((2, 3), (5, 7)):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = runner(tmp_path / "m.onnx")({"x": x})["out"]
    np.testing.assert_allclose(made, function(jnp.asarray(x)), rtol=1e-5)


def test_equal_nodes_are_made_once_and_kernels_are_computed_now():
  kernel = np.arange(6.0, dtype=np.float32).reshape(3, 2)
  model = small(lambda x: jnp.tanh(x @ kernel.T) + jnp.tanh(x @ kernel.T), ("b", 2))
  graph = convert(model.function, {}, model.inputs)
  nodes, constants = graph.needed()
  assert [node.kind for node in nodes.values()] == ["MatMul", "Tanh", "Add"]
  assert [array.shape for array in constants.values()] == [(2, 3)]


def test_an_operation_without_a_rule_is_named():
  model = small(lambda x: jnp.sort(x, axis=0), "bt")
  with pytest.raises(UserError, match="the operation sort of JAX has no rule for ONNX"):
    convert(model.function, {}, model.inputs)


def test_models_without_a_graph_are_sentences(tmp_path):
  words = run_of(WordVectors(vocab_size=50, width=16), {})
  with pytest.raises(UserError, match=r"a WordVectors is a table of words; python -m plm_jax"):
    write_onnx(words, tmp_path / "m.onnx")
  windows = run_of(Nnlm(vocab_size=50), {"lm": 0})
  with pytest.raises(UserError, match="its forward pass needs the number of rows or tokens"):
    write_onnx(windows, tmp_path / "m.onnx")
  recurrent = run_of(Lstm(layers=1, width=16, vocab_size=50), {"lm": 0})
  with pytest.raises(UserError, match="the operation scan of JAX has no rule"):
    write_onnx(recurrent, tmp_path / "m.onnx")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_library_is_a_sentence(name, folder, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(
    UserError, match=rf"{name} is not installed; .* pip install 'plm_jax\[onnx\]'"
  ):
    write_onnx(exported("bert_classes", folder)[0], tmp_path / "m.onnx")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "sentence"),
  [("bert", "a Bert keeps no keys and values"), ("bart_classes", "predicts no next token")],
)
def test_a_model_that_does_not_generate_has_no_graph_with_a_cache(name, sentence, tmp_path):
  with pytest.raises(UserError, match=sentence):
    write_cached(run_of(*CASES[name]), tmp_path)
  assert not list(tmp_path.iterdir())


def test_one_stablehlo_file_runs_at_every_shape(tmp_path):
  run = run_of(dataclasses.replace(CASES["bert_classes"][0], positions=64), {"classes": 3})
  _, difference = write_stablehlo(run, tmp_path / "m")
  assert difference < 1e-5
  call = loaded(tmp_path / "m")
  for rows, tokens in ((2, 9), (5, 64)):
    ids = np.random.default_rng(0).integers(0, 50, (rows, tokens))
    made = call({"input_ids": ids, "token_type_ids": 0 * ids, "attention_mask": 0 * ids + 1})
    assert made["logits"].shape == (rows, 3)
    assert made["last_hidden_state"].shape == (rows, tokens, 16)


# --- the command


@pytest.fixture(scope="module")
def stored(folder):
  """The directory of a run."""
  size = toy_run.prepared().tokenizer.vocab.size
  model = Bert(**SIZES | {"layers": 1, "vocab_size": size})
  run_of(model, {"mlm": 0}, objectives=(MLM(),)).save(folder / "run")
  return folder / "run"


@pytest.fixture
def flags():
  with own_flags(command):
    command.FLAGS(["test"])
    yield command.FLAGS


def test_the_directory_needs_nothing_of_ours(stored, tmp_path, flags, capsys, monkeypatch):
  command.main("onnx", str(stored), str(tmp_path / "exported"))
  printed = capsys.readouterr().out
  assert "opset 21" in printed and "input_ids [batch, length]" in printed and "MB" in printed
  names = {path.name for path in (tmp_path / "exported").iterdir()}
  assert {"model.onnx", "config.json", "tokenizer.json", "README.md"} <= names
  assert "model.safetensors" not in names
  config = json.loads((tmp_path / "exported" / "config.json").read_text())
  assert config["architectures"] == ["BertForMaskedLM"]
  # The example of docs/export.md has two texts and asks for their vectors.
  page = (ROOT / "docs" / "export.md").read_text()
  example, variables = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {}
  monkeypatch.chdir(tmp_path)
  exec(example, variables)
  assert variables["vectors"].shape == (2, SIZES["width"]) and len(variables["mask"]) == 2


def test_a_name_with_the_suffix_is_one_file(stored, tmp_path, flags, capsys):
  command.main("stablehlo", str(stored), str(tmp_path / "m.stablehlo"))
  assert [path.name for path in tmp_path.iterdir()] == ["m.stablehlo"]
  assert "StableHLO for cpu, cuda, tpu" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (("tflite", "RUN", "new"), "the format tflite was given; expected onnx or stablehlo"),
    (("onnx", "RUN", "RUN"), "already exists"),
    (("onnx", "nowhere", "new"), "nowhere"),
    (("onnx", "RUN", "no/folder/m.onnx"), "is not a directory; make it first"),
  ],
)
def test_the_users_mistakes_are_sentences(words, sentence, stored, tmp_path, flags):
  places = {"RUN": str(stored), "new": str(tmp_path / "new")}
  with pytest.raises(UserError, match=sentence):
    command.main(*(places.get(word, word) for word in words))
  assert not list(tmp_path.iterdir())


def test_flags_of_onnx_are_refused_for_stablehlo(stored, tmp_path, flags):
  flags.int8 = True
  with pytest.raises(UserError, match="--int8, --calibrate and --cache are for onnx"):
    command.main("stablehlo", str(stored), str(tmp_path / "new"))


@pytest.mark.slow
def test_a_failure_leaves_no_directory(stored, tmp_path, flags, monkeypatch):
  monkeypatch.setattr(agreement, "TOLERANCE", -1.0)
  with pytest.raises(UserError, match="no file was kept"):
    command.main("onnx", str(stored), str(tmp_path / "out"))
  assert not list(tmp_path.iterdir())
