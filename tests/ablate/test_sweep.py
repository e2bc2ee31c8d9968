"""A sweep survives what happens to it, and a run of it is the run that its command would be."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from plm_jax import cli
from plm_jax.ablate import launch, reporting
from plm_jax.ablate import plan as plan_module
from plm_jax.ablate import planned as plans
from plm_jax.ablate.plan import (
  Evaluation,
  PlannedRun,
  RunState,
  SweepPlan,
  claim,
  read_plan,
  state_of,
)
from plm_jax.ablate.view import View, line, time_left
from plm_jax.errors import UserError
from plm_jax.train.checkpoint import Checkpoints
from plm_jax.train.integrity import with_digest
from plm_jax.train.workdir import lock, run_hash
from tests.toy_run import text

ROOT = Path(__file__).resolve().parents[2]

# An experiment file of a user's own. The arm "broken" asks for more rows than the text has.
TABLES = '''
from dataclasses import replace
from plm_jax.ablate.table import Arm, Better, Table
from plm_jax.experiment import Budget, Experiment
from tests.toy_run import TOY

def base(budget: Budget = "small") -> Experiment:
  """A BERT of one layer."""
  return TOY

def wide(budget: Budget = "small") -> Experiment:
  """Twice as wide."""
  return replace(TOY, model=replace(TOY.model, width=32))

def broken(budget: Budget = "small") -> Experiment:
  """It cannot run."""
  return replace(TOY, global_batch=80_000)

ARMS = (Arm("base", base, {"ppl": 5.1}), Arm("wide", wide, {"ppl": 4.2}))

def two() -> Table:
  """Two arms."""
  return Table(title="Width", source="nobody", arms=ARMS, beside={"ppl": "mlm_perplexity"},
               claims=(Better("mlm_loss", "wide", than="base"),))

def failing() -> Table:
  """An arm, and one that fails."""
  return Table(title="Width", source="nobody", arms=(ARMS[0], Arm("broken", broken)))
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweeps")
  (folder / "tables.py").write_text(TABLES)
  return folder


def words_of(place, table, out, *words):
  return [
    *(sys.executable, "-m", "plm_jax.sweep", f"--table={place / 'tables.py'}:{table}"),
    *(f"--set=data.source={text()}", f"--cache={place / 'cache'}", f"--out={out}", *words),
  ]


def environment():
  return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}


def command(place, table, out, *words):
  return subprocess.run(
    words_of(place, table, out, *words),
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def finished(place):
  """(directory, what it printed) of a sweep of two arms and two seeds, one arm of which fails."""
  done = command(place, "failing", place / "done", "--seeds=2", "--jobs=2")
  assert done.returncode == 1, done.stdout + done.stderr
  return place / "done", done.stdout


def asked(place, **given):
  """The values of a sweep's flags, for mistakes that are told before anything starts."""
  flags = {
    **{"table": f"{place / 'tables.py'}:two", "budget": "small", "seeds": 2, "jobs": 1, "arms": []},
    **{"settings": [], "blimp": None, "blimp_pairs": None, "finetune": None, "cache": None},
  }
  return flags | given


@pytest.mark.slow
def test_a_failed_arm_is_told_with_the_end_of_its_log_and_loses_no_other(finished):
  out, said = finished
  assert "2 of 4 runs are done" in said
  assert "broken/0 failed with exit code 2" in said
  assert "fewer than one global" in said, "the end of the log says why"
  for run in ("base/0", "base/1"):
    scores = json.loads((out / run / "scores.json").read_text())
    assert scores["metrics"]["mlm_loss"] > 0 and scores["step"] == 12
    assert {"config.json", "metrics.jsonl", "curves.png"} <= {p.name for p in (out / run).iterdir()}
  plan = read_plan(out)
  states = {str(run): state_of(out, run, plan) for run in plan.runs()}
  assert states["base/1"].phase == "done"
  assert (states["broken/1"].phase, states["broken/1"].why) == (
    "failed",
    "pretraining ended with exit code 2",
  )


@pytest.mark.slow
def test_seeds_are_measured_on_one_set_and_text_is_prepared_once(finished):
  out, _ = finished
  found = [json.loads((out / r / "scores.json").read_text()) for r in ("base/0", "base/1")]
  assert found[0]["sets"] == found[1]["sets"]
  assert found[0]["metrics"] != found[1]["metrics"]
  prepared = [p for p in (out.parent / "cache/prepared").iterdir() if p.is_dir()]
  assert len(prepared) == 1


