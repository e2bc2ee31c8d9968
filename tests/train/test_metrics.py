"""Sinks for records: files that resume exactly, TensorBoard, and further ones."""

import threading
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from plm_jax.train.loop import fit
from plm_jax.train.metrics import JsonLines, TensorBoard
from plm_jax.train.workdir import read_records
from tests import toy_run


def test_json_lines_continue_after_their_checkpoint_and_drop_a_torn_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = JsonLines(path, -1)
  for step in range(4):
    log.write({"step": step, "loss": step / 7})
  log.close()
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"step": 4, "lo')
  assert len(read_records(path)) == 4
  again = JsonLines(path, 1)
  assert [r["step"] for r in again.records] == [0, 1]
  for step in (2, 3):
    again.write({"step": step, "loss": step / 7})
  again.close()
  assert path.read_bytes() == whole


def scalars(folder):
  """(tag, value, step) of every event in the only file of a folder (TFRecord: length, checksum,
  event, checksum)."""
  (path,) = folder.glob("events*")
  data, events = path.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
    events += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
  return events


def test_tensorboard_has_the_numbers_of_a_record_under_its_split(tmp_path):
  board = TensorBoard(tmp_path / "tensorboard")
  board.write({"step": 3, "split": "valid", "loss": 0.5})
  board.write({"step": 3, "seconds": 1.5})
  expected = [("valid/loss", 0.5, 3), ("speed/seconds", 1.5, 3)]
  assert scalars(tmp_path / "tensorboard") == expected
  board.close()
  assert scalars(tmp_path / "tensorboard") == expected


def test_a_clock_that_is_set_back_stops_no_writer_of_events(tmp_path, monkeypatch):
  board, threads = TensorBoard(tmp_path), threading.active_count()
  for step in range(20):
    monkeypatch.setattr(time, "time", lambda step=step: 2e9 - 1e8 * step)
    board.write({"step": step, "split": "train", "loss": 1.0})
  board.close()
  assert [event[2] for event in scalars(tmp_path)] == list(range(20))
  assert threads == threading.active_count() == len(threading.enumerate())


class Kept(list):
  """A sink that keeps its records and refuses to be closed by others."""

  write = list.append

  def close(self):
    pytest.fail("a sink is closed by its owner")


def test_a_further_sink_is_given_the_records_of_both_files(tmp_path):
  sink, folder = Kept(), tmp_path / "run"
  with toy_run.Workdir(folder) as workdir:
    fit(toy_run.program(), toy_run.data(), workdir, sinks=[sink], quiet=True)
  for name in ("metrics", "timing"):
    written = read_records(folder / f"{name}.jsonl")
    assert written == [record for record in sink if ("split" in record) == (name == "metrics")]
    assert written


@pytest.mark.slow
def test_a_profile_is_a_trace_of_a_few_steps(tmp_path):
  with toy_run.Workdir(tmp_path / "run") as workdir:
    fit(toy_run.program(), toy_run.data(), workdir, quiet=True, profile=tmp_path / "trace")
  assert len(list((tmp_path / "trace").rglob("*.xplane.pb"))) == 1
