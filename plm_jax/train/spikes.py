"""A loss that explodes and stays finite: it is noticed, told, and `on_spike` says what follows.

    tell     a note; the best and the last good checkpoint are kept besides the newest
    stop     the run ends with a sentence; the last good checkpoint is the newest
    skip     an update whose loss or gradient norm is far above the usual is left out
    rewind   training goes back to the last good checkpoint, and continues with the rows after

A window of steps (a record of metrics.jsonl) is compared with the windows before it: the median of
their losses and its spread, and their largest gradient norm. So the verdict is a function of the
records, and a killed run comes to the same one. A checkpoint of step s counts as good if a later
window began well: the loss of a step does not show what its own update did.

`spikes.jsonl` has a line for each spike. It is part of every checkpoint, because the rows of a run
that went back are those of another step: `Spikes.offset` steps further.
"""

import json
import statistics
import sys
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.train.checkpoint import Checkpoints
from plm_jax.train.processes import is_first
from plm_jax.train.running import LEAST, SHARE
from plm_jax.train.workdir import Workdir, read_records, records_in, write_whole

SPIKES = "spikes.jsonl"
WINDOWS, FEWEST = 32, 8  # windows of which the median is taken, and the fewest for one
SPREADS = 10.0  # of the median
NORMS = 30.0  # times the largest gradient norm so far
REWINDS = 10  # after which a run is stopped


class Rewind(Exception):
  """Training continues from an earlier step, after `Spikes.go_back`."""


class Detector:
  """Judges the records of a run, in their order. clean: the step of the last usual window."""

  def __init__(self, experiment: Experiment):
    self._weights = {f"{o.name}/loss": o.weight for o in experiment.objectives}
    # Held-out losses say nothing of training's where they depend on the size of a batch.
    self._compares = not any(getattr(o, "by_batch", False) for o in experiment.objectives)
    self._losses: deque[float] = deque(maxlen=WINDOWS)
    self._norm = 0.0
    self._first: float | None = None  # the loss before training
    self.clean, self.exploding = 0, False

  def judge(self, record: dict[str, Any]) -> float | None:
    """The usual loss if the record is that of an explosion, else None."""
    if record.get("split") == "valid" and record["step"] == 0 and self._compares:
      terms = [weight * record[name] for name, weight in self._weights.items() if name in record]
      self._first = sum(terms) if terms else None
    if record.get("split") != "train" or "loss" not in record:
      return None
    usual, limit = self._usual()
    norm = record.get("grad_norm", 0.0)
    enough = len(self._losses) >= FEWEST
    self.exploding = record["loss"] > limit or (enough and norm > NORMS * self._norm)
    if self.exploding:
      return usual
    self._losses.append(record["loss"])
    self._norm, self.clean = max(self._norm, norm), record["step"]
    return None

  def _usual(self) -> tuple[float, float]:
    """The usual loss, and the highest that is no explosion."""
    if len(self._losses) >= FEWEST:
      median = statistics.median(self._losses)
      spread = 1.4826 * statistics.median(abs(loss - median) for loss in self._losses)
      return median, median + max(SPREADS * spread, SHARE * abs(median), LEAST)
    if self._first is not None:
      return self._first, self._first + max(0.5 * abs(self._first), LEAST)
    return 0.0, float("inf")