@pytest.mark.slow
def test_the_same_command_repeats_only_what_failed(finished, place):
  out, _ = finished
  before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/scores.json")}
  again = command(place, "failing", out, "--seeds=2")
  assert again.returncode == 1
  assert "broken/1 starts" in again.stdout and "base/1 starts" not in again.stdout
  assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/scores.json")} == before
  only = command(place, "failing", out, "--seeds=2", "--arms=base")
  assert only.returncode == 0 and "starts" not in only.stdout


@pytest.mark.slow
def test_a_report_of_it_shows_the_failed_arm_as_missing(finished, tmp_path):
  out, _ = finished
  reporting.write_report(reporting.gather(out), tmp_path)
  said = (tmp_path / "report.md").read_text()
  assert "2 of 4 runs measured" in said
  assert "| broken |  | missing |" in said
  assert "broken/0 is missing: failed at step 0 of 12 (pretraining ended with exit code 2)" in said
  assert (tmp_path / "curves.png").stat().st_size > 10_000
  page = (tmp_path / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2 and 'src="http' not in page


def lines_until(process, wanted) -> str:
  """What a process prints up to a line that holds `wanted`."""
  said = ""
  for printed in process.stdout:
    said += printed
    if wanted in printed:
      return said
  raise AssertionError(f"it ended before {wanted!r}: {said}")


def wait_for(path: Path, process) -> None:
  while not path.exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.02)


@contextlib.contextmanager
def started(*arguments):
  process = subprocess.Popen(
    words_of(*arguments),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    yield process
  finally:
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_and_killed_ends_as_if_nothing_had_been(finished, place, tmp_path):
  out = tmp_path / "out"
  given = (place, "two", out, "--seeds=1", "--arms=base")
  metrics = out / "base/0/metrics.jsonl"
  with started(*given) as process:  # in the midst of the run
    wait_for(metrics, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    assert "the same command goes on" in process.stdout.read()
  with started(*given) as process:  # killed with no time to say anything to its children
    lines_until(process, "base/0 starts")
    process.kill()
  done = command(*given)
  assert done.returncode == 0, done.stdout + done.stderr
  whole = finished[0] / "base/0"
  assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()
  of = [json.loads((p / "scores.json").read_text())["metrics"] for p in (whole, out / "base/0")]
  assert of[0] == of[1]


@pytest.mark.slow
def test_a_smoke_sweep_is_one_process_and_has_the_numbers_of_the_others(finished, place, tmp_path):
  done = command(place, "two", tmp_path / "out", "--seeds=1", "--arms=base", "--budget=smoke")
  assert done.returncode == 0, done.stdout + done.stderr
  runs = [folder / "base/0" for folder in (finished[0], tmp_path / "out")]
  one, two = ((run / "metrics.jsonl").read_bytes() for run in runs)
  assert one == two
  one, two = (json.loads((run / "scores.json").read_text())["metrics"] for run in runs)
  assert one == two
  process = json.loads((runs[1] / "config.json").read_text())["command"][0]
  assert Path(process).name == "sweep.py"  # of the others it is run_pretrain.py


@pytest.mark.slow
def test_a_second_sweep_in_the_same_directory_is_refused(place, tmp_path):
  out = tmp_path / "out"
  with lock(out, "sweep", "--out"):
    second = command(place, "two", out)
  assert second.returncode == 2 and "another sweep is working in" in second.stderr


# What is refused, and nothing is started.


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"table": "tables.py:tow"}, "has no table 'tow'. Did you mean"),
    ({"table": "tables.py:base"}, "has no table 'base'"),
    ({"table": None}, "--table=FILE:FUNCTION is needed"),
    ({"arms": ["bse"]}, "Did you mean 'base'?"),
    ({"settings": ["optim.paek=1"]}, "arm base: --set optim.paek=1: there is no 'paek'"),
    ({"finetune": "some"}, "expected numbers or all"),
    ({"blimp": "nowhere"}, "--blimp=nowhere is not a folder with .jsonl files"),
    ({"blimp_pairs": 5}, "--blimp_pairs=5 says nothing without --blimp=FOLDER"),
    ({"settings": ["model.width=8"]}, "the arms base and wide are the same experiment with the"),
    ({"settings": ["model.width=3"]}, "arm base: --set model.width=3: model.width=3"),
    ({"settings": ["steps=2"]}, "lower it too: --set=optim.warmup=0"),
    ({"seeds": 0}, "must both be at least 1"),
    ({"jobs": 0}, "must both be at least 1"),
  ],
)
def test_mistakes_are_sentences_before_anything_starts(place, monkeypatch, given, said):
  monkeypatch.chdir(place)
  with pytest.raises(UserError) as error:
    plans.planned(**asked(place, **given))
  assert said in str(error.value)


