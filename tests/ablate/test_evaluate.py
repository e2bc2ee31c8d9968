"""Fine-tuning within an evaluation is that of run_finetune.py."""

import dataclasses
import json

import pytest

from plm_jax.ablate import evaluating
from plm_jax.evaluation.scores import Scores
from plm_jax.runs import Run
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


def test_scores_carry_what_happened_in_training(tmp_path):
  run = Run(experiment=TOY, params=None, tokenizer=None, path=tmp_path, step=12)
  assert evaluating.notes_of(run) == []
  (tmp_path / "spikes.jsonl").write_text('{"step": 4}\n')
  early = dataclasses.replace(run, step=8)
  unfinished, exploded = evaluating.notes_of(early)
  assert unfinished == "measured after 8 of 12 steps" and "exploded (spikes.jsonl" in exploded
