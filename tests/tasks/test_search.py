"""The search of a recipe on dev, distillation from a teacher, and the linear probe."""

import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.tasks import search
from plm_jax.tasks.classification import TEACHER
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.comparison import Cell
from plm_jax.tasks.finetuning import identity, model_cell, plan, taught
from plm_jax.tasks.predicting import load
from plm_jax.tasks.probe import Probe
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.search import Grid, points, searched
from tests.tasks.test_finetuning import SETTINGS


@pytest.fixture(scope="module")
def planned(source, recipe, table, tmp_path_factory):
  path = tmp_path_factory.mktemp("search")
  return plan(source, recipe, Classify(source=str(table)), SETTINGS, path, path)


def test_a_grid_has_each_recipe_once_and_leaves_the_user_s_settings_alone():
  grid = Grid((1e-3, 1e-4), (8, 16), (2, 4))
  every = points(grid, 64, set())
  assert len(every) == 8
  chosen = every["rate-0.001_batch-8_epochs-2"]
  assert chosen == ("optim.peak=0.001", "global_batch=8", "steps=16", "optim.warmup=1")
  assert list(points(grid, 64, {"optim.peak", "steps"})) == ["batch-8", "batch-16"]
  assert points(grid, 64, {"optim.peak", "steps", "global_batch"}) == {"": ()}


@pytest.mark.slow
def test_a_search_chooses_on_dev_and_is_not_repeated(planned, monkeypatch):
  best, said = searched(planned, 60, Grid((1e-2, 1e-9), (16,), (2,)))
  assert len(said.splitlines()) == 3 and said.count("(chosen)") == 1
  devs = [float(line.split()[0]) for line in said.splitlines()[1:]]
  assert devs == sorted(devs, reverse=True) and "(chosen)" in said.splitlines()[1]
  experiment = best.experiment(60, 1)
  assert f"optim.peak={experiment.optim.peak:g}" in best.found
  assert identity(best) == identity(planned)
  monkeypatch.setattr("plm_jax.tasks.finetuning.fit", None)
  assert searched(planned, 60, Grid((1e-2, 1e-9), (16,), (2,)))[1] == said


@pytest.mark.slow
def test_a_teacher_s_logits_follow_the_order_of_the_student_s_classes(planned):
  cell = model_cell(planned, "pretrained", 60, 0, "teacher")
  teacher = planned.path / "pretrained-60-0"
  student = planned._replace(teacher=teacher, path=planned.path / "student")
  splits = taught(student, student.task, student.splits.few(60, 0))
  logits = splits.train.targets[TEACHER]
  assert logits.shape == (60, 3) and TEACHER not in splits.dev.targets
  task, model = load(teacher)
  labels = [p["label"] for p in task.predict(model, splits.train)]
  assert [student.task.labels[i] for i in logits.argmax(axis=1)] == labels
  learnt = model_cell(student, "pretrained", 60, 0, "student")
  assert learnt.test != cell.test or learnt.dev != cell.dev
  assert identity(student) != identity(planned)
  with pytest.raises(UserError, match="another teacher"):
    model_cell(student._replace(teacher=None), "pretrained", 60, 0, "student")
  other = Classify(labels=("x", "y"), length=10)
  with pytest.raises(UserError, match="the teacher knows the classes animal"):
    other.teacher_logits(task, model, splits.train.items)


def test_a_probe_learns_from_the_frozen_checkpoint(planned, source, documents):
  probe = Probe(source, planned.task)
  splits = planned.splits
  assert probe.fits(splits)
  cell = probe.cell(splits, "all", 0)
  assert cell.arm == "probe" and cell.test["accuracy"] > 0.6  # three classes; states at random
  assert probe.cell(splits, "all", 0) == cell


@pytest.mark.slow
def test_a_probe_of_numbers_and_of_pairs(source, tokenizer, tmp_path, recipe):
  rng = np.random.default_rng(0)
  words = ["small", "old", "river", "house", "tree", "stone", "cat", "dog"]
  pairs = [(" ".join(rng.choice(words, 3)), " ".join(rng.choice(words, 3))) for _ in range(60)]
  lines = [f"{a}\t{b}\t{len(set(a.split()) & set(b.split()))}.5" for a, b in pairs]
  (tmp_path / "t.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(lines) + "\n")
  task = Regress(source=str(tmp_path / "t.tsv"))
  made = plan(source, recipe, task, ["task.test_share=0.3"], tmp_path, tmp_path)
  probe = Probe(source, made.task)
  assert probe.fits(made.splits)
  predictions = probe.predictions(made.splits)
  assert len(predictions) == len(made.splits.test)
  values = np.array([p["value"] for p in predictions])
  errors = values - [item.target for item in made.splits.test.items]  # in the unit of the file
  assert np.sqrt(np.mean(errors**2)) < 1.5 * np.std([i.target for i in made.splits.train.items])


def test_the_epochs_of_a_search_are_of_the_batch_that_the_user_set(planned, monkeypatch):
  tried = []

  def trained(place, arm, size, seed, title):
    tried.append((place.experiment(size, seed), place.path.name))
    return Cell(arm, str(size), seed, {}, {"accuracy": 1.0})

  monkeypatch.setattr(search, "model_cell", trained)
  fixed = planned._replace(settings=[*planned.settings, "global_batch=32"])
  searched(fixed, 64, Grid((1e-3,), (8, 16), (2, 4)))
  steps = {name: (experiment.global_batch, experiment.steps) for experiment, name in tried}
  assert steps == {"rate-0.001_epochs-2": (32, 4), "rate-0.001_epochs-4": (32, 8)}
