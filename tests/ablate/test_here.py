"""A sweep in one process: tables of a cell, failures of single runs, and the same files."""

import dataclasses
import json

import pytest

import plm_jax as plm
from plm_jax import api, cli
from plm_jax.ablate import here, launch, references, reuse, sweeping
from plm_jax.ablate import planned as plans
from plm_jax.ablate.launch import failure
from plm_jax.ablate.plan import SCORES, PlannedRun, begin_attempt, is_trained, log_of
from plm_jax.ablate.table import Arm, Better, Table
from plm_jax.errors import UserError
from plm_jax.train.workdir import Workdir
from tests import toy_run

NARROW = dataclasses.replace(toy_run.TOY, steps=4)
WIDE = dataclasses.replace(NARROW, model=dataclasses.replace(NARROW.model, width=32))
TABLE = Table(
  title="Width",
  source="nobody",
  arms=(Arm("narrow", NARROW), Arm("wide", WIDE)),
  claims=(Better("mlm_loss", "wide", than="narrow"),),
)


@pytest.fixture
def stubs(monkeypatch):
  """Training and evaluation that write their files at once; (arm's width, seed) of every run."""
  trained = []

  def pretrain(experiment, record, workdir: Workdir, cache, source=None, sinks=()):
    if experiment.model.width == 32 and experiment.seed == 0:
      raise UserError("it does not fit")
    trained.append((experiment.model.width, experiment.seed))
    workdir.write_config(experiment, record)
    (workdir / "checkpoints" / str(experiment.steps)).mkdir(parents=True)
    with open(workdir / "metrics.jsonl", "w") as file:
      for step in (2, 4):
        loss = experiment.model.width / step + experiment.seed
        metrics = {"step": step, "split": "train", "loss": loss, "mlm/loss": loss}
        file.write(json.dumps(metrics) + "\n")
        for sink in sinks:
          sink.write(metrics)
    print("a line of the report")

  def evaluate(run, asked, cache):
    scores = {"metrics": {"mlm_loss": 1.0}, "counts": {"mlm_loss": 9}, "sets": {"mlm": "x"}}
    scores |= {"asked": dataclasses.asdict(asked), "references": {}, "notes": [], "parameters": 5}
    (run / SCORES).write_text(json.dumps(scores))

  monkeypatch.setattr(here, "pretrain", pretrain)
  monkeypatch.setattr(here, "evaluate", evaluate)
  monkeypatch.setattr(here.Run, "load", lambda path: path)
  monkeypatch.setattr(launch.subprocess, "Popen", None)  # no process is started
  monkeypatch.setattr(sweeping, "prepare_texts", lambda experiments, cache: None)
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)
  return trained


def test_a_table_of_a_cell_runs_in_this_process_and_loses_no_run_to_a_failed_one(
  stubs, tmp_path, capsys
):
  made = plm.sweep(TABLE, seeds=2, out=tmp_path / "out", settings={"optim.peak": 0.02})
  assert stubs == [(16, 0), (16, 1), (32, 1)]
  assert [str(run) for run in made.failed] == ["wide/0"]
  printed = capsys.readouterr().out
  assert "  | error: it does not fit" in printed and "3 of 4 runs are done" in printed
  assert "a line of the report" in (tmp_path / "out/logs/narrow.0.log").read_text()
  assert made._repr_html_().count("<td style='text-align:right'>done</td>") == 3
  stored = json.loads((tmp_path / "out/narrow/1/config.json").read_text())
  assert stored["experiment"]["optim"]["peak"] == 0.02
  plm.sweep(TABLE, seeds=2, out=tmp_path / "out", settings={"optim.peak": 0.02})
  assert len(stubs) == 3, "what is done is not repeated"
  assert is_trained(tmp_path / "out", made.runs[0], 4)


