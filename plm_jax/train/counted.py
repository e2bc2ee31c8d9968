"""Models that are estimated from counts: the text in, the directory of a run out.

A config with `counted` (plm_jax/models/model.py) is made here and not by the loop: one call gives
all parameters. Directory, held-out rows and report are those of a trained run, at step 0.
"""

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from plm_jax import overrides
from plm_jax.data.preparation import Prepared
from plm_jax.experiment import Experiment
from plm_jax.models.model import Parameters
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.metrics import JsonLines, Sink, Tee, means
from plm_jax.train.step import evaluation_step
from plm_jax.train.workdir import Workdir, read_config


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
  """Counts the model and scores it, or reads it from `workdir` if it was counted before.

  record: of config.json. evaluation: the held-out batches. A count that was killed begins again.
  """
  with Checkpoints(workdir / "checkpoints") as checkpoints:
    if checkpoints.latest_good() is not None:
      experiment = overrides.from_json(read_config(workdir.path)["experiment"])
      shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
      params = restore_parameters(workdir.path, shapes).params
    else:
      model, params = _counted(experiment, prepared)
      experiment = replace(experiment, model=model)
      workdir.write_config(experiment, record)
      checkpoints.save(0, {"params": params}, {"step": 0, "seed": experiment.seed})
  metrics = JsonLines(workdir / "metrics.jsonl", 0)
  if not metrics.records:
    step = functools.partial(
      evaluation_step, objectives=experiment.objectives, compute=experiment.compute
    )
    values = means([jax.jit(step)(params, batch) for batch in evaluation])
    Tee(metrics, *sinks).write({"step": 0, "split": "valid", **values})
  metrics.close()
  return Counted(experiment, params, metrics.records)


def _counted(experiment: Experiment, prepared: Prepared):
  """The model's configuration and parameters; prints the speed."""
  start = time.perf_counter()
  model, params = experiment.model.counted(experiment.data, prepared.train, prepared.tokenizer)
  seconds, tokens = time.perf_counter() - start, len(prepared.train.tokens)
  print(f"counted {tokens:,} tokens in {seconds:.1f} s", file=sys.stderr)
  return model, params
