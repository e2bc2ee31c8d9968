"""The runs of a sweep over sizes and tokens: N, D and the loss of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from plm_jax import overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.plan import PlannedRun, workdir_of
from plm_jax.ablate.references import at_budget
from plm_jax.ablate.report_numbers import tokens_read
from plm_jax.ablate.scaling_law import Point
from plm_jax.models.parameters import with_roles
from plm_jax.train.spikes import SPIKES
from plm_jax.train.workdir import read_records

COUNTS = {"layers": "parameters without tables", "all": "all parameters"}
PLATEAU = 0.5  # nats below the unigram model


class Sizes(NamedTuple):
  """N, the number of parameters. layers: without the tables of tokens, positions and segments, as
  Kaplan et al. 2020 count. all: with them, as Hoffmann et al. 2022 do. A tied table is one."""

  layers: int
  all: int


class ScaledRun(NamedTuple):
  """tokens: D, the positions of all rows that it reads. loss: in nats. exploded: its training loss
  did. flat: its loss is within `PLATEAU` of the unigram model, the plateau of docs/recipe.md."""

  arm: str
  size: str
  sizes: Sizes
  tokens: int
  loss: float
  exploded: bool = False
  flat: bool = False

  def point(self, count: str) -> Point:
    return Point(getattr(self.sizes, count), self.tokens, self.loss)


def runs_of(measured: Measured, metric: str) -> list[ScaledRun]:
  """Every measured run, in the order of the table and of the seeds."""
  baseline = measured.references.get(metric, float("inf"))
  runs = []
  for arm in measured.arms:
    for seed, values in sorted(measured.scores.get(arm.name, {}).items()):
      if metric not in values:
        continue
      run, loss = PlannedRun(arm.name, seed), values[metric]
      experiment = overrides.from_json(measured.configs[run]["experiment"])
      exploded = bool(read_records(workdir_of(measured.out, run) / SPIKES))
      flat = loss > baseline - PLATEAU
      tokens = tokens_read(measured.configs[run])
      runs.append(
        ScaledRun(arm.name, shape(experiment), sizes(experiment), tokens, loss, exploded, flat)
      )
  return runs


def planned_run(measured: Measured, arm: str) -> ScaledRun:
  """An arm as it will be run, without a loss. At least one other arm must have been run, whose
  vocabulary it shares."""
  config = next(iter(measured.configs.values()))
  vocabulary = overrides.from_json(config["experiment"]).model.vocab_size
  plan, table = measured.plan, measured.table
  experiment = overrides.apply(at_budget(table, table.arm(arm), plan.budget), plan.settings)
  experiment = experiment.resolve(vocabulary)
  tokens = experiment.steps * experiment.global_batch * experiment.data.length
  return ScaledRun(arm, shape(experiment), sizes(experiment), tokens, float("nan"))


def shape(experiment: Any) -> str:
  """Layers and width, such as 4x128."""
  return f"{experiment.model.layers}x{experiment.model.width}"


@functools.cache
def sizes(experiment: Any) -> Sizes:
  """The numbers of parameters of a resolved experiment."""
  params = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
  counts = [(role.kind == "table", leaf.size) for _, role, leaf in with_roles(params)]
  layers = sum(size for is_table, size in counts if not is_table)
  return Sizes(layers, sum(size for _, size in counts))


def rises(runs: Sequence[ScaledRun]) -> list[str]:
  """Where a neighbour with more parameters or more tokens has a higher loss, in words."""
  groups: dict[tuple, list[ScaledRun]] = {}
  for run in runs:
    groups.setdefault(("size", run.size), []).append(run)
    groups.setdefault(("tokens", run.tokens), []).append(run)
  return [
    f"{more.arm} has a higher loss ({more.loss:.3f}) than {less.arm} ({less.loss:.3f})"
    for group in groups.values()
    for less, more in itertools.pairwise(sorted(group, key=lambda r: (r.sizes, r.tokens)))
    if more.loss > less.loss and (less.sizes, less.tokens) != (more.sizes, more.tokens)
  ]
