"""Models that are estimated from counts: the text in, the directory of a run out.

A config with `counted` (plm_jax/models/model.py) is made here and not by the loop: one call gives
all parameters. Directory, held-out rows and report are those of a trained run, at step 0. Every
process of a run counts the same, and all devices share the rows of the evaluation.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax import overrides
from plm_jax.data.preparation import Prepared
from plm_jax.experiment import Experiment
from plm_jax.models.model import Parameters
from plm_jax.sharding import parameter_shardings, to_global
from plm_jax.train import processes
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.loop import check_batch_divides, on_mesh
from plm_jax.train.metrics import JsonLines, Records, Sink, Tee, means
from plm_jax.train.step import evaluation_step
from plm_jax.train.workdir import Workdir, read_config, run_hash, write_whole


class Counted(NamedTuple):
  """experiment: with the sizes of the counted model."""

  experiment: Experiment
  params: Parameters
  records: list[dict[str, Any]]


def count(
  experiment: Experiment,
  record: dict[str, Any],
  prepared: Prepared,
  evaluation: list[dict],
  workdir: Workdir,
  sinks: Sequence[Sink] = (),
) -> Counted:
  """Counts the model, or reads it from `workdir` if it was counted before, and scores it.

  record: of config.json. evaluation: the held-out batches of this process. A count that was killed
  begins again.
  """
  mesh = experiment.mesh.build()
  check_batch_divides(experiment, mesh)
  with Checkpoints(workdir / "checkpoints", run=run_hash(workdir.path)) as checkpoints:
    if checkpoints.latest_good() is not None:
      stored = overrides.from_json(read_config(workdir.path)["experiment"])
      experiment = replace(experiment, model=stored.model)
      shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
      params = restore_parameters(workdir.path, placed(shapes, mesh)).params
    else:
      model, params = _counted(experiment, prepared, workdir)
      params = on_devices(params, mesh)
      experiment = replace(experiment, model=model)
      workdir.write_config(experiment, record)
      checkpoints.run = run_hash(workdir.path)
      checkpoints.save(0, {"params": params}, {"step": 0, "seed": experiment.seed})
  settings = {"objectives": experiment.objectives, "compute": experiment.compute}
  evaluate = on_mesh(mesh, jax.jit(functools.partial(evaluation_step, **settings)))
  values = means([evaluate(params, to_global(batch, mesh))[0] for batch in evaluation])
  metrics = JsonLines(workdir / "metrics.jsonl", -1) if processes.is_first() else Records()
  Tee(metrics, *sinks).write({"step": 0, "split": "valid", **values})
  metrics.close()
  return Counted(experiment, params, metrics.records)


def on_devices(params: Parameters, mesh: jax.sharding.Mesh) -> Parameters:
  """The parameters of this process, which are those of all, on the devices of all."""

  def spread(x, sharding):
    return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

  return jax.tree.map(spread, params, parameter_shardings(params, mesh))


def placed(shapes: Parameters, mesh: jax.sharding.Mesh) -> Parameters:
  """The shapes with their shardings."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    parameter_shardings(shapes, mesh),
  )


def _counted(experiment: Experiment, prepared: Prepared, workdir: Workdir):
  """The model's configuration and parameters; writes and prints the time."""
  start, processor = time.perf_counter(), time.process_time()
  model, params = experiment.model.counted(experiment.data, prepared.train, prepared.tokenizer)
  seconds = time.perf_counter() - start
  timing = {"seconds": seconds, "processor_seconds": time.process_time() - processor}
  if processes.is_first():
    record = {"step": 0, **timing, "data_wait": 0.0}
    write_whole(workdir / "timing.jsonl", json.dumps(record) + "\n")
  processes.say(f"counted in {seconds:.1f} s", file=sys.stderr)
  return model, params
