"""The table of continued pretraining: its arms start from one base, and both texts are scored."""

import dataclasses
import json

import jax
import pytest

from experiments import continuation
from plm_jax import pretraining
from plm_jax.ablate import launch
from plm_jax.ablate.plan import PlannedRun, SweepPlan, log_of
from plm_jax.ablate.reporting import report
from plm_jax.ablate.sweeping import sweep
from plm_jax.ablate.table import Arm, Table
from plm_jax.errors import UserError
from plm_jax.experiment_flags import SHARE
from plm_jax.train.workdir import read_config, read_records
from tests.experiments.rows import changed
from tests.toy_language import random_language, write_corpus
from tests.toy_run import WORDS, text

TABLE = "experiments/continuation.py:domain"
PLAN = SweepPlan(
  TABLE, "smoke", (), 2, {"base": "f:base", "more": "f:more"}, {"base": 1, "more": 1},
  starts={"more": "base"},
)  # fmt: skip


def test_the_arms_differ_in_texts_rate_and_length_alone():
  base = continuation.base()
  allowed = {"steps", "optim.peak", "optim.warmup", "data.weights", "schedule.save"}
  allowed |= {"schedule.log", "schedule.evaluate"}
  rows = (continuation.scratch(), continuation.continued(), continuation.replay())
  assert all(changed(row, base) <= allowed for row in rows)
  assert rows[0] == continuation.full_rate()  # which starts from base
  assert rows[1].optim.peak == SHARE * base.optim.peak
  assert dataclasses.replace(rows[2], data=rows[1].data) == rows[1]


def test_the_command_of_an_arm_names_the_run_of_its_seed(tmp_path):
  commands = [PLAN.commands(tmp_path, run)["pretraining"] for run in PLAN.runs()]
  starts = [[w for w in words if w.startswith("--from=")] for words in commands]
  assert starts == [[], [f"--from={tmp_path}/base/0"], [], [f"--from={tmp_path}/base/1"]]


def test_a_run_waits_for_the_one_that_it_goes_on_from(tmp_path, monkeypatch):
  events = []

  class Process:
    returncode = 0

    def __init__(self, run):
      self.run, self.polls = run, 2
      events.append(f"{run} starts")

    def poll(self):
      self.polls -= 1
      if self.polls:
        return None
      events.append(f"{self.run} ends")
      return 0

  monkeypatch.setattr(launch, "_start", lambda out, run, share, pinned: Process(run))
  log_of(tmp_path, PlannedRun("base", 0)).parent.mkdir()
  assert launch.local(tmp_path, PLAN, PLAN.runs(), 3) == []
  for seed in (0, 1):
    assert events.index(f"base/{seed} ends") < events.index(f"more/{seed} starts")
  assert events.index("base/1 starts") < events.index("base/0 ends")  # they share no base


def test_an_arm_that_starts_from_a_later_or_unknown_one_is_refused():
  arms = (Arm.of(continuation.replay, start="base"), Arm.of(continuation.base))
  with pytest.raises(UserError, match="starts from 'base', which must be an arm before it"):
    Table(title="t", source="s", arms=arms)


def test_other_launchers_and_missing_bases_are_refused(tmp_path):
  options = {"budget": "smoke", "seeds": 1, "settings": [f"data.source=old={text()},new={text(9)}"]}
  with pytest.raises(UserError, match="--launcher=slurm starts runs in any order, and continued"):
    sweep(TABLE, tmp_path / "a", launcher="slurm", **options)
  with pytest.raises(UserError, match="replay/0 goes on from base/0, which is not trained here"):
    sweep(TABLE, tmp_path / "a", arms=["replay"], inline=True, **options)


@pytest.mark.slow
def test_a_smoke_sweep_goes_on_from_its_base_and_scores_both_texts(tmp_path, monkeypatch):
  compiled = pretraining.compile_experiment
  monkeypatch.setattr(
    pretraining, "compile_experiment", lambda e, batch: compiled(e, batch, jax.devices()[:1])
  )
  monkeypatch.setattr(pretraining, "show", lambda *_: None)  # examples cost more than the steps
  write_corpus(tmp_path / "new.txt", random_language(WORDS, seed=5), 40, sentences=6, words=12)
  settings = [f"data.source=old={text()},new={tmp_path / 'new.txt'}", "global_batch=8"]
  settings += ["data.tokenizer=BytePairs(vocab_size=270)", "model.layers=1", "model.width=16"]
  settings += ["data.length=16", "schedule.evaluation_rows=16"]
  out = tmp_path / "sweep"
  options = {"budget": "smoke", "seeds": 1, "settings": settings, "inline": True}
  made = sweep(TABLE, out, arms=["replay", "base"], cache=str(tmp_path / "cache"), **options)
  assert not made.failed, log_of(out, made.runs[0]).read_text()
  assert read_config(out / "replay/0")["initial"]["from"] == str(out / "base/0")
  before, after = (read_records(out / arm / "0/metrics.jsonl") for arm in ("base", "replay"))
  for name in ("clm/loss", "old/clm/loss", "new/clm/loss"):
    assert after[0][name] == pytest.approx(before[-1][name], rel=1e-6)
  scores = json.loads((out / "replay/0/scores.json").read_text())
  assert {"clm_loss", "old/clm_loss", "new/clm_perplexity"} <= scores["metrics"].keys()
  assert scores["sets"] == json.loads((out / "base/0/scores.json").read_text())["sets"]
  report(out, tmp_path / "report")
  page = (tmp_path / "report/report.md").read_text()
  assert "Before, during and after" in page and "goes on from base; " in page