def test_an_equal_run_of_another_sweep_is_copied_and_not_trained_again(
  stubs, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(reuse, "has_trained", is_trained)
  monkeypatch.setattr(reuse, "prepare_each", lambda data, cache: None)
  monkeypatch.setattr(reuse, "text_record", lambda texts: text)
  text = None  # as the stubs write it
  plm.sweep(TABLE, seeds=1, out=tmp_path / "first")
  other = dataclasses.replace(NARROW, steps=3)
  table = Table(title="Steps", source="nobody", arms=(Arm("four", NARROW), Arm("three", other)))
  capsys.readouterr()
  made = plm.sweep(table, seeds=2, out=tmp_path / "second", reuse=[tmp_path / "first"])
  assert stubs == [(16, 0), (16, 0), (16, 1), (16, 1)], "four/0 was trained once"
  assert f"four/0 is a copy of {tmp_path / 'first/narrow/0'}" in capsys.readouterr().out
  assert not made.failed and (tmp_path / "second/four/0/metrics.jsonl").exists()
  text = {"source": "another"}
  plm.sweep(table, seeds=1, out=tmp_path / "third", reuse=[tmp_path / "first"])
  assert len(stubs) == 6, "a run on another text is not equal"
  with pytest.raises(UserError, match="is not the directory of a sweep"):
    plm.sweep(table, seeds=2, out=tmp_path / "fourth", reuse=[tmp_path])
  assert not (tmp_path / "fourth").exists()


def test_a_failure_is_told_by_the_lines_of_its_own_attempt(tmp_path):
  run = PlannedRun("a", 0)
  for line in ("the first mistake", "the second mistake"):
    begin_attempt(tmp_path, run)
    with open(log_of(tmp_path, run), "a") as log:
      log.write(f"{line}\n")
  said = failure(tmp_path, run, 2)
  assert said.endswith("| the second mistake") and "first" not in said


def test_one_picture_of_all_arms_grows_in_a_notebook(stubs, cell, tmp_path):
  plm.sweep(TABLE, seeds=2, out=tmp_path / "out")
  drawn = list(cell)
  assert drawn[0] == "", "nothing has run"
  assert len(drawn) == 1 + 3 * 2, "one drawing for each record of three runs"
  assert [picture.count("<polyline") for picture in drawn[1:]] == [1, 1, 1, 1, 2, 2]
  assert "— narrow" in drawn[-1] and "— wide" in drawn[-1] and drawn[-1].count("<svg") == 1
  # wide: 32 / 2 + 1 at first; narrow: the mean of 16 / 4 and 16 / 4 + 1 at last.
  assert ">17<" in drawn[-1] and ">4.5<" in drawn[-1]
  cell.clear()
  plm.sweep(TABLE, seeds=3, out=tmp_path / "out", arms="narrow")
  assert cell[0].count("<polyline") == 2, "the runs of the earlier call"


def test_an_arm_that_was_edited_in_its_cell_is_not_taken_for_the_earlier_one(stubs, tmp_path):
  plm.sweep(TABLE, seeds=1, out=tmp_path / "out", arms="narrow")
  deeper = dataclasses.replace(NARROW, optim=dataclasses.replace(NARROW.optim, peak=0.5))
  edited = dataclasses.replace(TABLE, arms=(Arm("narrow", deeper), Arm("wide", WIDE)))
  with pytest.raises(UserError, match=r"is 0.01 there and 0.5 here; choose another `out`"):
    plm.sweep(edited, seeds=1, out=tmp_path / "out", arms="narrow")
  titled = dataclasses.replace(TABLE, title="Another question")
  with pytest.raises(UserError, match="holds another sweep: --table is"):
    plm.sweep(titled, seeds=1, out=tmp_path / "out")
  assert plans.default_out(plans.planned(titled)[1]).name == "another_question_small"


def test_the_report_of_a_table_of_a_cell_takes_the_result_of_the_sweep(stubs, tmp_path):
  made = plm.sweep(TABLE, seeds=2, out=tmp_path / "out")
  with pytest.raises(UserError, match="was made in Python, and no file has it"):
    plm.report(tmp_path / "out")
  report = plm.report(made)
  assert report.verdicts[0].outcome == "undecided"
  assert repr(report).splitlines()[1].startswith("undecided")
  assert report._repr_html_().startswith("<iframe srcdoc='&lt;!doctype html&gt;")
  assert "made in Python: plm_jax.sweep(table)" in (tmp_path / "out/report/report.md").read_text()


def test_the_start_of_a_sweep_tells_its_time_and_what_takes_less(monkeypatch):
  monkeypatch.setattr(launch, "gpus", list)
  monkeypatch.setattr(plans.estimate, "product_rate", lambda: 1e9)
  table, plan, experiments = plans.planned("experiments/bert.py:table_6", "small", seeds=2)
  runs = [run for run in plan.runs() if run.arm in ("L3-H768-A12", "L6-H768-A12")]
  told = plans.time_needed(table, plan, runs, experiments)
  assert told.startswith("49M tokens, about 10 days") and " of training on this machine" in told
  assert "--budget=laptop" in told and told.endswith("or fewer --arms and --seeds")
  twice = plans.time_needed(table, plan, runs * 10, experiments)
  assert twice.startswith("492M tokens, about 96 days")
  with monkeypatch.context() as patch:
    patch.setattr(plans, "SECONDS", 1e12)
    assert plans.time_needed(table, plan, runs, experiments) == "", "for runs of seconds"
  monkeypatch.setattr(launch, "gpus", lambda: ["0"])
  assert plans.time_needed(table, plan, runs, experiments) == "", "the runs have another device"


def test_other_processes_cannot_run_a_table_of_a_cell(tmp_path):
  with pytest.raises(UserError, match="'Width' was made in this process, so no other process"):
    plm.sweep(TABLE, jobs=2, out=tmp_path / "out")


def test_a_function_of_a_file_is_the_reference_that_the_command_takes():
  table = cli.load_experiment("experiments/bert.py:table_6", returns="Table")
  assert references.table_of(table)[1] == "experiments/bert.py:table_6"
  assert references.table_of(lambda: TABLE) == (
    TABLE, f"{references.CELL} Width"
  )  # fmt: skip
