"""Every way for every run: made, trained on, scored, measured, and compared on one page.

OUT/shrink.json             the runs, the data and the recipe: all that a second command shares
    full-0/  int8-0/  ...   a run for each way and each run or seed, without an optimiser's state
    training/prune50-0/     the training of a way that trains on; it may be deleted afterwards
    results.json            the scores, the bytes and the speed
    page.md  index.html  scores.png
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax.errors import UserError
from plm_jax.files import read_json
from plm_jax.runs import Run, parameters_hash
from plm_jax.shrinking.measure import Size, Speed, size_of, speeds
from plm_jax.shrinking.page import write_page
from plm_jax.shrinking.subjects import Subject, subject
from plm_jax.shrinking.ways import FULL, Way, way_of_full, ways
from plm_jax.tasks.predicting import TASK
from plm_jax.train.integrity import with_digest, without_digest
from plm_jax.train.process import versions
from plm_jax.train.workdir import write_whole

RECORD, RESULTS, SCORES = "shrink.json", "results.json", "shrink_scores.json"


class Cell(NamedTuple):
  """The scores of one smaller run. at_once: before it was trained on; None if that is unknown.
  steps, settings: of training on."""

  way: str
  start: str
  seed: int
  scores: dict[str, float]
  at_once: dict[str, float] | None = None
  steps: int = 0
  settings: list[str] = []  # noqa: RUF012  read only


@dataclasses.dataclass(frozen=True)
class Shrinking:
  """The arguments of the command. seeds: trainings of each run, of ways that train on. steps: of
  these trainings; None is as many as the run had."""

  subjects: Sequence[Subject]
  ways: Sequence[Way]
  out: Path
  seeds: int = 1
  steps: int | None = None
  settings: tuple[str, ...] = ()

  def identity(self) -> dict[str, Any]:
    """What all results in a directory share."""
    return {
      "runs": [parameters_hash(s.run.params) for s in self.subjects],
      "data": self.subjects[0].data(),
    }

  def steps_of(self, way: Way, subject: Subject) -> int:
    """The steps of training on after a way."""
    if not way.trains:
      return 0
    return subject.run.experiment.steps if self.steps is None else self.steps


def shrink(
  starts: Sequence[str],
  names: str,
  out: Path,
  cache: Path,
  data: str | None = None,
  seeds: int = 1,
  steps: int | None = None,
  settings: Sequence[str] = (),
  command: str = "",
) -> Path:
  """Does all ways and writes the page, which shows the command; continues what was stopped.

  Errors: `UserError` for ways that a run does not have, and for a directory with other results.
  """
  chosen = ways(names)
  subjects = [subject(start, cache, data) for start in starts]
  if len({(type(s), s.metric, json.dumps(s.data())) for s in subjects}) > 1:
    raise UserError("the runs of --from are scored on different data; shrink them one by one")
  for each in chosen:
    for made_for in subjects:
      each.check(made_for.run)
  plan = Shrinking(subjects, chosen, out, seeds, steps, tuple(settings))
  prepare(plan)
  cells, sizes, loaded = [], {}, {}
  for each in (way_of_full(), *plan.ways):
    for number, made_for in enumerate(subjects):
      for seed in range(seeds if each.trains else 1):
        place = out / place_of(each.name, number, seed)
        cell = cell_of(plan, each, made_for, made_for.seed + seed, place)
        print(line_of(cell, made_for.metric))
        cells.append(cell)
    run = loaded[each.name] = Run.load(out / f"{each.name}-0")
    sizes[each.name] = size_of(run, out / f"{each.name}-0")
  print("measuring the speed ...", flush=True)
  measured = speeds(loaded, subjects[0])
  record = results(plan, cells, sizes, measured)
  write_whole(out / RESULTS, with_digest(record))
  return write_page(record, out, command)


def place_of(way: str, number: int, seed: int) -> str:
  """The folder of a way. number: of the run. seed: of its trainings."""
  return f"{way}-{number}-{seed}" if seed else f"{way}-{number}"


def prepare(plan: Shrinking) -> None:
  """Makes the directory. Errors: `UserError` if it holds anything else."""
  path, record = plan.out / RECORD, plan.identity()
  if path.exists():
    if without_digest(read_json(path), path) != json.loads(json.dumps(record)):
      raise UserError(
        f"{plan.out} holds the smaller runs of other runs or data ({RECORD} has their hashes); "
        "choose another --out"
      )
    return
  if plan.out.exists() and any(plan.out.iterdir()):
    raise UserError(f"{plan.out} is not empty and holds no smaller runs; choose another --out")
  plan.out.mkdir(parents=True, exist_ok=True)
  write_whole(path, with_digest(record))


def cell_of(plan: Shrinking, way: Way, subject: Subject, seed: int, place: Path) -> Cell:
  """The run in `place` and its scores, unless they are there. Errors: `UserError` if they are those
  of another training."""
  path, steps = place / SCORES, plan.steps_of(way, subject)
  settings = list(plan.settings) if steps else []
  if path.exists():
    cell = Cell(**without_digest(read_json(path), path))
    if (cell.steps, cell.settings) != (steps, settings):
      raise UserError(
        f"{place} was trained on for {cell.steps} steps with {cell.settings or 'no settings'}, and "
        f"here are {steps} with {settings or 'none'}; choose another --out"
      )
    return cell
  small, at_once, scores = way.make(subject), None, None
  if steps:
    training = plan.out / "training" / place.name
    start = training / "start"
    if not (start / "config.json").exists():
      shutil.rmtree(start, ignore_errors=True)
      save(small, subject, way, start)
    if way.sudden:
      at_once = dict(subject.scores(Run.load(start)))
    teacher = subject.place if way.taught else None
    small, scores = subject.train(start, training, steps, settings, seed, way.sparse, teacher)
  if place.exists():  # of a command that was stopped
    shutil.rmtree(place)
  save(small, subject, way, place)
  scores = subject.scores(Run.load(place)) if scores is None else scores
  at_once = dict(scores) if way.sudden and not steps else at_once
  cell = Cell(way.name, str(subject.place), seed, dict(scores), at_once, steps, settings)
  write_whole(path, with_digest(cell._asdict()))
  return cell


def save(run: Run, subject: Subject, way: Way, place: Path) -> None:
  """Writes a smaller run with the task of the original, and the record of its way."""
  entry = {
    "way": way.name,
    "text": way.text,
    "form": way.form,
    "from": str(subject.place.absolute()),
    "parameters": parameters_hash(subject.run.params),
  }
  document = {**run.document, "shrunk": entry} if way.name != FULL else dict(run.document)
  source = Path(run.path or subject.place)
  dataclasses.replace(run, document=document).save(place)
  if (source / TASK).exists():
    shutil.copy(source / TASK, place / TASK)


def line_of(cell: Cell, metric: str) -> str:
  before = ""
  if cell.at_once and cell.steps:
    before = f" (before training on: {cell.at_once[metric]:.4f})"
  return f"{cell.way:10} seed {cell.seed}: {metric} {cell.scores[metric]:.4f}{before}"


def results(
  plan: Shrinking, cells: list[Cell], sizes: dict[str, Size], measured: dict[str, Speed]
) -> dict[str, Any]:
  """The content of results.json."""
  first = plan.subjects[0]
  config: Any = first.run.config
  return {
    **plan.identity(),
    "from": [s.place.name for s in plan.subjects],
    "model": {"family": type(config).__name__, "layers": getattr(config, "layers", None),
              "width": getattr(config, "width", None)},
    "metric": first.metric,
    "is_loss": first.is_loss,
    "labels": first.labels,
    "writes": getattr(first, "is_causal", False),
    "trained_steps": max(cell.steps for cell in cells),
    "texts": {way.name: way.text for way in (way_of_full(), *plan.ways)},
    "cells": [cell._asdict() for cell in cells],
    "sizes": {name: size._asdict() for name, size in sizes.items()},
    "speeds": {name: speed._asdict() for name, speed in measured.items()},
    "versions": versions(),
  }  # fmt: skip
