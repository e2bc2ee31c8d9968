"""An exported run has a card with its data, recipe, scores and licence, and nothing invented."""

import dataclasses
import json

import jax
import pytest

import plm_jax as plm
from plm_jax.errors import UserError
from plm_jax.export.model_card import checked_licence
from plm_jax.models.bert import Bert
from plm_jax.objectives.mlm import MLM
from plm_jax.runs import Run
from plm_jax.train.integrity import with_digest
from tests import toy_run

TEXT = {
  "source": {"given": "/home/me/toy.txt", "fingerprint": "feed"},
  "tokenizer": {},
  "splits": {"train": {"tokens": 1234}, "valid": {"tokens": 56}},
  "dropped": {},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with records of two evaluations."""
  tokenizer = toy_run.prepared().tokenizer
  model = Bert(layers=1, width=8, heads=2, positions=32, vocab_size=tokenizer.vocab.size)
  experiment = dataclasses.replace(toy_run.TOY, model=model, objectives=(MLM(),), seed=7)
  params = experiment.init_parameters(jax.random.key(0))
  command = ["/home/me/plm/run_pretrain.py", "--seed=7"]
  folder = tmp_path_factory.mktemp("run") / "bert"
  document = {"text": TEXT, "command": command, "versions": {"jax": "0.10.2"}}
  Run(experiment=experiment, params=params, tokenizer=tokenizer, document=document).save(folder)
  records = [
    {"step": 0, "split": "valid", "mlm/loss": 4.25, "mlm/accuracy": 0.0},
    {"step": 12, "split": "valid", "mlm/loss": 3.5, "mlm/accuracy": 0.25},
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return folder


def head_of(library: str, task: str, licence: str, *metrics: str) -> str:
  """The YAML that the Hub reads."""
  lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}", f"license: {licence}"]
  lines += ["tags:", "- plm_jax", "metrics:", *(f"- {metric}" for metric in metrics), "---", ""]
  return "\n".join(lines)


def test_a_card_has_the_data_the_recipe_the_scores_and_no_invented_licence(run, tmp_path):
  plm.load(run).save(tmp_path / "out")
  card = (tmp_path / "out" / "README.md").read_text()
  head = head_of("transformers", "fill-mask", "unknown", "accuracy", "perplexity")
  assert card.startswith(head)
  for part in (
    "`toy.txt`, 1,234 training tokens",
    "hash `feed`",
    "12 steps of 8 rows",
    "jax 0.10.2",
  ):
    assert part in card
  assert "MLM on held-out text, seed 7" in card and "| step 12 | 3.5 | 0.25 | 33.12 |" in card
  assert "python run_pretrain.py --seed=7" in card and "/home/me" not in card


def test_a_fine_tuned_card_has_the_scores_of_all_seeds_beside_its_own(run, tmp_path):
  folder = tmp_path / "task" / "pretrained-all-0"
  loaded = Run.load(run)
  dataclasses.replace(loaded, path=None, document={}).save(folder)
  own = {"arm": "pretrained", "labels": "all", "seed": 0, "test": {"macro_f1": 0.5}}
  cells = [own, own | {"seed": 1, "test": {"macro_f1": 0.7}}]
  (folder / "scores.json").write_text(json.dumps(own))
  (folder.parent / "results.json").write_text(json.dumps({"cells": cells}))
  plm.load(folder).save(tmp_path / "out", license="apache-2.0")
  card = (tmp_path / "out" / "README.md").read_text()
  assert "| this model | 0.500 |" in card
  assert "| pretrained, 2 seeds | 0.600 ± 0.141 |" in card
  (folder / "scores.json").write_text(with_digest(own).replace("0.5", "0.9"))
  with pytest.raises(UserError, match=r"scores.json was changed after it was written"):
    plm.load(folder).save(tmp_path / "again", license="apache-2.0")
  assert card.startswith(head_of("transformers", "fill-mask", "apache-2.0", "f1"))


def test_a_card_never_replaces_a_file_of_the_user(run, tmp_path):
  (tmp_path / "README.md").write_text("mine")
  model = plm.load(run)
  with pytest.raises(UserError, match="already exists"):
    model.save(tmp_path)
  assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("licence", ["", "MIT License", "mit\nname: x"])
def test_a_licence_that_is_no_identifier_is_one_sentence(licence):
  with pytest.raises(UserError, match="expected one identifier of the Hub"):
    checked_licence(licence)
