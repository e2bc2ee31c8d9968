"""One cell of the comparison: what both arms share, resuming, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.runs import Run
from plm_jax.tasks import finetuning, labelled_text
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import (
  baseline_cell,
  checkpoint_record,
  model_cell,
  plan,
  restored,
)
from plm_jax.tasks.label import Label
from plm_jax.tasks.predicting import task_of
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.loop import compile_experiment
from tests.tasks.conftest import check_a_killed_run_ends_alike

SETTINGS = ["task.length=10", "task.test_share=0.2", "task.dev_share=0.2"]


@pytest.fixture(scope="module")
def planned(source, recipe, table, tmp_path_factory):
  path = tmp_path_factory.mktemp("finetune")
  return plan(source, recipe, Classify(source=str(table)), SETTINGS, path, path)


@pytest.fixture(scope="module")
def finished(planned):
  return model_cell(planned, "pretrained", 60, 0, "toy")


@pytest.mark.slow
def test_a_class_that_one_word_tells_is_learnt(planned, finished):
  more = planned._replace(
    settings=[*planned.settings, "steps=120", "model.initializer_range=0.2"],
    path=planned.path / "more",
  )
  assert model_cell(more, "random", None, 0, "toy").test["accuracy"] > 0.95
  assert finished.test["accuracy"] > 0.3
  assert baseline_cell(planned, "words", None, 0).test["accuracy"] == 1.0


@pytest.mark.slow
def test_both_arms_differ_in_where_they_start_and_in_nothing_else(planned, source):
  experiment = planned.experiment(60, 1)
  program = compile_experiment(experiment, finetuning.global_shapes(batches_of(planned, 1)))
  random, pretrained = program.create().params, restored(program, source).params
  assert equal(random.classes, pretrained.classes)
  assert not equal(random.embed, pretrained.embed)
  stored = restore_parameters(source.path, pretrained, allow_missing=["*"], allow_unused=["*"])
  assert stored.fresh == ["classes/bias", "classes/kernel"]
  assert equal(stored.params.blocks, pretrained.blocks)


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(planned, finished, monkeypatch):
  check_a_killed_run_ends_alike(planned, finished, monkeypatch)


@pytest.mark.slow
def test_a_finished_arm_is_read_and_not_trained_again(planned, finished, monkeypatch):
  monkeypatch.setattr(finetuning, "fit", None)
  assert model_cell(planned, "pretrained", 60, 0, "toy") == finished


@pytest.mark.slow
def test_scores_of_another_cell_or_damaged_ones_are_computed_again(planned, finished, capsys):
  path = planned.path / "pretrained-60-0" / finetuning.SCORES
  whole = path.read_text()
  cell = {name: value for name, value in json.loads(whole).items() if name != "sha256"}
  edited = whole.replace('"macro_f1": 0.', '"macro_f1": 0.9')
  foreign = json.dumps(cell | {"seed": 1})  # as an older version wrote it, without a hash
  for harmed in (edited, foreign, "[" * 1000, '{"arm": 3}', whole[:-9]):
    assert harmed != whole
    path.write_text(harmed)
    assert model_cell(planned, "pretrained", 60, 0, "toy") == finished
    assert path.read_text() == whole
    told = capsys.readouterr().err
    assert "cannot be used" in told and ("was changed after" in told) == (harmed == edited)
  path.write_text(json.dumps(cell))
  assert model_cell(planned, "pretrained", 60, 0, "toy") == finished
  assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_an_edited_task_is_told_and_not_used(planned, finished):
  run = Run.load(planned.path / "pretrained-60-0")
  path = run.path / "task.json"
  whole = path.read_text()
  path.write_text(whole.replace('"animal"', '"mineral"'))
  with pytest.raises(UserError, match=r"task.json was changed after it was written; put back"):
    task_of(run)
  path.write_text(whole)
  assert task_of(run).classes == ("animal", "colour", "number")


def test_the_record_of_a_source_has_the_step_that_is_read(source, tmp_path):
  shutil.copytree(source.path, tmp_path / "run")
  copy = dataclasses.replace(source, path=tmp_path / "run")
  (step,) = checkpoint_record(copy)["step"]
  assert step == Checkpoints(source.path / "checkpoints").latest_good()
  checkpoints = tmp_path / "run" / "checkpoints"
  shutil.copytree(checkpoints / str(step), checkpoints / str(step + 1))
  assert checkpoint_record(copy)["step"] == [step]


@pytest.mark.slow
def test_a_directory_of_other_cells_is_refused(planned, finished):
  other = planned._replace(settings=[*planned.settings, "optim.peak=0.5"])
  with pytest.raises(UserError, match=r"holds another experiment: optim\.peak"):
    model_cell(other, "pretrained", 60, 0, "toy")
  document = {**planned.source.document, "text": "another"}
  other = planned._replace(source=dataclasses.replace(planned.source, document=document))
  with pytest.raises(UserError, match="with another start"):
    model_cell(other, "pretrained", 60, 0, "toy")


@pytest.mark.slow
def test_a_cell_is_a_run_that_others_can_start_from(planned, finished):
  from plm_jax.runs import RunInfo

  run = RunInfo.read(planned.path / "pretrained-60-0")
  assert run.experiment == planned.experiment(60, 0)
  assert run.document["classes"] == ["animal", "colour", "number"]


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    (["task.sauce=x"], "task.sauce"),
    (["optim.sauce=x"], "optim.sauce"),
    (["task.source=none.csv"], "does not exist"),
    (["data.length=64"], "positions"),
    (["data.tokenizer=WordPiece(vocab_size=50)"], "does not fit the checkpoint"),
    (["task.test_share=0.9"], "at most 0.5"),
    (["data.examples=7"], "no effect: --labels sets it"),
    (["seed=7"], "no effect: --seeds sets it"),
    (["task.labels=a,b"], "no effect: the training file sets it"),
    (["max_length=32"], "max_length is called task.length here; write --set task.length=VALUE"),
    (["model.vocab_size=7000"], "vocab_size=7000 does not fit the checkpoint"),
  ],
)
def test_settings_that_make_no_task_are_refused_in_a_sentence(
  source, recipe, table, tmp_path, settings, said
):
  with pytest.raises(UserError, match=said):
    plan(source, recipe, Classify(source=str(table)), settings, tmp_path, tmp_path)


class Toy:
  def __init__(self, documents, fingerprint):
    self.documents, self.fingerprint = lambda: iter(documents), lambda: fingerprint


def test_the_test_is_what_pretraining_held_out_and_never_more(
  source, recipe, documents, tmp_path, monkeypatch, capsys
):
  toy = Toy(documents, "abc")
  monkeypatch.setattr(labelled_text, "open_source", lambda *_: toy)
  task = Label(source="tfds:toy", length=10, shortest=2, least=2)
  made = plan(source, recipe, task, [], tmp_path, tmp_path)
  assert made.task.held_out == source.experiment.data.held_out == 0.2
  assert not capsys.readouterr().err
  with pytest.raises(UserError, match="documents that pretraining has read"):
    plan(source, recipe, task, ["task.held_out=0.3"], tmp_path, tmp_path)
  same = dataclasses.replace(task, source="tfds:other")  # the same text under another name
  assert plan(source, recipe, same, [], tmp_path, tmp_path).task.held_out == 0.2
  document = {"initial": {"from": str(source.path)}, "text": {"source": {"fingerprint": "x"}}}
  later = dataclasses.replace(source, document=document)
  assert plan(later, recipe, task, [], tmp_path, tmp_path).task.held_out == 0.2
  assert not capsys.readouterr().err
  gone = dataclasses.replace(later, document={"initial": {"from": str(tmp_path / "gone")}})
  plan(gone, recipe, task, [], tmp_path, tmp_path)
  assert "the text of the pretraining before that is unknown" in capsys.readouterr().err
  toy.fingerprint = lambda: "changed"
  plan(source, recipe, task, [], tmp_path, tmp_path)
  assert "has changed since" in capsys.readouterr().err


def batches_of(planned, seed):
  splits, experiment = planned.splits.few(60, seed), planned.experiment(60, seed)
  rows = planned.task.rows(splits.train, experiment.model, planned.source.tokenizer)
  return LabelledBatches(rows, seed=seed, global_batch=experiment.global_batch)


def equal(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