def test_blimp_files_that_cannot_be_read_are_told_before_anything_is_trained(place, tmp_path):
  (tmp_path / "x.jsonl").write_text('{"sentence_good": 1, "sentence_bad": "b"}\n')
  with pytest.raises(UserError, match="line 1: expected an object with sentence_good"):
    plans.planned(**asked(place, blimp=str(tmp_path)))
  (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"x\.jsonl cannot be read"):
    plans.planned(**asked(place, blimp=str(tmp_path)))


def test_arms_are_named_as_in_the_table_or_as_functions_and_run_once():
  table = cli.load_experiment("experiments/bert.py:table_5", returns="Table")()
  given = ["no_nsp", "bert-base", "no-nsp"]
  assert plans.arms_of(table, given) == ["no-nsp", "bert-base"]
  assert plans.arms_of(table, []) == [arm.name for arm in table.arms]
  with pytest.raises(UserError, match="Did you mean 'no-nsp'"):
    plans.arms_of(table, ["no_nps"])


def test_the_list_has_a_line_per_arm_with_its_published_numbers():
  table = cli.load_experiment("experiments/distilbert.py:table_1", returns="Table")()
  assert plans.arm_lines(table) == "  bert        GLUE 79.5\n  distilbert  GLUE 77.0"
  table = cli.load_experiment("experiments/electra.py:generator_sizes", returns="Table")()
  assert plans.arm_lines(table) == "  quarter\n  half\n  equal"


def test_only_the_arms_that_are_asked_for_must_bear_the_settings(place):
  (place / "narrow.py").write_text(TABLES.replace("width=32)", "width=32, heads=4)"))
  given = {"table": f"{place / 'narrow.py'}:two", "settings": ["model.width=6"]}
  with pytest.raises(UserError, match=r"arm wide: .*--arms=base runs the others"):
    plans.planned(**asked(place, **given))
  _, plan, experiments = plans.planned(**asked(place, arms=["base"], **given))
  assert list(plan.references) == list(plan.steps) == list(experiments) == ["base"]


def test_the_flags_without_which_claims_stay_open_are_named():
  given = {"budget": "small", "seeds": 3, "jobs": 1, "arms": [], "settings": [], "cache": None}
  given |= {"table": "experiments/bert.py:table_5", "blimp": None, "blimp_pairs": None}
  for finetune, wanted in (
    (None, ["--blimp=FOLDER", "--finetune=500,all", "--tasks=answer:DATA,tag:DATA"]),
    ("500,all", ["--blimp=FOLDER", "--tasks=answer:DATA,tag:DATA"]),
  ):
    table, plan, _ = plans.planned(**given, finetune=finetune)
    assert plans.flags_of_claims(table, plan) == wanted


def test_a_directory_of_another_sweep_is_refused(place, tmp_path):
  _, plan, _ = plans.planned(**asked(place))
  claim(tmp_path, plans.planned(**asked(place, settings=["steps=4"]))[1])
  assert claim(tmp_path, plan) == plan, "of a sweep that never began nothing is lost"
  (tmp_path / "base").mkdir()
  assert claim(tmp_path, plan) == plan
  for given, said in (
    ({"table": f"{place / 'tables.py'}:failing"}, "--table is"),
    ({"budget": "smoke"}, "--budget is small there and smoke here"),
    ({"settings": ["steps=3"]}, "--set is nothing there and steps=3 here"),
  ):
    with pytest.raises(UserError, match=said):
      claim(tmp_path, plans.planned(**asked(place, **given))[1])
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "thesis.txt").write_text("")
  with pytest.raises(UserError, match="is not empty and holds no sweep"):
    claim(tmp_path / "other", plan)


