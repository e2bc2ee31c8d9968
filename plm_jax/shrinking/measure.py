"""Bytes and speed of several runs, measured in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax.compression.forms import bytes_of
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import grow, padded, ready
from plm_jax.models.compute import Compute
from plm_jax.models.layer_loop import with_separate_layers
from plm_jax.runs import Run
from plm_jax.shrinking.subjects import ROWS, Subject

ROUNDS = 3  # of every measurement, of which the median counts
FEWEST = 15  # measurements of a call: more rounds where there are few batches
SINGLE, MANY = 96, 6  # batches of one row, and of `ROWS` rows
WRITTEN = 32  # tokens of a text


class Size(NamedTuple):
  """disk: bytes of the checkpoint. memory: of the parameters as they are loaded."""

  disk: int
  memory: int
  parameters: int


class Speed(NamedTuple):
  """p50, p95: milliseconds of a row at batch 1, or of a generated token. throughput: rows, or
  tokens, a second at batch 32."""

  p50: float
  p95: float
  throughput: float


def size_of(run: Run, directory: Path) -> Size:
  files = (f for name in ("best", "checkpoints") for f in (directory / name).rglob("*"))
  disk = sum(file.stat().st_size for file in files if file.is_file())
  count = sum(leaf.size for leaf in jax.tree.leaves(run.params))
  return Size(disk, bytes_of(run.params), count)


def speeds(runs: Mapping[str, Run], subject: Subject) -> dict[str, Speed]:
  """The speed of every run on the text of the subject."""
  writes = getattr(subject, "is_causal", False)
  single, many = (_writing if writes else _forward)(runs, subject)
  tokens = WRITTEN if writes else 1
  p = {name: np.percentile(1000 * times / tokens, (50, 95)) for name, times in single.items()}
  return {
    name: Speed(
      p50=float(p[name][0]),
      p95=float(p[name][1]),
      throughput=float(ROWS * tokens * len(many[name]) / many[name].sum()),
    )
    for name in runs
  }


Times = dict[str, np.ndarray]
"""Seconds of every call, the median of the rounds: name -> float64 [calls]."""


def _forward(runs: Mapping[str, Run], subject: Subject) -> tuple[Times, Times]:
  """Forward passes up to the last states, without a head, with the layers as predictions have
  them."""
  calls = {}
  for name, run in runs.items():
    params = with_separate_layers(run.params.encoder(), run.compute)
    calls[name] = functools.partial(states, params, compute=run.compute)
  return in_turns(calls, subject.rows(SINGLE, 1)), in_turns(calls, subject.rows(MANY, ROWS))


@functools.partial(jax.jit, static_argnames="compute")
def states(params, batch: dict, compute: Compute):
  return params(batch, compute)


def _writing(runs: Mapping[str, Run], subject: Subject) -> tuple[Times, Times]:
  """Texts of `WRITTEN` tokens that continue the beginnings of the held-out rows."""
  rules = Rules(max_length=WRITTEN, min_length=WRITTEN)

  def written(rows: int) -> dict[str, Callable]:
    calls = {}
    for name, run in runs.items():
      size, params = run.tokenizer.vocab.size, run.params.encoder()
      generator = ready(params, run.compute, size, min(2, rows))
      calls[name] = functools.partial(_grown, generator, run.config.positions, rules)
    return calls

  longest = max(1, min(16, subject.run.config.positions - WRITTEN))
  texts = [batch["input_ids"][:, :longest] for batch in subject.rows(SINGLE // 4, 1)]
  many = [batch["input_ids"][:, :longest] for batch in subject.rows(1, ROWS)]
  return in_turns(written(1), texts), in_turns(written(ROWS), many)


def _grown(generator, positions: int, rules: Rules, ids_BT: np.ndarray):
  prompt_BT, pad_B = padded([row.tolist() for row in ids_BT], left=True)
  draws = np.uint32(0), np.zeros((len(ids_BT), 2), np.uint32)
  limit_B, no_ends = positions - (prompt_BT.shape[1] - pad_B), np.zeros(0, np.int32)
  return grow(generator, {"pad": pad_B}, prompt_BT, limit_B, *draws, no_ends, rules).ids_BL


def in_turns(calls: Mapping[str, Callable], batches: Sequence[Any]) -> Times:
  """Every call on every batch, all calls before the next batch, after one round that compiles. Each
  turn begins with another call, so that none always comes first."""
  rounds, names = max(ROUNDS, FEWEST // len(batches)), list(calls)
  seconds = {name: np.zeros((rounds, len(batches))) for name in calls}
  for turn in range(-1, rounds):
    for number, batch in enumerate(batches):
      first = (turn + number) % len(names)
      for name in names[first:] + names[:first]:
        start = time.perf_counter()
        jax.block_until_ready(calls[name](batch))
        if turn >= 0:
          seconds[name][turn, number] = time.perf_counter() - start
  return {name: np.median(times, axis=0) for name, times in seconds.items()}
