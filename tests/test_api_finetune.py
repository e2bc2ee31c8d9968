"""`plm.finetune` does the work of run_finetune.py, and returns what the command prints."""

import json

import pytest

import plm_jax as plm
from plm_jax import api
from plm_jax.errors import UserError
from plm_jax.tasks.classify import Classify
from tests.tasks.conftest import documents, source, table, tokenizer  # noqa: F401  fixtures

QUICK = {"task.test_share": 0.2, "steps": 2, "optim.warmup": 1}


@pytest.fixture(autouse=True)
def compilations(monkeypatch):
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)


@pytest.mark.slow
def test_a_model_is_fine_tuned_and_its_scores_are_returned(source, table, tmp_path, capsys):  # noqa: F811
  options = {
    "labels": [60],
    "arms": "pretrained",
    "probe": False,
    "settings": QUICK,
    "workdir": tmp_path / "out",
  }
  result = plm.finetune(source.path, data=table, cache=tmp_path, **options)
  assert str(result) in capsys.readouterr().out
  stored = json.loads((tmp_path / "out/results.json").read_text())
  assert [cell._asdict() for cell in result.comparison.cells] == stored["cells"]
  (label,) = plm.load(result.model).predict("the small old cat")
  assert label["label"] in ("animal", "colour", "number")
  task = Classify(source=str(table))
  again = plm.finetune(plm.load(source.path), task, cache=tmp_path, **options)
  assert again.comparison == result.comparison  # nothing was trained again
  with pytest.raises(UserError, match="results of another task"):
    plm.finetune(source.path, task, cache=tmp_path, **options | {"settings": {"steps": 3}})


def test_a_mistake_is_an_exception_with_the_sentence_of_the_command(source, table, tmp_path):  # noqa: F811
  for options, sentence in (
    ({"task": "clasify"}, "there is no task 'clasify'; the tasks are classify, pairs"),
    ({"settings": {"optim.paek": 1}}, "Did you mean 'optim.peak'"),
    ({"labels": "few"}, "--labels=few was given; expected numbers or all"),
    ({"arms": ["random"]}, "--arms=random was given; expected pretrained"),
    ({"seeds": 0}, "at least one seed is needed"),
  ):
    with pytest.raises(UserError, match=sentence):
      plm.finetune(source.path, data=table, cache=tmp_path, workdir=tmp_path, **options)