class Spikes:
  """The spikes of a run, and what `experiment.on_spike` makes of them. A sink of its records."""

  def __init__(self, experiment: Experiment, workdir: Workdir):
    self._experiment, self._workdir = experiment, workdir
    self._action, self._save = experiment.on_spike, experiment.schedule.save
    self._detector = Detector(experiment)
    self._events: list[dict[str, Any]] = []
    self._records: list[dict[str, Any]] = []
    self._back: int | None = None
    self._checkpoints = Checkpoints(workdir / "checkpoints")  # until `begin`

  @property
  def offset(self) -> int:
    """Steps whose rows were left out."""
    return sum(event.get("skipped", 0) for event in self._events)

  @property
  def text(self) -> str:
    """The content of spikes.jsonl."""
    return "".join(json.dumps(event) + "\n" for event in self._events)

  def begin(self, step: int, logs: dict[str, str], checkpoints: Checkpoints) -> None:
    """Continues after `step`. logs: those of its checkpoint. Errors: those of `write`, for a run
    that exploded before it was stopped."""
    self._checkpoints = checkpoints
    if self._back is None:
      self._events = list(records_in(logs.get(SPIKES, "")))
    self._back = None
    self._detector = Detector(self._experiment)
    path = self._workdir / "metrics.jsonl"
    records = records_in(logs[path.name]) if path.name in logs else read_records(path)
    self._records = [r for r in records if r["step"] <= step]
    for record in self._records:
      self._detector.judge(record)
    self._write()
    if self._detector.exploding and step:
      if self._action == "rewind":
        self._rewind(step)
      if self._action == "stop":
        raise UserError(f"the loss exploded before step {step}. {self._kept()}. {ADVICE}")

  def write(self, record: dict[str, Any]) -> None:
    """Judges a record. Errors: `UserError` or `Rewind`, as `on_spike` has it."""
    self._records.append(record)
    before, usual = self._detector.exploding, self._detector.judge(record)
    if usual is None or before:
      return
    step, loss, norm = record["step"], record["loss"], record.get("grad_norm")
    event = {"step": step, "loss": loss, "usual": usual, "grad_norm": norm}
    if self._action != "rewind":
      self._events.append(event | {"action": self._action})
    self._write()
    seen = (
      f"the loss was {loss:.4g} in the steps up to {step}, far above the usual {usual:.4g} "
      f"(gradient norm {norm:.3g}): training diverges"
    )
    if self._action == "stop":
      raise UserError(f"{seen}. {self._kept()}. {ADVICE}, or go on with --on_spike=rewind or skip")
    if is_first():
      print(f"\nNote: {seen}.", file=sys.stderr)
    if self._action == "rewind":
      self._rewind(step, event)
    if is_first():
      print(f"{self._kept()}. {ADVICE}, or give --on_spike=rewind.", file=sys.stderr)

  def nonfinite(self, step: int) -> None:
    """Errors: `Rewind` for an update that was not finite, if `on_spike` goes back."""
    if self._action == "rewind":
      self._rewind(step)

  def close(self) -> None: ...

  def at_end(self) -> None:
    """Notes a run that ends with an exploded loss."""
    if self._detector.exploding and is_first():
      clean = self._detector.clean
      print(f"Note: the loss was never usual again after step {clean}.", file=sys.stderr)

  def protected(self, step: int, saved: list[int]) -> set[int]:
    """The checkpoints that are kept besides the newest, when that of `step` is saved."""
    good = {self._good(saved), self._regular(self._detector.clean)}  # which may be being written
    if self._action in ("stop", "rewind"):
      return good | {self._regular(step)}
    return good | {self._best(saved)} if self._detector.exploding else set()

  def go_back(self) -> None:
    """Makes the directory that of the step to which `Rewind` leads; a kill meanwhile leaves it, or
    one from which the run explodes and goes back again."""
    if not is_first():
      return
    for name in ("metrics.jsonl", "timing.jsonl"):
      path = self._workdir / name
      kept = [r for r in read_records(path) if r["step"] <= (self._back or -1)]
      write_whole(path, "".join(json.dumps(r) + "\n" for r in kept))
    with Checkpoints(self._workdir / "checkpoints") as checkpoints:
      checkpoints.remove_after(self._back or -1)

  def _rewind(self, step: int, event: dict[str, Any] | None = None) -> None:
    self._checkpoints.wait()
    back = self._good(self._checkpoints.steps())
    if jax.process_count() > 1:
      back = int(multihost_utils.broadcast_one_to_all(np.int64(back)))
    skipped = step - back
    rewinds = sum("skipped" in event for event in self._events)
    if rewinds >= REWINDS or self.offset + skipped > self._experiment.steps:
      raise UserError(
        f"training diverged again at step {step}, after going back {rewinds} times. {ADVICE}"
      )
    event = event or {"step": step}
    self._events.append(event | {"action": "rewind", "to": back, "skipped": skipped})
    self._back = back
    if is_first():
      print(f"Training goes back to step {back} and leaves out the rows of {skipped} steps.",
            file=sys.stderr)  # fmt: skip
    raise Rewind

  def _good(self, saved: list[int]) -> int:
    """The last checkpoint before the windows that are not known to be usual; 0 without one. One of
    a regular step, where it is there: those of a stop depend on its time."""
    clean = self._detector.clean
    regular, earlier = self._regular(clean), [step for step in saved if step < clean]
    return regular if regular in saved or not earlier else max(earlier)

  def _regular(self, step: int) -> int:
    """The last step before `step` after which a checkpoint is written; 0 without one."""
    return max(step - 1, 0) // self._save * self._save

  def _best(self, saved: list[int]) -> int:
    """The checkpoint with the lowest loss in the window before it."""
    losses = {r["step"]: r["loss"] for r in self._records if "grad_norm" in r}

    def loss(step: int) -> float:
      before = [s for s in losses if s <= step]
      return losses[max(before)] if before else float("inf")

    return min(saved, key=loss, default=0)

  def _kept(self) -> str:
    self._checkpoints.wait()
    saved = self._checkpoints.steps()
    good = self._good(saved)
    if good in saved:
      return f"The checkpoint of step {good}, before that, is kept"
    return "No checkpoint is from before that"

  def _write(self) -> None:
    path = self._workdir / SPIKES
    if is_first() and (self._events or path.exists()):
      write_whole(path, self.text)


ADVICE = "Lower optim.peak, lengthen optim.warmup or check the data"


def batches_until(experiment: Experiment, workdir: Path) -> int:
  """The step up to which batches may be read, with those that are left out, now or before."""
  leaves_out = experiment.on_spike == "rewind" or (workdir / SPIKES).exists()
  return experiment.steps * (2 if leaves_out else 1)
