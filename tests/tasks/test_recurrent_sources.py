"""Fine-tuning of recurrent language models: an LSTM as a whole, an ELMo by a mix of its layers."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import finetune as recipes
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.elmo import Elmo
from plm_jax.models.lstm import Lstm
from plm_jax.models.parameters import named
from plm_jax.objectives.bilm import BiLM
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import Run, RunInfo
from plm_jax.tasks.arms import Options, compare, planned, scope_of
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import model_cell
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.word_states import states_of
from tests.tasks.conftest import TELLING, check_a_killed_run_ends_alike

MODELS = {
  "lstm": (Lstm(layers=2, width=16, tied=True, initializer_range=0.3), CLM()),
  "elmo": (
    Elmo(width=8, cell=12, character_width=4, filters=((1, 4), (3, 8)), longest=8, reader=4),
    BiLM(),
  ),
}
SETTINGS = [
  *("steps=12", "optim.warmup=2", "optim.peak=0.05", "global_batch=16", "compute.dtype=float32"),
  *("schedule.save=4", "schedule.log=4", "task.length=10", "task.test_share=0.2"),
]


@pytest.fixture(scope="module")
def sources(tokenizer, tmp_path_factory):
  """name -> a run with random parameters."""
  made = {}
  for name, (model, objective) in MODELS.items():
    experiment = Experiment(
      model=model,
      objectives=(objective,),
      data=Corpus(length=16, tokenizer=WordPiece(vocab_size=120)),
      optim=AdamW(warmup=1),
      global_batch=8,
      steps=2,
    ).resolve(tokenizer.vocab.size)
    params = jax.jit(experiment.init_parameters)(jax.random.key(1))
    params = params.spelled(tokenizer) if hasattr(params, "spelled") else params
    path = tmp_path_factory.mktemp("runs") / name
    Run(experiment=experiment, params=params, tokenizer=tokenizer, step=2).save(path)
    made[name] = RunInfo.read(path)
  return made


@pytest.fixture(scope="module")
def tags(documents, tmp_path_factory):
  """The same sentences, with a tag for the word that tells the label."""
  tag_of = {word: label.upper() for label, words in TELLING.items() for word in words}
  path = tmp_path_factory.mktemp("tags") / "toy.conll"
  sentences = [text.split() for d in documents for text in d.sentences]
  rows = ("".join(f"{word} {tag_of.get(word, 'O')}\n" for word in words) for words in sentences)
  path.write_text("\n".join(rows))
  return path


@pytest.fixture(scope="module")
def elmo(sources, table, tmp_path_factory):
  """A plan whose cell pretrained-60-0 was trained, and that cell."""
  path = tmp_path_factory.mktemp("elmo")
  plan = planned(sources["elmo"], Classify(source=str(table)), SETTINGS, path, path, Options())
  return plan, model_cell(plan, "pretrained", 60, 0, "toy")


@pytest.mark.slow
def test_features_are_frozen_without_moments_and_the_mix_is_learnt(elmo, sources):
  plan, cell = elmo
  run = Run.load(plan.path / "pretrained-60-0")
  before, after = (dict(named(r.params)) for r in (Run.load(sources["elmo"].path), run))
  frozen = [path for path in after if path.split("/")[0] in ("tokens", "forward", "backward")]
  for path in (*frozen, "characters/table"):
    np.testing.assert_array_equal(before[path], after[path])
  index = json.loads((run.path / "checkpoints/12/checkpoint.json").read_text())["arrays"]
  moments = {path.partition("/mu/")[2] for path in index if "/mu/" in path}
  assert moments == set(after) - set(frozen) - {"characters/table"}
  assert {path.split("/")[0] for path in moments} == {"mix", "reader", "classes"}
  learnt = run.params.mix.learnt()
  assert learnt == {name: cell.test[f"learnt/{name}"] for name in ("s_0", "s_1", "s_2", "gamma")}
  assert len(set(learnt.values())) == 4 and learnt["gamma"] != 1


@pytest.mark.slow
def test_a_killed_training_of_features_ends_alike(elmo, monkeypatch):
  plan, cell = elmo
  check_a_killed_run_ends_alike(plan, cell, monkeypatch)


@pytest.mark.slow
def test_the_learnt_weights_are_printed_and_a_large_penalty_leaves_the_average(elmo, capsys):
  plan, _ = elmo
  penalised = [*SETTINGS, "objectives.mix.weight=100", "model.classifier=max"]
  plan = plan._replace(path=plan.path / "penalised", settings=penalised)
  options = Options(arms="pretrained", labels="60")
  compare(plan, scope_of(plan, options), options)
  shown = capsys.readouterr().out
  assert "60 labels, learnt weights of the layers: s_0 0.3" in shown and "linear probe" in shown
  (cell, *_) = json.loads((plan.path / "results.json").read_text())["cells"]
  assert [cell["test"][f"learnt/s_{j}"] for j in range(3)] == pytest.approx([1 / 3] * 3, abs=0.02)


@pytest.mark.slow
def test_an_lstm_learns_tags_from_the_state_of_each_word(sources, tags, tmp_path):
  settings = [*SETTINGS, "steps=90", "schedule.save=90", "optim.peak=0.02"]
  plan = planned(sources["lstm"], Tag(source=str(tags)), settings, tmp_path, tmp_path, Options())
  assert model_cell(plan, "pretrained", None, 0, "toy").test["accuracy"] > 0.9


def test_an_elmo_has_a_state_of_each_word_at_every_layer(sources):
  run = Run.load(sources["elmo"].path)
  ((states, offsets),) = states_of(run, ["the cat bird"])
  assert states.shape == (3, 3, 16) and offsets[:, 0].tolist() == [0, 4, 8]
  np.testing.assert_array_equal(states[:, 0, :8], states[:, 0, 8:])  # the tokens, twice


def test_a_peft_of_an_elmo_freezes_by_itself_and_trains_what_reads_the_layers(sources):
  source, task = sources["elmo"], Classify(labels=("a", "b"), length=8)
  features = ("tokens/*", "forward/*", "backward/*")
  assert recipes.recipe(source, task, 100).tuning.freeze == features
  adapted = recipes.recipe(source, task, 100, Options(peft="bitfit").method)
  assert adapted.tuning.freeze == ()
  params = jax.eval_shape(adapted.init_parameters, jax.random.key(0))
  frozen = {path.split("/")[0] for path, _ in named(params.base)}
  assert frozen == {"characters", "tokens", "forward", "backward"}


def test_vectors_of_frozen_layers_are_refused(sources):
  task = SimpleNamespace(name="similar", objective=lambda: SimpleNamespace(heads={}))
  with pytest.raises(
    UserError, match="the task similar trains vectors, and those of Elmo are frozen"
  ):
    recipes.recipe(sources["elmo"], task, 100)
