"""A loss that explodes and stays finite is told, and each way on is exact."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.pipeline import iterate
from plm_jax.errors import UserError
from plm_jax.objectives.mlm import MLM
from plm_jax.train.running import running, unusual
from plm_jax.train.spikes import Detector, batches_until
from plm_jax.train.workdir import read_records
from tests import toy_run
from tests.toy_run import TOY, assert_equal, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bombed(MLM):
  """MLM with a loss that a batch can multiply."""

  def corrupt(self, batch, draws, vocab):
    batch = super().corrupt(batch, draws, vocab)
    return batch | {"bomb": np.ones(len(batch["length"]), np.float32)}

  def loss(self, model, hidden, batch, noise):
    terms = super().loss(model, hidden, batch, noise)
    total, count = terms["loss"]
    return terms | {"loss": (total * batch["bomb"].mean(), count)}


# A window a step, so that a spike is noticed at once.
STEADY = dataclasses.replace(
  TOY,
  objectives=(Bombed(),),
  steps=24,
  schedule=dataclasses.replace(TOY.schedule, log=1, save=3, evaluate=0),
)
BAD = {14: 1e4, 15: 1e4}  # position in the data, from 1: factor of the loss


class Stream:
  """Batches from a position on, some of which explode. before: called with each position."""

  def __init__(self, batches, start, before, bad):
    self.batches, self.position, self.before, self.bad = batches, start, before, bad
    self.waited = 0.0

  def __next__(self):
    self.position += 1
    self.before(self.position)
    batch = next(self.batches)
    return batch | {"bomb": batch["bomb"] * np.float32(self.bad.get(self.position, 1.0))}

  def close(self):
    self.batches.close()


def data(experiment, before=lambda position: None, bad=BAD):
  train, _ = toy_run.batches(experiment)

  def training(start):
    return Stream(iterate(train, start, batches_until(experiment, Path())), start, before, bad)

  return toy_run.data(experiment)._replace(training=training)


def with_action(action):
  return dataclasses.replace(STEADY, on_spike=action)


def spikes_in(folder):
  return [json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines()]


def steps_in(folder):
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def records(losses, norms=None):
  norms = norms or [1.0] * len(losses)
  first = {"step": 0, "split": "valid", "mlm/loss": 5.0}
  return [first] + [
    {"step": step, "split": "train", "loss": loss, "grad_norm": norm}
    for step, (loss, norm) in enumerate(zip(losses, norms), 1)
  ]


def judged(losses, norms=None):
  """The steps that are told as explosions."""
  detector = Detector(STEADY)
  verdicts = [detector.judge(record) for record in records(losses, norms)]
  return [step for step, usual in enumerate(verdicts) if usual is not None]


def test_an_ordinary_curve_with_noise_is_no_explosion():
  draw = np.random.default_rng(0)
  curve = 2 + 3 * np.exp(-np.arange(300) / 40) + 0.2 * draw.normal(size=300)
  assert judged(curve.tolist(), np.abs(draw.normal(1, 0.5, 300)).tolist()) == []


def test_losses_and_gradient_norms_far_above_the_usual_are_explosions():
  steady = [3.0 + 0.01 * (i % 3) for i in range(20)]
  assert judged([*steady, 9.0, 700.0, 3.0]) == [21, 22]
  assert judged([*steady, *steady], [1.0] * 25 + [1e3] + [1.0] * 14) == [26]
  assert judged([5.1, 74.0, 7000.0, 5.0]) == [2, 3]  # against the loss before training


@pytest.mark.slow
def test_a_spike_is_told_and_recorded(tmp_path, capsys):
  run(tmp_path / "run", with_action("tell"), data(STEADY))
  told = capsys.readouterr().err
  assert "up to 14, far above the usual" in told and "checkpoint of step 12, before that" in told
  (event,) = spikes_in(tmp_path / "run")
  assert (event["step"], event["action"]) == (14, "tell") and event["loss"] > 1e4
  assert steps_in(tmp_path / "run") == [21, 24]  # it was usual again: the newest alone are kept


@pytest.mark.slow
def test_while_the_loss_stays_exploded_a_checkpoint_from_before_is_kept(tmp_path, capsys):
  bad = {position: 1e4 for position in range(14, 25)}
  run(tmp_path / "run", with_action("tell"), data(STEADY, bad=bad))
  assert steps_in(tmp_path / "run") == [12, 21, 24]
  assert "never usual again after step 13" in capsys.readouterr().err


@pytest.mark.slow
def test_stop_ends_at_the_spike_each_time(tmp_path):
  for _ in range(2):
    with pytest.raises(UserError, match=r"up to 14, .*The checkpoint of step 12, .*is kept"):
      run(tmp_path / "run", with_action("stop"), data(STEADY))
    assert max(steps_in(tmp_path / "run")) == 12


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rewound") / "run"
  return folder, *run(folder, with_action("rewind"), data(with_action("rewind")))


@pytest.mark.slow
def test_rewind_goes_back_and_leaves_the_rows_out(rewound, tmp_path):
  folder, state, metrics = rewound
  events = spikes_in(folder)
  # Step 13 after going back reads position 15, which explodes too.
  assert [(e["step"], e["to"], e["skipped"]) for e in events] == [(14, 12, 2), (13, 9, 4)]

  def without_bad(start):  # the rows of steps 10 to 15 are left out, and nothing explodes
    train, _ = toy_run.batches(STEADY)
    late = start + 6 * (start >= 9)
    return Stream(iterate(train, late, 40), late, lambda position: None, {})

  plain = data(STEADY)._replace(training=without_bad)
  with pytest.raises(Killed):  # after the checkpoint of step 9
    run(tmp_path / "run", STEADY, plain._replace(training=lambda s: Ending(without_bad(s), 9)))
  expected, expected_metrics = run(tmp_path / "run", STEADY, plain)
  assert_equal(state, expected)
  assert metrics == expected_metrics


class Killed(BaseException):
  pass


def killed_at(positions):
  """Kills at each of the positions once, in turn."""

  def kill(position):
    if positions and position == positions[0]:
      positions.pop(0)
      raise Killed

  return kill


class Ending:
  """A stream that is killed after a position."""

  def __init__(self, stream, last):
    self.stream, self.last, self.waited = stream, last, 0.0

  def __next__(self):
    if self.stream.position == self.last:
      raise Killed
    return next(self.stream)

  def close(self):
    self.stream.close()


@pytest.mark.slow
def test_a_run_that_goes_back_ends_alike_wherever_it_is_killed(rewound, tmp_path):
  folder, state, _ = rewound
  positions, rewind = [8, 13, 14, 15, 16, 16, 18, 25, 30], with_action("rewind")
  kill = killed_at(positions)
  while positions:
    with pytest.raises(Killed):
      run(tmp_path / "run", rewind, data(rewind, kill))
  end, _ = run(tmp_path / "run", rewind, data(rewind))
  assert_equal(end, state)
  for name in ("metrics.jsonl", "spikes.jsonl"):
    assert (tmp_path / "run" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_a_run_that_exploded_can_go_on_from_before(tmp_path):
  bad = {position: 1e4 for position in range(14, 25)}
  run(tmp_path / "told", with_action("tell"), data(STEADY, bad=bad))
  shutil.copytree(tmp_path / "told", tmp_path / "run")
  rewind = with_action("rewind")
  _, metrics = run(tmp_path / "run", rewind, data(rewind, bad=bad))
  assert spikes_in(tmp_path / "run")[-1]["to"] == 12
  assert max(r["loss"] for r in metrics if r["split"] == "train") < 100


@pytest.mark.slow
def test_skip_leaves_out_the_updates_and_says_so(tmp_path):
  skip = with_action("skip")
  bad = BAD | {18: np.nan}
  state, metrics = run(tmp_path / "run", skip, data(skip, bad=bad))
  skipped = {r["step"]: r["skipped"] for r in metrics if r["split"] == "train"}
  assert [step for step, share in skipped.items() if share] == [14, 15, 18]
  assert int(state.first_bad) == 0 and int(state.step) == 24
  assert all(np.isfinite(x) for r in metrics for x in r.values() if isinstance(x, float))
  for at in (12, 17):
    with pytest.raises(Killed):
      run(tmp_path / "again", skip, data(skip, killed_at([at]), bad))
  end, _ = run(tmp_path / "again", skip, data(skip, bad=bad))
  assert_equal(end, state)
  assert read_records(tmp_path / "again" / "metrics.jsonl") == metrics


@pytest.mark.slow
def test_the_way_on_can_be_changed_when_a_run_goes_on(tmp_path):
  rewind, skip, tell = map(with_action, ("rewind", "skip", "tell"))
  with pytest.raises(Killed):
    run(tmp_path / "one", rewind, data(rewind, killed_at([5])))
  shutil.copytree(tmp_path / "one", tmp_path / "two")
  state, metrics = run(tmp_path / "one", skip, data(skip, bad={16: 1e4}))
  shares = {r["step"]: r.get("skipped") for r in metrics if r["split"] == "train"}
  assert shares[3] is None and [step for step, share in shares.items() if share] == [16]
  with pytest.raises(Killed):
    run(tmp_path / "two", skip, data(skip, killed_at([17]), {16: 1e4}))
  end, _ = run(tmp_path / "two", skip, data(skip, bad={16: 1e4}))
  assert_equal(end, state)
  shutil.rmtree(tmp_path / "two" / "checkpoints" / "24")  # it goes on from a state of `skip`
  last, _ = run(tmp_path / "two", tell, data(tell, bad={}))
  assert_equal(last.params, end.params)


def test_a_lasting_change_is_accepted_in_the_end():
  state, skipped = running(), []
  for step in range(400):
    loss = 2.0 if step < 50 else 6.0
    skip, state = unusual(state, jnp.float32(loss), jnp.float32(1.0))
    skipped.append(bool(skip))
  assert not any(skipped[:50]) and skipped[50] and not any(skipped[-100:])


def test_rewind_in_a_selection_is_refused():
  tuning = dataclasses.replace(STEADY.tuning, patience=2)
  with pytest.raises(UserError, match=r"on_spike=rewind cannot go back in a selection"):
    dataclasses.replace(with_action("rewind"), tuning=tuning)


def test_a_run_that_went_back_reads_on_whatever_it_is_resumed_with(tmp_path):
  assert batches_until(STEADY, tmp_path) == STEADY.steps
  (tmp_path / "spikes.jsonl").write_text("")
  assert batches_until(STEADY, tmp_path) == 2 * STEADY.steps
