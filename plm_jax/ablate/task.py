"""One run of a sweep: pretrain, then evaluate, each in a separate process.

  python -m plm_jax.ablate.task DIR ARM SEED

Launchers start it, not users. Finished steps are not repeated. --die_with: it ends with its parent.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.ablate.launch import stop_signals
from plm_jax.ablate.plan import (
  PlannedRun,
  SweepPlan,
  begin_attempt,
  environment,
  failure_of,
  has_trained,
  is_done,
  log_of,
  read_plan,
  workdir_of,
)
from plm_jax.errors import UserError
from plm_jax.train.workdir import write_whole

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_list("cores", [], "Numbers of the cores to run on (default: all).")
  flags.DEFINE_integer("die_with", None, "Process id of the parent, with which this one ends.")


def main(out: str, arm: str, seed: str) -> int:
  if FLAGS.die_with:
    _die_with_parent()
    if os.getppid() != FLAGS.die_with:
      return 1
  if not seed.isdecimal():
    raise UserError(f"{seed!r} is not a seed; expected a number")
  if FLAGS.cores:
    os.sched_setaffinity(0, [int(core) for core in FLAGS.cores])
  return perform(Path(out), read_plan(Path(out)), PlannedRun(arm, int(seed)))


class Child:
  """Runs commands, one at a time, and passes on the signal to stop."""

  def __init__(self):
    self.stopped = False
    self._process: subprocess.Popen | None = None

  def stop(self, number, frame) -> None:
    del number, frame
    self.stopped = True
    if self._process is not None:
      self._process.send_signal(signal.SIGTERM)

  def run(self, words: list[str], log: Path) -> int:
    """The exit code; what the command prints is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # A progress bar that is redrawn ten times a second makes a log of megabytes.
    settings = {"TQDM_MININTERVAL": "30", "TQDM_MAXINTERVAL": "60", "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as file:
      self._process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=file,
        env=settings | environment(),
        preexec_fn=_die_with_parent,  # noqa: PLW1509  one thread here, and no jax
      )
      if self.stopped:  # the signal came between two commands
        self._process.send_signal(signal.SIGTERM)
      code = self._process.wait()
      self._process = None
      return code


def perform(out: Path, plan: SweepPlan, run: PlannedRun) -> int:
  """The exit code of the first command that failed, else 0."""
  begin_attempt(out, run)
  done = {
    "pretraining": lambda: has_trained(out, run, plan.steps[run.arm]),
    "evaluation": lambda: is_done(out, run, plan),
  }
  child = Child()
  with stop_signals(child.stop):
    _wait_for_lock(workdir_of(out, run), child)
    for name, words in plan.commands(out, run).items():
      if child.stopped:
        return 143
      if done[name]():
        continue
      code = child.run(words, log_of(out, run))
      if child.stopped:
        return 143
      if code:
        why = {"step": name, "code": code, "why": f"{name} ended with exit code {code}"}
        write_whole(failure_of(out, run), json.dumps(why) + "\n")
        return code
  return 0


def _wait_for_lock(workdir: Path, child: Child) -> None:
  """Returns when no process locks the directory: one of a killed sweep may still be saving."""
  lock = workdir / ".lock"
  if not lock.exists():
    return
  with open(lock, "a") as file:
    while not child.stopped:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
      except BlockingIOError:
        time.sleep(0.1)


def _die_with_parent() -> None:
  """Asks Linux for a SIGTERM when the parent ends, even by a kill; does nothing elsewhere."""
  if hasattr(_LIBC, "prctl"):
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
  cli.run(main, words=("DIR", "ARM", "SEED"))