def test_seeds_and_evaluations_may_be_added_and_seeds_are_never_forgotten(place, tmp_path):
  claim(tmp_path, plans.planned(**asked(place, seeds=3))[1])
  _, plan, _ = plans.planned(**asked(place, seeds=2, finetune="all"))
  assert claim(tmp_path, plan).seeds == read_plan(tmp_path).seeds == 3
  assert read_plan(tmp_path).evaluation == Evaluation(finetune="all")


def test_a_flag_that_is_left_out_takes_no_evaluation_away(tmp_path):
  plan = SweepPlan("t", "small", (), 1, {"a": "f:a"}, {"a": 1}, Evaluation("pairs", 200, "500"))
  claim(tmp_path, plan)
  for given, kept in (
    (Evaluation(), Evaluation("pairs", 200, "500")),
    (Evaluation(finetune="500,all"), Evaluation("pairs", 200, "500,all")),
    (Evaluation(blimp="others"), Evaluation("others", None, "500,all")),
  ):
    assert claim(tmp_path, dataclasses.replace(plan, evaluation=given)).evaluation == kept
  assert read_plan(tmp_path).evaluation == kept


def test_damaged_files_of_a_sweep_are_sentences_or_passed_over(tmp_path):
  run, plan = PlannedRun("a", 0), SweepPlan("t", "small", (), 1, {"a": "f:a"}, {"a": 10})
  claim(tmp_path, plan)
  (tmp_path / "a/0").mkdir(parents=True)
  (tmp_path / "a/0/metrics.jsonl").write_text(
    '{"ste\n[]\n{"step": 2, "split": "train", "loss": 1}\n'
  )
  (tmp_path / "states").mkdir()
  (tmp_path / "states/a.0.json").write_text("{")
  assert state_of(tmp_path, run, plan) == RunState("failed", 2, 1)
  none = dict.fromkeys(plan_module._SCORES) | {"metrics": {"mlm_loss": None}}
  for damaged in ("{", "[]", '{"metrics": {}}', json.dumps(none)):
    (tmp_path / "a/0/scores.json").write_text(damaged)
    with pytest.raises(UserError, match=r"scores.json .*delete it"):
      state_of(tmp_path, run, plan)
  for damaged in ("{", '{"format": 1}', '{"format": 1, "evaluation": {"x": 1}}'):
    (tmp_path / "sweep.json").write_text(damaged)
    with pytest.raises(UserError, match=r"sweep.json"):
      read_plan(tmp_path)


def test_an_evaluation_of_another_run_is_refused_and_a_damaged_end_is_no_end(tmp_path):
  run = PlannedRun("a", 0)
  workdir = tmp_path / "a/0"
  workdir.mkdir(parents=True)
  document = {"format": 1, "experiment": {"seed": 0}}
  (workdir / "config.json").write_text(json.dumps(document))
  scores = dict.fromkeys(plan_module._SCORES) | {"metrics": {}, "asked": {}}
  (workdir / "scores.json").write_text(json.dumps(scores | {"run": run_hash(workdir)}))
  assert plan_module.read_scores(tmp_path, run)
  (workdir / "scores.json").write_text(json.dumps(scores | {"run": "theirs"}))
  with pytest.raises(UserError, match=r"is the evaluation of another run; delete it"):
    plan_module.read_scores(tmp_path, run)
  scores |= {"run": run_hash(workdir), "metrics": {"mlm_loss": 2.5}}
  (workdir / "scores.json").write_text(with_digest(scores))
  assert plan_module.read_scores(tmp_path, run) == scores
  (workdir / "scores.json").write_text(with_digest(scores).replace("2.5", "1.5"))
  with pytest.raises(UserError, match=r"was changed after it was written; delete it"):
    plan_module.read_scores(tmp_path, run)

  assert not plan_module.has_trained(tmp_path, run, 1)
  with Checkpoints(workdir / "checkpoints", run=run_hash(workdir)) as checkpoints:
    checkpoints.save(1, {"a": np.zeros(3, np.float32)}, {})
  assert plan_module.has_trained(tmp_path, run, 1)
  (workdir / "config.json").write_text(json.dumps(document | {"experiment": {"seed": 1}}))
  assert not plan_module.has_trained(tmp_path, run, 1)
  (workdir / "config.json").write_text(json.dumps(document))
  index = workdir / "checkpoints/1/checkpoint.json"
  index.write_text(index.read_text() + " ")
  assert not plan_module.has_trained(tmp_path, run, 1)


