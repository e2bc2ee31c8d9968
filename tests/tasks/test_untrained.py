"""Fine-tuning from an experiment: the model starts from random parameters."""

import json

import pytest

import plm_jax as plm
from plm_jax import api
from plm_jax.errors import UserError
from plm_jax.runs import Run, RunInfo
from plm_jax.tasks.arms import Options, planned
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import model_cell
from plm_jax.tasks.untrained import untrained_run
from tests import toy_run
from tests.tasks.conftest import check_a_killed_run_ends_alike

FILE = '''
"""A bidirectional LSTM."""
from dataclasses import replace
from plm_jax.experiment import Experiment
from plm_jax.models.bilstm import BiLstm
from tests.toy_run import TOY, text

def toy(budget="small") -> Experiment:
  """The toy."""
  data = replace(TOY.data, source=str(text()))
  model = BiLstm(width=16, positions=32)
  optim = replace(TOY.optim, warmup=0)
  return replace(TOY, model=model, data=data, objectives=(), steps=0, optim=optim)
'''
QUICK = [
  *("steps=12", "optim.warmup=2", "optim.peak=0.03", "global_batch=16", "compute.dtype=bfloat16"),
  *("model.dropout=0.1", "task.length=10", "task.test_share=0.2", "schedule.save=4", "mesh.data=8"),
]


@pytest.fixture
def reference(tmp_path, monkeypatch):
  """FILE:FUNCTION, in a directory of its own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)
  (tmp_path / "own.py").write_text(FILE)
  return f"{tmp_path / 'own.py'}:toy"


def cache():
  return toy_run.text().parent / "cache"


@pytest.mark.slow
def test_an_experiment_is_trained_from_random_parameters_only(reference, table, capsys):
  result = plm.finetune(reference, data=table, settings=QUICK, cache=cache())
  assert list(result.comparison.arms) == ["random", "words"]
  assert result.model.parts[-5:-2] == ("runs", "own_toy_untrained-toy.jsonl", "finetune")
  shown = capsys.readouterr().out
  assert "random initialisation" in shown and "linear probe" not in shown
  run = Run.load(result.model)
  assert run.document["initial"] is None and run.document["arm"] == "random"
  (answer,) = plm.load(result.model).predict("the small old river")
  assert answer["label"] in ("animal", "colour", "number")
  again = plm.finetune(reference, data=table, settings=QUICK, cache=cache())
  assert again.comparison == result.comparison and " 0/12" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_training_in_bfloat16_on_8_devices_ends_alike(reference, table, monkeypatch):
  task = Classify(source=str(table), test_share=0.2)
  source = RunInfo.read(untrained_run(reference, task, QUICK, cache()))
  texts = [item.texts[0] for item in task.read_files()[1]["train"]]
  assert source.tokenizer.fingerprint == toy_run.TOY.data.tokenizer.train(texts).fingerprint
  plan = planned(source, task, [*QUICK, "schedule.log=4"], cache(), source.path, Options())
  finished = model_cell(plan, "random", 60, 0, "toy")
  check_a_killed_run_ends_alike(plan, finished, monkeypatch, "random")
  lines = (plan.path / "random-60-0/metrics.jsonl").read_text().splitlines()
  losses = [record["loss"] for record in map(json.loads, lines) if record["split"] == "train"]
  assert losses[-1] < losses[0]


def test_flags_for_a_checkpoint_are_refused(reference, table):
  for options, sentence in (
    ({"arms": "pretrained"}, "--arms=pretrained was given, and --from names an experiment"),
    ({"peft": "lora"}, "--peft=lora was given, and --from names an experiment"),
  ):
    with pytest.raises(UserError, match=sentence):
      plm.finetune(reference, data=table, settings=QUICK, cache=cache(), **options)
  with pytest.raises(UserError, match="its model is made from counts"):
    plm.finetune("experiments/ngram.py:base", data=table, cache=cache())
