"""Fine-tuning within an evaluation is that of run_finetune.py."""

import dataclasses
import json

import pytest

from plm_jax.ablate import evaluating
from plm_jax.ablate import planned as plans
from plm_jax.ablate.plan import Evaluation
from plm_jax.ablate.table import Better
from plm_jax.errors import UserError
from plm_jax.evaluation.scores import Scores
from plm_jax.runs import Run
from plm_jax.tasks.registry import chosen_task
from tests.toy_run import TOY


@pytest.mark.slow
def test_fine_tuning_is_that_of_the_command_with_the_seed_of_the_run(source, table, tmp_path):
  settings = (f"data.source={table}", "data.length=10", "data.least=2", "data.held_out=0.2")
  settings += ("data.dev_share=0.2", "mesh.data=8")
  run = dataclasses.replace(source, experiment=dataclasses.replace(source.experiment, seed=5))
  scores = Scores({}, {}, {}, {}, [])
  evaluating.finetune(run, [60], tmp_path, scores, settings)
  assert scores.metrics.keys() == {
    "finetune_60_accuracy",
    "finetune_60_macro_f1",
  }
  cell = json.loads((source.path / "finetune/pretrained-60-5/scores.json").read_text())
  assert cell["test"]["accuracy"] == scores.metrics["finetune_60_accuracy"]
  assert scores.counts["finetune_60_accuracy"] > 10


@pytest.mark.slow
def test_tasks_are_fine_tuned_and_named_by_task_and_metric(source, tmp_path):
  sentences = [f"the O\ncat{i} B-PER\nsat O\n\n" for i in range(40)]
  (tmp_path / "tags.conll").write_text("".join(sentences))
  scores = Scores({}, {}, {}, {}, [])
  evaluating.finetune_on(source, chosen_task("tag", str(tmp_path / "tags.conll")), tmp_path, scores)
  assert {"tag_f1", "tag_accuracy"} <= scores.metrics.keys()
  seed = source.experiment.seed
  (path,) = source.path.glob(f"finetune_tag_*/pretrained-all-{seed}/scores.json")
  cell = json.loads(path.read_text())
  assert cell["test"]["f1"] == scores.metrics["tag_f1"]
  other = tmp_path / "other.conll"
  other.write_text("".join(sentences).replace("PER", "LOC"))
  evaluating.finetune_on(source, chosen_task("tag", str(other)), tmp_path, scores)
  assert len([*source.path.glob("finetune_tag_*")]) == 2, "other data have a folder of their own"


@pytest.mark.parametrize("tasks", ["tag:", ":x", "tag:a,tag:b", ",", ""])
def test_tasks_that_cannot_be_read_are_refused(tasks):
  with pytest.raises(UserError, match="expected TASK:DATA, separated by commas, each task once"):
    Evaluation(tasks=tasks)


def test_a_sweep_checks_the_data_of_its_tasks_and_names_the_flag_of_a_claim(tmp_path):
  table = "experiments/bert.py:table_5"
  asked = Evaluation(tasks="tag:a.conll, answer:b:c,my/task.py:Mine:data")
  assert asked.parts == {"tag": "a.conll", "answer": "b:c", "my/task.py:Mine": "data"}
  with pytest.raises(UserError, match=r"--tasks=tag:missing\.conll: there is no missing.conll"):
    plans.planned(table, tasks="tag:missing.conll")
  with pytest.raises(UserError, match="--tasks=tag needs data: --tasks=tag:DATA"):
    plans.planned(table, tasks="word_order,tag")
  with pytest.raises(UserError, match="there is no task 'tags'; did you mean tag"):
    plans.planned(table, tasks=f"tags:{tmp_path}")
  with pytest.raises(UserError, match="glue is several; name one of them"):
    plans.planned(table, tasks=f"glue:{tmp_path}")
  (tmp_path / "tags.conll").write_text("")
  with pytest.raises(UserError, match="answer"):
    plans.planned(table, tasks=f"answer:{tmp_path / 'tags.conll'}")
  sentences = [f"the O\ncat{i} B-PER\nsat O\n\n" for i in range(40)]
  (tmp_path / "tags.conll").write_text("".join(sentences))
  tasks = f"tag:{tmp_path / 'tags.conll'}"
  wanted = plans.flags_of_claims(*plans.planned(table, tasks=tasks)[:2])
  assert "--tasks=answer:DATA" in wanted
  read, plan = plans.planned(table)[:2]
  claim = Better("word_order_accuracy", "no-nsp", than="ltr-no-nsp")
  order = dataclasses.replace(read, claims=(claim,))
  assert plans.flags_of_claims(order, plan) == ["--tasks=word_order"], "it has a text of its own"


def test_scores_carry_what_happened_in_training(tmp_path):
  run = Run(experiment=TOY, params=None, tokenizer=None, path=tmp_path, step=12)
  assert evaluating.notes_of(run) == []
  (tmp_path / "spikes.jsonl").write_text('{"step": 4}\n')
  early = dataclasses.replace(run, step=8)
  unfinished, exploded = evaluating.notes_of(early)
  assert unfinished == "measured after 8 of 12 steps" and "exploded (spikes.jsonl" in exploded