def test_a_lock_of_somebody_else_keeps_its_content(tmp_path):
  (tmp_path / ".lock").write_text("mine")
  with lock(tmp_path, "sweep", "--out"):
    pass
  assert (tmp_path / ".lock").read_text() == "mine"


def test_an_arm_is_the_run_that_its_command_would_be(place, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  _, plan, _ = plans.planned(**asked(place, settings=["steps=3"]))
  pretrain, evaluate = plan.shown(tmp_path, PlannedRun("wide", 1))
  assert pretrain == (
    f"python run_pretrain.py --experiment={place / 'tables.py'}:wide --budget=small --seed=1 "
    f"--workdir={tmp_path / 'wide/1'} --set=steps=3"
  )
  assert evaluate == f"python -m plm_jax.evaluate --from={tmp_path / 'wide/1'}"


# Sharing a machine.


def test_jobs_share_cores_and_devices_without_overlap():
  shares = launch.shares(2, [0, 1, 2, 3, 4], ["0", "1", "2", "3"])
  cores = [share[0] for share in shares]
  assert sorted(core for own in cores for core in own) == [0, 1, 2, 3, 4]
  assert [s[1] for s in shares] == [
    {"CUDA_VISIBLE_DEVICES": "0,2"},
    {"CUDA_VISIBLE_DEVICES": "1,3"},
  ]
  assert launch.shares(1, [0, 1], ["0", "1"]) == [([0, 1], {})]
  assert [s[0] for s in launch.shares(3, [4, 7], [])] == [[4], [4], [7]]


def test_jobs_on_one_device_share_its_memory(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  shares = launch.shares(3, [0, 1, 2], ["0"])
  assert {s[1]["CUDA_VISIBLE_DEVICES"] for s in shares} == {"0"}
  assert {s[1]["XLA_PYTHON_CLIENT_MEM_FRACTION"] for s in shares} == {"0.300"}


def test_slurm_gets_a_task_per_run_and_skips_nothing(place, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  _, plan, _ = plans.planned(**asked(place))
  assert launch.slurm(tmp_path, plan, plan.runs(), 3) is None
  tasks = (tmp_path / "tasks.txt").read_text().splitlines()
  assert len(tasks) == 4 and tasks[3].endswith(f"plm_jax.ablate.task {tmp_path} wide 1")
  script = (tmp_path / "sweep.sbatch").read_text()
  assert "#SBATCH --array=0-3%3" in script and str(tmp_path / "tasks.txt") in script
  assert f"sbatch {tmp_path / 'sweep.sbatch'}" in capsys.readouterr().out
  # What Slurm would do with it, with `srun` standing for nothing.
  stub = tmp_path / "srun"
  stub.write_text('#!/bin/sh\necho "$@"\n')
  stub.chmod(0o755)
  path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
  done = subprocess.run(
    ["bash", str(tmp_path / "sweep.sbatch")],
    env={**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": "2"},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert done.stdout.strip().endswith(f"plm_jax.ablate.task {tmp_path} base 1")


@pytest.mark.slow
def test_ray_on_one_machine_runs_the_same_arms(finished, place, tmp_path):
  pytest.importorskip("ray", reason="the extra `ray` is not installed")
  done = command(place, "two", tmp_path / "out", "--seeds=1", "--jobs=2", "--launcher=ray")
  assert done.returncode == 0, done.stdout + done.stderr
  metrics = [folder / "base/0" / "metrics.jsonl" for folder in (finished[0], tmp_path / "out")]
  assert metrics[0].read_bytes() == metrics[1].read_bytes()
  assert "2 of 2 runs are done" in command(place, "two", tmp_path / "out", "--seeds=1").stdout


def test_ray_that_is_not_installed_is_named_as_an_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  plan = SweepPlan("t", "small", (), 1, {"a": "f:a"}, {"a": 1})
  with pytest.raises(UserError, match=r"plm_jax\[ray\]"):
    launch.ray(tmp_path, plan, plan.runs(), 1)


def test_runs_that_were_killed_are_not_said_to_have_saved_their_state():
  stopping = launch._Stopping()
  stopping.ask(15, None)
  assert "saved its state" in stopping.message
  stopping.ask(15, None)
  assert "were killed" in stopping.message


# The view.


def test_time_left_is_shared_by_the_jobs_and_never_less_than_one_run():
  states = {
    PlannedRun("a", 0): RunState("done", 100, 1.0, 0.5),
    PlannedRun("a", 1): RunState("training", 50, 1.0, 0.5),
    PlannedRun("b", 0): RunState("waiting"),
    PlannedRun("b", 1): RunState("failed"),
  }
  steps = {"a": 100, "b": 200}
  assert time_left(states, steps, jobs=1) == 25 + 100
  assert time_left(states, steps, jobs=4) == 100
  evaluated = states | {PlannedRun("a", 0): RunState("done", 100, 1.0, 0.5, evaluated_in=10.0)}
  assert time_left(evaluated, steps, jobs=1) == 25 + 10 + 100 + 10
  assert time_left({PlannedRun("a", 0): RunState("waiting")}, steps, jobs=1) is None


def test_a_line_says_state_step_loss_and_time_left():
  shown = line(PlannedRun("base", 1), RunState("training", 250, 3.25, 0.1), 1000)
  assert shown.startswith("base/1") and "training" in shown
  assert "250/1,000" in shown and "loss 3.2500" in shown and "1:15 left" in shown
  assert "|######                  |" in shown
  assert "died" in line(PlannedRun("base", 1), RunState("failed", why="died"), 10)


class Terminal:
  """A stream that says it is a terminal, and the screen that it would show."""

  def __init__(self):
    self.screen: list[str] = []

  def isatty(self):
    return True

  def write(self, text):
    if text.startswith("\x1b["):
      up = int(text[2 : text.index("A")])
      assert up <= len(self.screen)
      del self.screen[len(self.screen) - up :]
    else:
      self.screen += text.rstrip("\n").split("\n")

  def flush(self):
    pass


def test_in_a_terminal_the_view_is_drawn_over_itself_and_messages_stay(tmp_path):
  plan = SweepPlan("t", "small", (), 2, {"a": "f:a", "b": "f:b"}, {"a": 10, "b": 10})
  claim(tmp_path, plan)
  terminal = Terminal()
  with View(tmp_path, plan, plan.runs(), 1, terminal) as view:
    view.refresh(set())
    assert len(terminal.screen) == 5 and "waiting" in terminal.screen[0]
    view.say("a/0 failed")
    view.refresh({PlannedRun("b", 0)})
  assert terminal.screen[0] == "a/0 failed" and len(terminal.screen) == 6
  assert "0 of 4 runs done" in terminal.screen[-1]


def test_elsewhere_it_is_a_line_for_every_change(tmp_path, capsys):
  plan = SweepPlan("t", "small", (), 1, {"a": "f:a"}, {"a": 10})
  claim(tmp_path, plan)
  with View(tmp_path, plan, plan.runs(), 1) as view:
    view.started(PlannedRun("a", 0))
    view.refresh(set())
    view.refresh(set())
    view.ended(PlannedRun("a", 0), 1)
  assert capsys.readouterr().out.splitlines() == [
    "0:00 a/0 starts",
    "0:00 a/0 ended with code 1 at step 0",
  ]


def test_progress_is_read_from_the_end_of_long_files_and_past_half_a_line(tmp_path):
  run, plan = PlannedRun("a", 0), SweepPlan("t", "small", (), 1, {"a": "f:a"}, {"a": 10_000})
  folder = tmp_path / "a/0"
  folder.mkdir(parents=True)
  steps = range(10, 10_000, 10)
  metrics = [{"step": s, "split": "train", "loss": 1 / s} for s in steps]
  timing = [{"step": s, "seconds": 2.0, "data_wait": 0.0} for s in steps]
  for name, records in (("metrics", metrics), ("timing", timing)):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(text + '{"step": 1')
  state = state_of(tmp_path, run, plan, alive=True)
  assert state == RunState("training", 9990, 1 / 9990, pytest.approx(0.2))
  assert state_of(tmp_path, run, plan).phase == "stopped"
