"""The loop: whatever stops a run and wherever, it ends as if nothing had."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.sharding import MeshShape
from plm_jax.train import loop
from plm_jax.train.workdir import read_records
from tests import toy_run
from tests.toy_run import TOY, assert_equal, run


class Watched:
  """A stream that does something before it gives the batch of a step (counted from 1)."""

  def __init__(self, stream, start, before):
    self.stream, self.step, self.before = stream, start, before

  @property
  def waited(self):
    return self.stream.waited

  def __next__(self):
    self.step += 1
    batch = next(self.stream)
    return self.before(self.step, batch) or batch

  def close(self):
    self.stream.close()


def watched(before, experiment=TOY):
  """The run's data with `before(step, batch)` called ahead of every step."""
  data = toy_run.data(experiment)
  return data._replace(training=lambda start: Watched(data.training(start), start, before))


def never(step, batch):
  raise AssertionError(f"step {step} was trained once more")


def snapshot(source, target):
  """What a SIGKILL at this moment leaves: the directory as it is on disk. Files that the writer of
  checkpoints renames meanwhile may be missing, as they may be after a kill."""
  with contextlib.suppress(shutil.Error):
    shutil.copytree(source, target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run: (folder, state, records), and beside it how it stood before each step."""
  folder = tmp_path_factory.mktemp("whole")

  def copy(step, batch):
    snapshot(folder / "run", folder / f"before-{step}")

  state, records = run(folder / "run", given=watched(copy))
  return folder, state, records


def assert_ends_like(whole, folder, state, records):
  root, expected_state, expected_records = whole
  assert_equal(state, expected_state)
  assert records == expected_records
  assert (folder / "metrics.jsonl").read_bytes() == (root / "run/metrics.jsonl").read_bytes()


def test_the_records_cover_every_window_and_evaluation(whole):
  steps = [(r["step"], r["split"]) for r in whole[2]]
  training = [(s, "train") for s in (2, 4, 6, 8, 10, 12)]
  assert sorted(steps) == sorted([*training, (0, "valid"), (6, "valid"), (12, "valid")])
  assert sorted(p.name for p in (whole[0] / "run/checkpoints").iterdir()) == ["10", "12"]
  assert int(whole[1].step) == 12


@pytest.mark.slow
def test_early_evaluations_are_dense_at_the_start_and_change_nothing_else(tmp_path):
  plain, early = (
    run(tmp_path / str(is_early), dataclasses.replace(TOY, schedule=schedule))
    for is_early in (False, True)
    for schedule in [dataclasses.replace(TOY.schedule, log=1, early=is_early)]
  )
  assert_equal(plain[0], early[0])
  assert [r for r in early[1] if r["split"] == "train" or r["step"] not in (1, 2, 4)] == plain[1]
  assert [r["step"] for r in early[1] if r["split"] == "valid"] == [0, 1, 2, 4, 6, 12]


@pytest.mark.parametrize(
  "step", [1, 7, 12, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 6, 9, 11))]
)
def test_a_run_killed_before_any_step_ends_bit_identical(whole, tmp_path, step):
  folder = tmp_path / "run"
  shutil.copytree(whole[0] / f"before-{step}", folder)
  assert_ends_like(whole, folder, *run(folder))


def test_killing_again_and_again_changes_nothing(whole, tmp_path):
  class Killed(BaseException):
    pass

  kill_at = iter((2, 7, 8, 12))

  def kill(step, batch, at):
    if step == at:
      raise Killed

  folder = tmp_path / "run"
  for at in kill_at:
    with pytest.raises(Killed):
      run(folder, given=watched(lambda step, batch, at=at: kill(step, batch, at)))
    with open(folder / "metrics.jsonl", "a") as file:
      file.write('{"step": 3, "spl')  # a line that a kill left half written
  assert_ends_like(whole, folder, *run(folder))


@pytest.mark.parametrize("at", [8, 12])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_at_hand_and_stops(whole, tmp_path, number, at):
  def ask(step, batch):
    if step == at:
      os.kill(os.getpid(), number)

  folder = tmp_path / "run"
  handler = signal.getsignal(number)
  with pytest.raises(loop.Interrupted, match=f"step {at}$"):
    run(folder, given=watched(ask))
  assert signal.getsignal(number) is handler
  assert (folder / f"checkpoints/{at}").is_dir()
  seen = []
  assert_ends_like(
    whole, folder, *run(folder, given=watched(lambda step, batch: seen.append(step)))
  )
  assert seen == list(range(at + 1, 13))


def test_a_signal_while_a_finished_run_is_restored_holds(whole, tmp_path, monkeypatch):
  folder, restore = tmp_path / "run", loop.restore_or_create
  shutil.copytree(whole[0] / "run", folder)

  def ask(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return restore(*arguments)

  monkeypatch.setattr(loop, "restore_or_create", ask)
  with pytest.raises(loop.Interrupted, match="saved step 12"):
    run(folder, given=watched(never))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(whole, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(whole[0] / "run", folder)
  largest = max((folder / "checkpoints/12/state").rglob("*"), key=lambda p: p.stat().st_size)
  damaged = bytearray(largest.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  largest.write_bytes(damaged)
  seen = []
  end = run(folder, given=watched(lambda step, batch: seen.append(step)))
  assert "checkpoints/12" in capsys.readouterr().err
  assert seen == [11, 12]
  assert_ends_like(whole, folder, *end)
  seen.clear()
  assert_ends_like(whole, folder, *run(folder, given=watched(never)))  # it was written anew


def test_a_finished_run_trains_nothing(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole[0] / "run", folder)
  assert_ends_like(whole, folder, *run(folder, given=watched(never)))


def test_metrics_know_nothing_of_time(whole):
  lines = (whole[0] / "run/metrics.jsonl").read_text().splitlines()
  names = {name for line in lines for name in json.loads(line)}
  terms = {f"{o}/{m}" for o in ("mlm", "nsp") for m in ("loss", "accuracy")}
  assert names == {"step", "split", "loss", "grad_norm", "learning_rate", *terms}
  timing = read_records(whole[0] / "run/timing.jsonl")
  assert [r["step"] for r in timing] == [2, 4, 6, 8, 10, 12]


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_checkpoint(
  whole, tmp_path
):
  def poison(step, batch):
    if step == 8:
      return batch | {"mlm_weights": batch["mlm_weights"] * np.nan}

  folder = tmp_path / "run"
  with pytest.raises(UserError, match=r"at step 8; .*step 5\. Lower optim\.peak"):
    run(folder, given=watched(poison))
  assert [p.name for p in (folder / "checkpoints").iterdir()] == ["5"]
  assert "NaN" not in (folder / "metrics.jsonl").read_text()
  assert_ends_like(whole, folder, *run(folder))  # with the cause gone, it goes on from there


def test_a_window_s_line_is_the_mean_of_its_steps(whole, tmp_path):
  every = dataclasses.replace(TOY.schedule, log=1)
  program = toy_run.program()
  assert program.experiment.schedule.log == 2
  program = dataclasses.replace(
    program, experiment=dataclasses.replace(program.experiment, schedule=every)
  )
  with toy_run.Workdir(tmp_path / "run") as workdir:
    state, records = loop.fit(program, toy_run.data(), workdir, quiet=True)
  single = [r["loss"] for r in records if r["split"] == "train"]
  windows = [r["loss"] for r in whole[2] if r["split"] == "train"]
  np.testing.assert_allclose(np.reshape(single, (6, 2)).mean(axis=1), windows, rtol=1e-6)
  assert_equal(jax.device_get(state.params), whole[1].params)  # looking more often changes nothing


def test_an_evaluation_is_the_mean_over_all_predictions(whole):
  program, batches = toy_run.program(), toy_run.data().evaluation
  assert batches[-1]["row_weight"].sum() < TOY.global_batch  # filled up, as the test needs
  values = loop.evaluate(program, whole[1].params, batches)
  sums = [
    jax.device_get(program.evaluate(whole[1].params, b, None)[0]["nsp/accuracy"]) for b in batches
  ]
  correct, count = np.sum(sums, axis=0)
  assert count == sum(batch["row_weight"].sum() for batch in batches)
  np.testing.assert_allclose(values["nsp/accuracy"], correct / count, rtol=1e-6)
  assert values == {k: v for k, v in whole[2][-1].items() if k not in ("step", "split")}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_what_eight_devices_saved_goes_on_on_one_and_on_a_cube(whole, on_eight, tmp_path, mesh):
  folder = tmp_path / "run"
  shutil.copytree(on_eight, folder)
  shape = MeshShape(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
  seen = []
  experiment = dataclasses.replace(TOY, mesh=shape)
  state, records = run(
    folder, experiment, watched(lambda step, batch: seen.append(step), experiment)
  )
  assert seen == list(range(8, 13))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4),
    state.params,
    whole[1].params,
  )
  for ours, expected in zip(records, whole[2], strict=True):
    assert ours.pop("split") == expected["split"]
    numbers = {name: value for name, value in expected.items() if name != "split"}
    assert ours == pytest.approx(numbers, rel=1e-3)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
  """A run on eight devices that was stopped at step 7."""
  folder = tmp_path_factory.mktemp("eight") / "run"
  experiment = dataclasses.replace(TOY, mesh=MeshShape(data=8))

  def ask(step, batch):
    if step == 7:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(loop.Interrupted):
    run(folder, experiment, watched(ask, experiment))
  return folder


def no_lines(path):
  path.unlink()


def a_zeroed_line(path):
  lines = path.read_bytes().splitlines(True)
  path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", *lines[3:]]))


def foreign_lines(path):
  lines = ['{"step": "4"}', "[" * 100_000, '{"step": 3, "split": {}}', '{"split": "train"}', "7"]
  path.write_text("\n".join(lines) + "\n" + path.read_text())


def another_number(path):
  path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))


@pytest.mark.parametrize("harm", [no_lines, a_zeroed_line, foreign_lines, another_number])
def test_damaged_metrics_are_restored_from_the_checkpoint(whole, tmp_path, harm, capsys):
  folder = tmp_path / "run"
  shutil.copytree(whole[0] / "before-12", folder)
  harm(folder / "metrics.jsonl")
  assert_ends_like(whole, folder, *run(folder))
  note = re.search(r"metrics.jsonl did not hold .* and is restored", capsys.readouterr().err)
  assert (note is None) == (harm is foreign_lines)  # which are dropped


def test_checkpoints_that_are_gone_are_not_passed_over_in_silence(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole[0] / "run", folder)
  shutil.rmtree(folder / "checkpoints")
  before = (folder / "metrics.jsonl").read_bytes()
  with pytest.raises(UserError, match=r"records up to step 12, but .* has no checkpoint; put it"):
    run(folder)
  assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_sighup_saves_and_stops_except_under_nohup(tmp_path):
  def ask(step, batch):
    if step == 3:
      os.kill(os.getpid(), signal.SIGHUP)

  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    run(tmp_path / "nohup", given=watched(ask))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(loop.Interrupted, match=r"step 3$"):
      run(tmp_path / "run", given=watched(ask))
  finally:
    signal.signal(signal.SIGHUP, before)
