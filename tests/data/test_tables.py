"""Tables of passes: the next one is made in the background, with the same rows and errors."""

import fcntl
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from plm_jax.data import stored_table, tables
from plm_jax.data.pipeline import Batches, Corpus, iterate
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tables import PassTables, pass_table
from plm_jax.errors import UserError
from plm_jax.objectives.mlm import MLM
from tests.data.toy_store import random_store, toy_vocab

CORPUS = Corpus(length=64, passes=3)
WAIT = 60  # seconds until a test gives up


class Slow:
  """Segments of two parts, the second of which waits until `go`."""

  drawn = True

  def __init__(self, error=None):
    self.begun, self.go, self.error, self.makers = threading.Event(), threading.Event(), error, []

  def __repr__(self):
    return "Slow()"

  def blocks(self, store, length, seed, pass_):
    self.makers.append(threading.current_thread())
    yield np.arange(3)
    self.begun.set()
    assert self.go.wait(WAIT)
    if self.error:
      raise self.error
    yield np.arange(3, 5)


def batches_of(store, **fields):
  return Batches(store, CORPUS, (MLM(),), toy_vocab(), 0, 16, **fields)


def test_the_next_pass_is_made_in_the_background_while_the_first_is_read(tmp_path, monkeypatch):
  store, made = random_store(400, directory=tmp_path), []

  def recorded(store, segments, length, seed, pass_, through=iter):
    made.append((pass_, threading.current_thread() is threading.main_thread()))
    return pass_table(store, segments, length, seed, pass_, through)

  monkeypatch.setattr(tables, "pass_table", recorded)
  batches, size = batches_of(store), len(SegmentPair().table(store, 64, 0, 0))
  batches(0)
  assert made == [(0, True)]  # a run that ends here needs no other
  batches(size // 8 // 16)
  batches(size // 16 - 1)
  batches(size // 16 + 1)
  assert made == [(0, True), (1, False)]
  for step in range(size // 16, 5 * size // 16):
    batches(step)
  assert made == [(0, True), (1, False), (2, False)]  # the passes, and then the first again


def test_batches_are_those_of_tables_that_are_made_in_the_way():
  store = random_store(60)
  plain, ahead = batches_of(store), batches_of(store)
  plain._tables.begin = lambda seed, pass_: None
  for step in range(80):
    one, other = plain(step), ahead(step)
    for name, values in one.items():
      np.testing.assert_array_equal(values, other[name])


def test_a_table_is_awaited_where_it_is_needed_and_made_once(tmp_path):
  segments = Slow()
  made = PassTables(random_store(5, directory=tmp_path), segments, 64)
  made.begin(0, 1)
  made.begin(0, 1)
  assert segments.begun.wait(WAIT)
  segments.go.set()
  np.testing.assert_array_equal(made.of(0, 1), np.arange(5))
  assert made.of(0, 1) is made.of(0, 1)
  assert len(segments.makers) == 1


@pytest.mark.parametrize("error", [UserError("the text is gone"), OSError("no memory left")])
def test_an_error_in_the_background_is_raised_where_the_table_is_needed(error):
  segments = Slow(error)
  made = PassTables(random_store(5), segments, 64)
  made.begin(0, 1)
  segments.go.set()
  with pytest.raises(type(error), match=str(error)):
    made.of(0, 1)
  made.close()
  segments.error = None
  np.testing.assert_array_equal(made.of(0, 1), np.arange(5))  # it may be asked for again


def test_closing_ends_what_is_being_made_and_leaves_no_file(tmp_path):
  segments = Slow()
  made = PassTables(random_store(5, directory=tmp_path), segments, 64)
  made.begin(0, 1)
  assert segments.begun.wait(WAIT)
  (making,) = made._making.values()
  making._ends.set()  # as `close` does first, which then waits
  segments.go.set()
  made.close()
  assert not making.is_alive()
  assert not list(tmp_path.iterdir())
  assert len(made) == 0
  np.testing.assert_array_equal(made.of(0, 1), np.arange(5))


def test_a_stream_that_is_closed_ends_the_table_of_the_next_pass():
  batches, segments = batches_of(random_store(60)), Slow()
  stream = iterate(batches, 0, 2)
  next(stream)
  background = PassTables(batches.store, segments, 64)
  batches._tables = background
  background.begin(0, 1)
  (making,) = background._making.values()
  assert segments.begun.wait(WAIT)
  segments.go.set()
  stream.close()
  assert not making.is_alive()
  stream.close()


def test_a_process_that_ends_does_not_wait_for_a_table():
  code = """
import numpy, threading
from plm_jax.data.tables import PassTables
class Endless:
  drawn = True
  def blocks(self, *_):
    yield numpy.arange(3)
    begun.set()
    threading.Event().wait()
class Store: pass
begun = threading.Event()
tables = PassTables(Store(), Endless(), 64)
tables.begin(0, 1)
begun.wait()
"""
  done = subprocess.run(
    [sys.executable, "-c", code], timeout=WAIT, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")


def test_threads_and_processes_that_need_a_table_make_it_once(tmp_path, monkeypatch):
  store, segments, found = random_store(5, directory=tmp_path), Slow(), []
  came, lock = threading.Semaphore(0), fcntl.flock

  def counted(*arguments):
    came.release()
    lock(*arguments)

  monkeypatch.setattr(stored_table.fcntl, "flock", counted)
  threads = [
    threading.Thread(target=lambda: found.append(pass_table(store, segments, 64, 0, 0)))
    for _ in range(4)
  ]
  [t.start() for t in threads]
  assert all(came.acquire(timeout=WAIT) for _ in threads)  # all want to make it
  segments.go.set()
  [t.join() for t in threads]
  assert len(found) == 4 and len(segments.makers) == 1
  assert all(isinstance(table, np.memmap) for table in found)


def test_what_a_killed_process_left_is_removed_when_its_table_is_made(tmp_path):
  store = random_store(20, directory=tmp_path)
  pass_table(store, SegmentPair(), 64, 0, 0)
  (file,) = tmp_path.iterdir()
  file.rename(file.with_suffix(".17-17.partial"))
  pass_table(store, SegmentPair(), 64, 0, 0)
  assert list(tmp_path.iterdir()) == [file]


def test_a_table_that_is_written_in_parts_has_the_bytes_of_np_save(tmp_path):
  store, segments = random_store(5, directory=tmp_path), Slow()
  segments.go.set()
  made = pass_table(store, segments, 64, 0, 0)
  (file,) = tmp_path.iterdir()
  np.save(tmp_path / "whole.npy", np.arange(5))
  whole = (tmp_path / "whole.npy").read_bytes()
  assert file.read_bytes()[: len(whole)] == whole
  np.testing.assert_array_equal(made, np.arange(5))


def test_rows_that_all_passes_share_are_one_table(tmp_path):
  segments = Slow()
  segments.drawn = False
  segments.go.set()
  made = PassTables(random_store(5), segments, 64)
  made.begin(3, 1)
  assert made.of(3, 1) is made.of(4, 2)
  assert len(segments.makers) == 1


def test_tables_stay_behind_when_batches_are_sent_to_a_worker():
  batches = batches_of(random_store(60))
  batches(30)
  assert len(batches._tables)
  assert len(pickle.loads(pickle.dumps(batches))._tables) == 0


def test_a_table_that_a_kill_left_unstarted_can_be_stopped():
  making = tables._Making(lambda through: np.zeros(1))
  making.stop()
  assert not making.is_alive()
