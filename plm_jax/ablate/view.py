"""A live view of all runs of a sweep, read from the files that the runs write."""

import shutil
import sys
import time
from pathlib import Path
from typing import Self

from plm_jax.ablate.plan import PlannedRun, RunState, SweepPlan, state_of

_EVERY = {True: 1.0, False: 60.0}  # seconds between two updates: in a terminal, in a log file
_WIDTH = 24  # of the bar


class View:
  """A table that is redrawn in place in a terminal. Elsewhere it prints plain lines: one for every
  change, and one a minute for every run that is working."""

  def __init__(self, out: Path, plan: SweepPlan, runs: list[PlannedRun], jobs: int, stream=None):
    self._out, self._plan, self._runs, self._jobs = out, plan, runs, jobs
    self._stream = stream or sys.stdout
    self._live = self._stream.isatty()
    self._drawn = 0  # lines on the screen that belong to the table
    self._looked = 0.0
    self._began = time.monotonic()
    self._working: set[PlannedRun] = set()
    self._phases: dict[PlannedRun, str] = {}

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    if self._live:
      self._draw()
    self._stream.flush()

  def started(self, run: PlannedRun) -> None:
    self._working.add(run)
    if not self._live:
      self._print(f"{self._clock()} {run} starts")

  def ended(self, run: PlannedRun, code: int) -> None:
    self._working.discard(run)
    state = state_of(self._out, run, self._plan)
    if not self._live:
      loss = f", loss {state.loss:.4f}" if state.loss is not None else ""
      how = state.phase if not code else f"ended with code {code}"
      self._print(f"{self._clock()} {run} {how} at step {state.step:,}{loss}")

  def say(self, text: str) -> None:
    """Prints lines that stay above the table."""
    self._clear()
    self._print(text)

  def refresh(self, working: set[PlannedRun] | None) -> None:
    """Redraws if it is time. working: the runs with a process; None to tell them by their files."""
    now = time.monotonic()
    if now - self._looked < _EVERY[self._live]:
      return
    first = not self._looked
    self._looked = now
    if working is None:  # runs on other machines: those that have begun and are not done
      states = {run: state_of(self._out, run, self._plan, alive=True) for run in self._runs}
      working = {run for run, state in states.items() if state.phase != "done" and state.step > 0}
    self._working = set(working)
    if self._live:
      self._draw()
    elif not first:
      states = self._states()
      for run in self._runs:
        if run in self._working:
          self._print(f"{self._clock()} {line(run, states[run], self._plan.steps[run.arm])}")
      self._print(f"{self._clock()} {self._summary(states)}")

  def _states(self) -> dict[PlannedRun, RunState]:
    alive = self._working
    return {run: state_of(self._out, run, self._plan, run in alive) for run in self._runs}

  def _summary(self, states: dict[PlannedRun, RunState]) -> str:
    done = sum(state.phase == "done" for state in states.values())
    failed = sum(state.phase == "failed" for state in states.values())
    left = time_left(states, self._plan.steps, self._jobs)
    parts = [f"{done} of {len(states)} runs done"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"about {duration(left)} left"] if left and done < len(states) else []
    return ", ".join(parts)

  def _draw(self) -> None:
    states = self._states()
    size = shutil.get_terminal_size()
    lines = [line(run, state, self._plan.steps[run.arm]) for run, state in states.items()]
    room = max(3, size.lines - 3)
    if len(lines) > room:  # working runs come first
      order = sorted(states, key=lambda run: run not in self._working)
      lines = [line(run, states[run], self._plan.steps[run.arm]) for run in order[: room - 1]]
      lines.append(f"  ... and {len(states) - room + 1} more")
    lines.append(f"{self._clock()}  {self._summary(states)}")
    self._clear()
    self._print("\n".join(text[: size.columns - 1] for text in lines))
    self._drawn = len(lines)

  def _clear(self) -> None:
    if self._drawn:
      self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
      self._drawn = 0

  def _print(self, text: str) -> None:
    self._stream.write(text + "\n")
    self._stream.flush()

  def _clock(self) -> str:
    return duration(time.monotonic() - self._began)


def line(run: PlannedRun, state: RunState, steps: int) -> str:
  """The line of a run: name, state, step, loss, time left."""
  full = round(_WIDTH * state.step / steps)
  parts = [
    f"{run!s:26.26} {state.phase:10} |{'#' * full}{' ' * (_WIDTH - full)}|",
    f"{state.step:>9,}/{steps:,}",
  ]
  if state.loss is not None:
    parts.append(f"loss {state.loss:.4f}")
  if state.phase == "training" and state.seconds_per_step:
    parts.append(f"{duration((steps - state.step) * state.seconds_per_step)} left")
  return "  ".join([*parts, state.why]).rstrip()


def time_left(states: dict[PlannedRun, RunState], steps: dict[str, int], jobs: int) -> float | None:
  """Estimated seconds, from the pace of each arm, or the mean pace if an arm has none yet. The time
  of an evaluation is the mean of those done so far."""
  paces: dict[str, list[float]] = {}
  for run, state in states.items():
    if state.seconds_per_step:
      paces.setdefault(run.arm, []).append(state.seconds_per_step)
  if not paces:
    return None
  pace_of = {arm: sum(values) / len(values) for arm, values in paces.items()}
  usual = sum(pace_of.values()) / len(pace_of)
  evaluations = [state.evaluated_in for state in states.values() if state.evaluated_in]
  after = sum(evaluations) / len(evaluations) if evaluations else 0.0
  left = [
    (steps[run.arm] - state.step) * pace_of.get(run.arm, usual) + after
    for run, state in states.items()
    if state.phase not in ("done", "failed")
  ]
  return max([sum(left) / jobs, *left], default=0.0)


def duration(seconds: float) -> str:
  seconds = round(seconds)
  hours, rest = divmod(seconds, 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
