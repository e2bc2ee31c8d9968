"""The files of `python -m plm_jax.new` run as they stand, in a folder outside the repository."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plm_jax as plm
from plm_jax import api, overrides
from plm_jax.ablate import planned as plans
from plm_jax.commands.new import TEMPLATES, new
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.tasks.registry import chosen_task
from plm_jax.tasks.task import Context
from tests import toy_run
from tests.tasks.conftest import documents, source, tokenizer  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parents[1]
TINY = {
  **{"model.layers": 1, "model.width": 16, "model.heads": 2, "data.length": 27, "steps": 2},
  **{"optim.warmup": 1, "data.tokenizer.vocab_size": 300, "schedule.evaluation_rows": 16},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)
  return tmp_path


@pytest.mark.parametrize("kind", ["experiment", "table", "task"])
def test_the_file_names_the_commands_that_run_it(kind, folder):
  path = new(kind, "mine", folder)[0]
  assert path == folder / "mine.py" and "NAME" not in path.read_text()
  text = ast.get_docstring(ast.parse(path.read_text()))
  assert f"{ROOT}/run_" in text or kind == "table"
  assert "mine.py:" in text
  with pytest.raises(UserError, match=r"mine.py already exists"):
    new(kind, "mine", folder)


def test_an_experiment_and_a_table_are_found_from_their_folder(folder):
  new("experiment", "own", folder)
  experiment, record = chosen_experiment("own.py:more_masks", "", "smoke", [], None)
  assert experiment.objectives[0].rate == 0.6 and record["name"] == "own_more_masks_smoke"
  assert [line["field"] for line in record["diff"]] == ["objectives"]
  new("table", "question", folder)
  table, plan, experiments = plans.planned("question.py:table", budget="smoke")
  assert [arm.name for arm in table.arms] == list(experiments) == ["base", "more-masks"]
  assert plan.references["base"] == f"{folder}/question.py:base"


def test_a_task_of_a_file_reads_its_table_and_is_stored_by_its_class(folder, source):  # noqa: F811
  new("task", "stars", folder)
  task = chosen_task("stars.py:Task", "stars.csv")
  assert chosen_task(type(task), "stars.csv") == chosen_task(task, None) == task
  task, splits = task.read(Context(source, folder))
  assert task.labels == ("bad", "good") and len(splits.train) > 30
  stored = json.loads(json.dumps(overrides.to_json(task)))
  assert overrides.from_json(stored) == task
  stored["type"] = stored["type"].replace("stars.py", "gone.py")
  with pytest.raises(UserError, match=r"the class Task of .*gone.py, which is not loaded: give it"):
    overrides.from_json(stored)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("stars.py:Tusk", "stars.py has no task 'Tusk'; it has Task."),
    ("nowhere.py:Task", "the Python file nowhere.py does not exist"),
    ("clasify", "did you mean classify?"),
  ],
)
def test_a_task_that_is_not_there_is_answered_with_what_is(folder, name, said):
  new("task", "stars", folder)
  with pytest.raises(UserError) as error:
    chosen_task(name, "stars.csv")
  assert said in str(error.value)


def test_what_cannot_be_written_is_a_sentence(folder):
  with pytest.raises(UserError, match="'model' was given; expected experiment, table or task"):
    new("model", "mine", folder)
  with pytest.raises(UserError, match="'my-file' cannot name a Python file"):
    new("task", "my-file", folder)
  for name in ("json", "class", "NAME", "data", "plm_jax.py", "numpy"):
    with pytest.raises(UserError, match="is already the name of a module or a word of Python"):
      new("task", name, folder)
  assert not list(folder.iterdir())
  assert {path.stem for path in TEMPLATES.iterdir()} == {"experiment", "table", "task"}


@pytest.mark.slow
def test_the_table_runs_in_a_new_process_from_its_folder(folder):
  new("table", "question", folder)
  words = [f"--set={field}={value}" for field, value in TINY.items()]
  words += [f"--set=data.source={toy_run.text()}", f"--cache={folder / 'cache'}", "--seeds=1"]
  command = [sys.executable, "-m", "plm_jax.sweep", "--table=question.py:table", "--out=out"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(
    [*command, "--budget=smoke", "--arms=base", *words],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "1 of 1 runs are done" in done.stdout
  report = plm.report(folder / "out")
  assert report.scores["base"][0]["mlm_loss"] > 0


@pytest.mark.slow
def test_the_experiment_is_pretrained_from_its_folder(folder):
  new("experiment", "own", folder)
  settings = TINY | {"data.source": toy_run.text()}
  model = plm.pretrain("own.py:more_masks", budget="smoke", settings=settings, cache="cache")
  assert model.run.step == 2 and model.path == Path("runs/own_more_masks_smoke")
