"""The Python interface does the work of the commands, and importing it costs nothing."""

import ast
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

import plm_jax as plm
from plm_jax import api, notebook
from plm_jax.commands.encode import encode
from plm_jax.data.tokenizers import BytePairs
from plm_jax.errors import UserError
from plm_jax.models.gpt import Gpt2
from plm_jax.models.lstm import Lstm
from plm_jax.objectives.clm import CLM
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape
from tests import toy_run

NAMES = ("load", "pretrain", "finetune", "sweep", "report")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  """Keeps the cache of the user, and compiled programs of the tests, as they are."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PLM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(api, "keep_compilations", lambda cache: None)
    yield


def saved(folder, config, objective, tokenizer):
  trained = toy_run.prepared(tokenizer=tokenizer).tokenizer
  experiment = dataclasses.replace(toy_run.TOY, model=config, objectives=(objective,))
  experiment = experiment.resolve(trained.vocab.size)
  params = experiment.init_parameters(jax.random.key(0))
  Run(experiment=experiment, params=params, tokenizer=trained).save(folder)
  return plm.load(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  data = toy_run.TOY.data.tokenizer
  folder = tmp_path_factory.mktemp("runs") / "bert"
  return saved(folder, toy_run.TOY.model, toy_run.TOY.objectives[0], data)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
  config = Gpt2(layers=1, width=16, heads=2, positions=32)
  folder = tmp_path_factory.mktemp("runs") / "gpt"
  return saved(folder, config, CLM(), BytePairs(vocab_size=300))


def test_vectors_follow_the_parameters_and_a_used_model_is_pickled(bert):
  """The layers are kept apart between calls, for as long as the parameters are the same."""
  before = bert.encode("a fine film")
  other = pickle.loads(pickle.dumps(bert))
  kernel = other.run.params.encoder().blocks.attention.value.kernel
  np.testing.assert_array_equal(other.encode("a fine film"), before)
  kernel[...] = kernel[...] * 3
  changed = other.encode("a fine film")
  assert np.abs(changed - before).max() > 1e-3
  np.testing.assert_array_equal(changed, encode(other.run, ["a fine film"]))


def test_importing_the_package_imports_no_jax_and_reads_no_flags():
  code = "import sys, plm_jax; print({'jax', 'numpy', 'absl'} & set(sys.modules), dir(plm_jax))"
  printed = subprocess.run(
    [sys.executable, "-c", code, "--unknown"], capture_output=True, text=True, check=True
  ).stdout
  assert printed.startswith("set() ") and "'load'" in printed
  with pytest.raises(AttributeError, match="no attribute 'lode'"):
    _ = plm.lode


def test_static_tools_see_every_function_of_the_interface():
  tree = ast.parse(inspect.getsource(plm))
  (block,) = (node for node in tree.body if isinstance(node, ast.If))
  assert {node.names[0].asname for node in block.body} == set(NAMES) == set(plm.__all__)
  for name in NAMES:
    assert getattr(plm, name) is getattr(api, name) and getattr(api, name).__doc__


def test_a_masked_model_fills_blanks_and_scores_a_text(bert):
  first, second = bert.fill_mask("w1 [MASK] w2 [MASK]", best=3)
  assert len(first) == len(second) == 3
  assert first[0].probability >= first[1].probability > 0
  scores = bert.score("w1 w2 w3")
  assert scores["tokens"] == 3 and scores["pseudo_perplexity"] > 1 and scores["bits_per_byte"] > 0
  with pytest.raises(UserError, match="does not generate text"):
    bert.generate("w1")


def test_a_left_to_right_model_writes_one_text_for_each_prompt_and_sample(gpt):
  texts = gpt.generate(["w1 w2", "w3"], samples=2, seed=1, temperature=1.0, max_length=4)
  assert [text[:2] for text in texts] == ["w1", "w1", "w3", "w3"]
  again = gpt.generate(["w1 w2", "w3"], samples=2, seed=1, temperature=1.0, max_length=4)
  assert again == texts
  with pytest.raises(UserError, match="temperature"):
    gpt.generate("w1", temperature=-1.0)
  with pytest.raises(UserError, match=r"no rule temprature; did you mean temperature\?"):
    gpt.generate("w1", temprature=1.0)


def test_importing_a_command_leaves_the_functions(bert):
  import plm_jax.report
  import plm_jax.sweep

  assert plm.report is api.report and plm.sweep is api.sweep
  assert plm_jax.report is api.report and sys.modules["plm_jax.report"].main
  assert plm.load(bert) is bert


def test_a_model_shows_its_sizes_and_its_source(bert, gpt):
  assert str(bert).startswith("Bert(layers 1, width 16, heads 2")
  assert str(bert.run.path) in str(bert)
  assert f"<td>{gpt.parameters:,}</td>" in gpt._repr_html_()


def test_attention_of_a_text_is_that_of_the_model_and_is_drawn(bert, gpt):
  seen = bert.attention("w1 w2 w3")
  ids = [bert.tokenize("[CLS] w1 w2 w3 [SEP]", special=True)["ids"]]
  assert seen.pieces == ["[CLS]", "w1", "w2", "w3", "[SEP]"]
  expected = bert(input_ids=ids, output_attentions=True)["attentions"]
  np.testing.assert_allclose(seen.weights, np.stack(expected)[:, 0], atol=1e-6)
  assert str(seen) == "Attention of 1 layers and 2 heads for 5 tokens"
  assert "image/png" in seen._repr_html_() and seen.png().startswith(b"\x89PNG")
  weights = gpt.attention("w1 w2").weights
  assert np.triu(weights, 1).max() == 0  # a decoder reads the past only
  with pytest.raises(UserError, match="shorter sentence"):
    bert.attention("w1 " * 70)


def test_neighbours_are_of_words_that_are_one_token(bert):
  (near,) = bert.neighbours("w1", best=3).values()
  assert len(near) == 3 and near[0].cosine >= near[1].cosine >= near[2].cosine
  with pytest.raises(UserError, match="give words that are one token"):
    bert.neighbours(["w1 w2"])


def test_curves_grow_in_a_notebook(cell):
  (sink,) = notebook.live_sinks()
  for step in (1, 2):
    sink.write({"step": step, "split": "train", "mlm/loss": 3.0 / step})
  sink.write({"step": 2, "seconds": 1.0})
  assert len(cell) == 2 and "step 2" in cell[-1] and "MLM loss" in cell[-1]


def test_no_curves_grow_outside_a_notebook():
  assert notebook.live_sinks() == []


def test_a_model_is_called_with_token_ids_and_gives_the_outputs_of_transformers(bert, gpt):
  ids = [bert.tokenize("w1 w2 w3", special=True)["ids"]]
  wanted = {"output_hidden_states": True, "output_attentions": True}
  made = bert(input_ids=ids, **wanted)
  T = len(ids[0])
  assert made["logits"].shape == (1, T, bert.config.vocab_size)
  assert [x.shape for x in made["hidden_states"]] == [(1, T, 16)] * 2
  (weights_BNTS,) = made["attentions"]
  np.testing.assert_allclose(weights_BNTS.sum(axis=-1), 1, rtol=1e-5)
  padded = bert(input_ids=[ids[0] + [0]], attention_mask=[[1] * T + [0]])
  np.testing.assert_allclose(padded["logits"][:, :T], made["logits"], atol=1e-5)
  assert gpt(input_ids=[[5, 6]])["logits"].shape == (1, 2, gpt.config.vocab_size)
  with pytest.raises(UserError, match="takes no ids"):
    bert(ids=ids)


def test_a_model_that_transformers_lacks_has_the_same_call(tmp_path):
  config = Lstm(layers=1, width=16, positions=32)
  lstm = saved(tmp_path / "lstm", config, CLM(), toy_run.TOY.data.tokenizer)
  made = lstm(input_ids=[[5, 6, 7, 0]], attention_mask=[[1, 1, 1, 0]], output_hidden_states=True)
  assert made["logits"].shape == (1, 4, lstm.config.vocab_size)
  np.testing.assert_array_equal(made["hidden_states"][-1], made["last_hidden_state"])
  with pytest.raises(UserError, match="pad on the right"):
    lstm(input_ids=[[0, 6]], attention_mask=[[0, 1]])


def test_a_trained_model_shows_the_curve_of_its_losses(bert):
  records = [
    {"step": step, "split": split, "mlm/loss": 4.0 / step}
    for step, split in ((1, "valid"), (1, "train"), (2, "train"), (4, "valid"))
  ]
  path = bert.run.path / "metrics.jsonl"
  assert "<svg" not in bert._repr_html_()
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  shown = bert._repr_html_()
  path.unlink()
  assert shown.count("<svg") == 1 and shown.count("<polyline") == 2
  assert "MLM loss" in shown and "held out" in shown and "step 4" in shown
  ElementTree.fromstring(shown[shown.index("<svg") :])


def test_a_published_directory_is_loaded_as_it_is_and_converted_once(bert, tmp_path, capsys):
  bert.save(tmp_path / "public")
  loaded = plm.load(tmp_path / "public")
  assert "its conversion is kept in" in capsys.readouterr().out
  assert loaded.fill_mask("w1 [MASK]") == bert.fill_mask("w1 [MASK]")
  assert plm.load(tmp_path / "public").run.path == loaded.run.path
  assert "conversion" not in capsys.readouterr().out
  changed = tmp_path / "public" / "tokenizer_config.json"
  changed.write_text(changed.read_text() + " ")
  assert plm.load(tmp_path / "public").run.path != loaded.run.path


def test_a_directory_without_a_model_is_refused(bert, tmp_path):
  with pytest.raises(UserError, match=r"config\.json"):
    plm.load(tmp_path)
  with pytest.raises(UserError, match="was pretrained and not fine-tuned"):
    bert.predict("w1")


def test_arguments_of_other_types_are_refused_in_a_sentence(bert, gpt):
  file = bert.path / "config.json"
  for call, sentence in (
    (lambda: plm.load(None), r"path=None was given to load; expected str \| Path \| LoadedModel"),
    (lambda: plm.load(str(file)), "config.json is not the directory of a run: it is a file; give"),
    (lambda: plm.pretrain(settings=None), r"settings=None .* expected Mapping\[str, Any\] \| Seq"),
    (
      lambda: plm.finetune(bert, seeds="2"),
      r"seeds='2' .* finetune; expected int \| None",
    ),
    (lambda: plm.finetune(bert, search="no"), "search='no' was given to finetune; expected bool"),
    (lambda: plm.finetune(bert, labels=[]), r"labels=\[\] was given; expected one value at least"),
    (lambda: plm.finetune(bert, arms=[]), r"arms=\[\] was given; expected one value at least"),
    (lambda: bert.predict(3), "texts=3 was given to predict; expected str"),
    (lambda: bert.predict([3]), r"texts=\[3\] was given to predict; expected str"),
    (lambda: bert.score(["w1"]), r"text=\['w1'\] was given to score; expected str\."),
    (lambda: bert.neighbours("w1", best=0), "best=0 was given; at least one neighbour"),
    (lambda: gpt.generate("w1", samples=0), "samples=0 was given; at least one text"),
  ):
    with pytest.raises(UserError, match=sentence):
      call()
  assert len(bert.fill_mask("[MASK]", best=np.int64(2))[0]) == 2
  with pytest.raises(TypeError, match="unexpected keyword argument 'bost'"):
    bert.fill_mask("[MASK]", bost=2)


@pytest.mark.slow
def test_an_experiment_of_a_cell_is_pretrained_and_goes_on_where_it_stopped(tmp_path, capsys):
  data = dataclasses.replace(toy_run.TOY.data, source=str(toy_run.text()))
  experiment = dataclasses.replace(toy_run.TOY, steps=4, data=data, mesh=MeshShape())
  options = {"settings": {"schedule.log": 1}, "seed": 3, "workdir": tmp_path / "run"}
  options |= {"cache": toy_run.text().parent / "cache"}
  model = plm.pretrain(experiment, **options)
  assert model.run.step == 4 and model.run.experiment.seed == 3
  assert capsys.readouterr().out.startswith("experiment, seed 3")
  again = plm.pretrain(experiment, **options)
  assert again.fill_mask("w1 [MASK]") == model.fill_mask("w1 [MASK]")
  with pytest.raises(UserError, match="peak"):
    plm.pretrain(experiment, **options | {"settings": {"optim.peak": 1e-3}})
