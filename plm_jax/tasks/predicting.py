"""Loading a fine-tuned model, and its outputs for many rows in few shapes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from plm_jax import overrides
from plm_jax.errors import UserError
from plm_jax.files import read_json
from plm_jax.models.compute import Compute
from plm_jax.models.layer_loop import with_separate_layers
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape, to_global
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.task import Task, Trained, with_settings
from plm_jax.train.integrity import without_digest

ExampleText = str | Mapping[str, Any] | Sequence[str]
"""A text, the texts of an example, or an object with the columns of the training file."""

TASK = "task.json"  # the task of a fine-tuned run, with all that was chosen after training


def load(path: str | Path, settings: Sequence[str] = ()) -> tuple[Task, Trained]:
  """The task and the model of a directory of run_finetune.py. settings: "task.FIELD=VALUE".
  Errors: `UserError` for another directory."""
  run = Run.load(path)
  return task_of(run, settings), trained(run)


def task_of(run: Run, settings: Sequence[str] = ()) -> Task:
  """The task of a fine-tuned run. Errors: `UserError` for another run."""
  stored = (run.path or Path()) / TASK
  task = None
  if run.path is not None and stored.exists():
    try:
      record = without_digest(read_json(stored), stored)
    except UserError as error:
      raise UserError(
        f"{error}; put back the file that run_finetune.py wrote, or delete it to use the settings "
        "of config.json, and give others by --set"
      ) from None
    task = overrides.from_json(record)
  task = task or run.experiment.data
  if not hasattr(task, "predict"):
    raise UserError(
      f"{run.path} was pretrained and not fine-tuned, so it predicts no labels: run_finetune.py "
      f"--from={run.path} fine-tunes it."
    )
  return with_settings(task, settings)


def trained(run: Run, compute: Compute | None = None) -> Trained:
  """The model of a run on one device. compute: None is that of the run."""
  mesh, compute = MeshShape().build(jax.local_devices()[:1]), compute or run.compute
  params = with_separate_layers(run.params.encoder(), compute)
  return Trained(run.config, params, run.tokenizer, compute, mesh)


def line_of(example: ExampleText) -> str:
  """An example as a line of a file, which `Task.parse` reads."""
  if isinstance(example, str):
    return example
  return json.dumps(dict(example)) if isinstance(example, Mapping) else "\t".join(example)


def outputs(trained: Trained, rows: EncodedRows, read: Callable[..., Any]) -> Any:
  """`read(model, hidden, batch)` of all rows: a pytree of float32 arrays [N, ...], in row order.

  read: a module's function, compiled once per shape. Arrays with a token axis [B, T, ...] come back
  padded with zeros to the longest row.
  """
  run = _compiled(read, trained.compute, trained.mesh)
  # On the mesh of a run of several processes each has a part of the rows.
  processes, index = 1, 0
  if trained.mesh.is_multi_process:
    processes, index = jax.process_count(), jax.process_index()
  local = trained.batch // processes
  mine = slice(index * local, (index + 1) * local)
  parts, order = [], []
  fits = trained.fits or (trained.mesh.size == 1 and len(rows) < trained.batch)
  for numbers, batch in rows.by_length(trained.batch, fits):
    batch = {name: array[mine] for name, array in batch.items()}
    parts.append(run(trained.params, to_global(batch, trained.mesh)))
    parts[-2:-1] = jax.device_get(parts[-2:-1])  # while the device computes the last
    order.append(numbers)
  back = np.argsort(np.concatenate(order), kind="stable")
  # Only the last batch is filled up.
  return jax.tree.map(lambda *arrays: _joined(arrays)[: len(back)][back], *jax.device_get(parts))


def _joined(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
  """The rows of all arrays; shorter second axes are padded with zeros."""
  if arrays[0].ndim < 2:
    return np.concatenate(arrays)
  width = max(array.shape[1] for array in arrays)
  rest = [(0, 0)] * (arrays[0].ndim - 2)
  return np.concatenate(
    [np.pad(array, [(0, 0), (0, width - array.shape[1]), *rest]) for array in arrays]
  )


# Typed, because readers are NamedTuples, and equal ones may differ in type.
@functools.lru_cache(maxsize=32, typed=True)
def _compiled(read: Callable[..., Any], compute: Compute, mesh):
  """Compiled once per shape: every seed of every arm predicts with the same program."""

  def run(model, batch):
    return read(model, model(batch, compute, None), batch)

  return jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
