"""Sinks for a run's records: `.jsonl` files that resume exactly, TensorBoard, or custom ones.

A record is a dict with a `step`, and a `split` ("train" or "valid") where it holds metrics; a
record without one holds timing. `fit(..., sinks=[...])` writes every record to further sinks.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from plm_jax.train.workdir import read_records, write_whole


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

  def close(self) -> None: ...


class JsonLines(Records):
  """Appends records to a `.jsonl` file, and keeps them.

  On opening, records after `step` are dropped: the file continues where the checkpoint does.
  """

  def __init__(self, path: Path, step: int):
    self.records = [r for r in read_records(path) if r["step"] <= step]
    write_whole(path, "".join(json.dumps(r) + "\n" for r in self.records))
    self._file = open(path, "a", buffering=1)  # noqa: SIM115  held as long as the object

  def write(self, record: dict[str, Any]) -> None:
    super().write(record)
    self._file.write(json.dumps(record) + "\n")

  def close(self) -> None:
    self._file.close()


class TensorBoard:
  """Writes the numbers of records as events `SPLIT/NAME`; timing is under `speed`."""

  def __init__(self, folder: Path):
    from tensorboardX import SummaryWriter

    self._writer = SummaryWriter(str(folder))

  def write(self, record: dict[str, Any]) -> None:
    split = record.get("split", "speed")
    for name, value in record.items():
      if isinstance(value, float):
        self._writer.add_scalar(f"{split}/{name}", value, record["step"])

  def close(self) -> None:
    self._writer.close()
