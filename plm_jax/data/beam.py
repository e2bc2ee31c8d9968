"""Encodes a text on a cluster: an Apache Beam pipeline whose elements are the shards of the text.

The job is the one of the worker processes (plm_jax/data/encoding.py), so the bytes are the same. A
worker writes what it made of a shard to a file in the cache, under a path that all machines share.
The process that began the pipeline then collects the files in the order of the text. Shards that a
stopped pipeline finished are not made again.
"""

import contextlib
import io
import json
import os
import pickle
import shlex
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plm_jax.data.chunks import Chunk, Encoded, Place
from plm_jax.data.shards import Shard, shards_of
from plm_jax.data.store import Documents
from plm_jax.errors import UserError

END = b"the end\n"  # of a shard's file


@dataclass(frozen=True)
class Beam:
  """A way to encode. options: Beam's own, such as "--runner=FlinkRunner --flink_master=HOST:8081".

  Errors: `UserError` where Beam is not installed, or does not know an option.
  """

  options: str

  def __post_init__(self):
    self._parsed()

  def _parsed(self) -> Any:
    options = _import_beam().options.pipeline_options.PipelineOptions
    told = io.StringIO()
    try:
      with contextlib.redirect_stderr(told):  # argparse tells the usage, over a hundred lines
        parsed = options(shlex.split(self.options))
        known = parsed.get_all_options()
        given = parsed.get_all_options(drop_default=True, retain_unknown_options=True)
    except (SystemExit, ValueError) as error:
      why = told.getvalue().strip().rpartition("error: ")[2] or error
      raise UserError(f"--beam={self.options!r} cannot be read: {why}.") from None
    if unknown := given.keys() - known.keys():
      raise UserError(
        f"--beam={self.options!r} has --{min(unknown)}, which is no option of Apache Beam."
      )
    if not self.options.startswith("--") or "--runner" not in self.options:
      raise UserError(
        f"--beam={self.options!r} names no runner; expected options of Apache Beam, such as "
        '--beam="--runner=FlinkRunner --flink_master=HOST:8081".'
      )
    return parsed

  def done(
    self, source, place: Place, job: Callable[[Chunk], Encoded], folder: Path, size: int
  ) -> Iterator[tuple[Place, Encoded]]:
    """As `encoding.done`: the results of `job` for the chunks of a text from a place on, in order,
    and the place after each. folder: for the files. size: that of a chunk.

    Errors: those of the job, and `UserError` for a pipeline that failed.
    """
    shards = shards_of(source)
    first = max(number for number, shard in enumerate(shards) if shard.start <= place)
    tasks = [
      _Task(number, shard, max(shard.start, place))
      for number, shard in enumerate(shards[first:], first)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.error"):
      old.unlink()
    self._run(tasks, _ShardJob(job, folder, size))
    for error in sorted(folder.glob("*.error")):
      raise UserError(error.read_text())
    if missing := [task.name for task in tasks if not (folder / task.name).exists()]:
      raise UserError(
        f"The Beam pipeline has ended, and {len(missing)} of {len(tasks)} shards are not in "
        f"{folder}: all workers must see the text and the cache under the same paths."
      )
    for task in tasks:
      yield from _read(folder / task.name)

  def _run(self, tasks: list["_Task"], job: "_ShardJob") -> None:
    beam = _import_beam()
    options = self._parsed()
    print(f"Encoding {len(tasks)} shards with Apache Beam.", file=sys.stderr)
    try:
      pipeline = beam.Pipeline(options=options)
      elements = pipeline | "shards" >> beam.Create([pickle.dumps(task) for task in tasks])
      _ = elements | "spread" >> beam.Reshuffle() | "encode" >> beam.Map(job)
      result = pipeline.run()
      result.wait_until_finish()
      state = str(result.state)
    except Exception as error:  # a runner may raise anything
      state = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
      raise UserError(f"The Beam pipeline failed: {state}.") from error
    if state != beam.runners.runner.PipelineState.DONE:
      raise UserError(f"The Beam pipeline failed: its state is {state}.")


def _import_beam() -> Any:
  try:
    import apache_beam
    import apache_beam.options.pipeline_options
    import apache_beam.runners.runner
  except ImportError:
    raise UserError("Apache Beam is not installed: pip install 'plm_jax[beam]'.") from None
  return apache_beam


@dataclass(frozen=True)
class _Task:
  """A shard from a place on."""

  number: int
  shard: Shard
  place: Place

  @property
  def name(self) -> str:
    """Of the file with what was made of it."""
    return f"{self.number:06}-{self.place.offset}-{self.place.documents}"


@dataclass(frozen=True)
class _ShardJob:
  """What a worker of Beam does: from a pickled `_Task` to a file, or to a mistake in `.error`."""

  job: Callable[[Chunk], Encoded]
  folder: Path
  size: int

  def __call__(self, pickled: bytes) -> None:
    task = pickle.loads(pickled)
    path = self.folder / task.name
    if path.exists():
      return
    scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # Beam may do a task twice at once
    try:
      with scratch.open("wb") as file:
        for chunk in task.shard.chunks(self.size, task.place):
          file.write(_packed(chunk.after, self.job(chunk)))
        file.write(END)
        file.flush()
        os.fsync(file.fileno())
      scratch.replace(path)
    except UserError as error:  # kept for the process that began: it tells one sentence
      path.with_suffix(".error").write_text(str(error))
    finally:
      scratch.unlink(missing_ok=True)


def _packed(after: Place, encoded: Encoded) -> bytes:
  """A line of JSON with the size of what follows, and the arrays as npz, which has checksums."""
  arrays = {
    f"{split}.{part}": np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
    for split, documents in enumerate(encoded.splits)
    for part, value in documents._asdict().items()
  }
  stream = io.BytesIO()
  np.savez(stream, **arrays)
  data = stream.getvalue()
  about = {"after": after, "dropped": encoded.dropped, "size": encoded.size, "bytes": len(data)}
  return json.dumps(about).encode() + b"\n" + data


def _read(path: Path) -> Iterator[tuple[Place, Encoded]]:
  """The results of a shard. A damaged file is removed; errors: `UserError` for it."""
  with path.open("rb") as file:
    while (line := file.readline(1 << 16)) != END:
      try:
        about = json.loads(line)
        arrays = np.load(io.BytesIO(file.read(about["bytes"])), allow_pickle=False)
        train, valid = (
          Documents(
            **{
              part: arrays[f"{split}.{part}"].tobytes()
              if part == "names"
              else arrays[f"{split}.{part}"]
              for part in Documents._fields
            }
          )
          for split in (0, 1)
        )
        result = Encoded((train, valid), about["dropped"], about["size"])
        place = Place(*about["after"])
      except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        path.unlink()
        raise UserError(
          f"The encoded shard {path} is damaged ({error}) and was removed: run the same command "
          "again; the preparation resumes where it stopped."
        ) from None
      yield place, result
