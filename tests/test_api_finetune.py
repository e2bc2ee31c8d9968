"""`plm.finetune` does the work of run_finetune.py, and returns what the command prints."""

import json

import pytest

import plm_jax as plm
from plm_jax import api
from plm_jax.commands.new import new
from plm_jax.errors import UserError
from plm_jax.tasks.registry import chosen_task
from tests.tasks.conftest import documents, source, table, tokenizer  # noqa: F401  fixtures

QUICK = {"steps": 2, "optim.warmup": 1}


@pytest.fixture(autouse=True)
def compilations(monkeypatch):
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)


@pytest.mark.slow
def test_a_task_of_ones_own_is_fine_tuned_and_its_scores_are_returned(source, tmp_path, capsys):  # noqa: F811
  new("task", "stars", tmp_path)
  task, data = f"{tmp_path / 'stars.py'}:Task", tmp_path / "stars.csv"
  options = {"labels": ["all"], "arms": "pretrained", "probe": False, "settings": QUICK}
  options |= {"workdir": tmp_path / "out", "cache": tmp_path}
  result = plm.finetune(source.path, task, data, **options)
  assert str(result) in capsys.readouterr().out
  stored = json.loads((tmp_path / "out/results.json").read_text())
  assert [cell._asdict() for cell in result.comparison.cells] == stored["cells"]
  assert result._repr_html_().count("<tr>") == 1 + len(result.comparison.arms) + 1
  (answer,) = plm.load(result.model, task=task).predict("a fine film")
  assert answer["label"] in ("good", "bad")
  made = chosen_task(task, str(data))  # a task itself is taken too, as from a cell
  again = plm.finetune(plm.load(source.path), made, **options)
  assert again.comparison == result.comparison  # nothing was trained again
  with pytest.raises(UserError, match=r"results of another fine-tuning: --set is .* here; choose"):
    plm.finetune(source.path, made, **options | {"settings": {"steps": 3}})


def test_a_mistake_is_an_exception_with_the_sentence_of_the_command(source, table, tmp_path):  # noqa: F811
  for options, sentence in (
    ({"task": "clasify"}, "there is no task 'clasify'; did you mean classify\\? The"),
    ({"settings": {"optim.paek": 1}}, "Did you mean 'optim.peak'"),
    ({"labels": "few"}, "--labels=few was given; expected numbers or all"),
    ({"arms": ["random"]}, "--arms=random was given; expected pretrained"),
    ({"seeds": 0}, "at least one seed is needed"),
  ):
    with pytest.raises(UserError, match=sentence):
      plm.finetune(source.path, data=table, cache=tmp_path, workdir=tmp_path, **options)
