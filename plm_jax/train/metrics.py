"""Sinks for a run's records: `.jsonl` files that resume exactly, TensorBoard, or custom ones.

A record is a dict with a `step`, and a `split` ("train" or "valid") where it holds metrics; a
record without one holds timing. `fit(..., sinks=[...])` writes every record to further sinks.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from plm_jax.train.workdir import read_records, records_in, write_whole


def means(sums: list[dict[str, jax.Array]]) -> dict[str, float]:
  """The mean of every metric over all batches, from [2] of each batch: sum and count."""
  totals = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *jax.device_get(sums))
  return {name: float(total / (count or 1)) for name, (total, count) in totals.items()}


class Sink(Protocol):
  """A destination of records."""

  def write(self, record: dict[str, Any]) -> None: ...
  def close(self) -> None: ...


class Tee:
  """Writes every record to several sinks, which their owners close."""

  def __init__(self, *sinks: Sink):
    self._sinks = sinks

  def write(self, record: dict[str, Any]) -> None:
    for sink in self._sinks:
      sink.write(record)

  def close(self) -> None: ...


class Records:
  """Keeps records in memory, in processes that write no files."""

  def __init__(self):
    self.records: list[dict[str, Any]] = []

  def write(self, record: dict[str, Any]) -> None:
    self.records.append(record)

  def sync(self) -> str:
    return ""

  def close(self) -> None: ...


class JsonLines(Records):
  """Appends records to a `.jsonl` file, and keeps them.

  On opening, records after `step` are dropped: the file continues where the checkpoint does.
  stored: the text of the file in that checkpoint, which is restored, with a note, where the file
  differs; None for a checkpoint without it.
  """

  def __init__(self, path: Path, step: int, stored: str | None = None):
    self.records = [r for r in read_records(path) if r["step"] <= step]
    self._lines = [json.dumps(r) + "\n" for r in self.records]
    if stored is not None and self.text != stored:
      print(
        f"{path} did not hold the records of the checkpoint of step {step}, and is restored from "
        "it.", file=sys.stderr
      )  # fmt: skip
      self.records = list(records_in(stored))
      self._lines = [stored]
    write_whole(path, self.text)
    self._file = open(path, "a", buffering=1)  # noqa: SIM115  held as long as the object

  @property
  def text(self) -> str:
    """The content of the file."""
    return "".join(self._lines)

  def write(self, record: dict[str, Any]) -> None:
    super().write(record)
    self._lines.append(json.dumps(record) + "\n")
    self._file.write(self._lines[-1])

  def sync(self) -> str:
    """The content of the file, which is on disk when this returns."""
    os.fsync(self._file.fileno())
    return self.text

  def close(self) -> None:
    self._file.close()


class TensorBoard:
  """Writes the numbers of records as events `SPLIT/NAME`; timing is under `speed`.

  The events are written in this thread: that of tensorboardX's `SummaryWriter` dies when the clock
  is set back, and training would wait for its queue for ever.
  """

  def __init__(self, folder: Path):
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(folder / "events"))

  def write(self, record: dict[str, Any]) -> None:
    from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore  generated
    from tensorboardX.summary import scalar

    split, step = record.get("split", "speed"), record["step"]
    for name, value in record.items():
      if isinstance(value, float):
        summary = scalar(f"{split}/{name}", value)
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()
