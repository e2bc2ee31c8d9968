"""Pretraining, from an experiment to a report: the work of run_pretrain.py."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plm_jax.data.pipeline import Batches, iterate
from plm_jax.data.preparation import Prepared, prepare
from plm_jax.experiment import Experiment
from plm_jax.runs import RunInfo, initial_parameters
from plm_jax.train import processes, report
from plm_jax.train.counted import count
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import Data, Program, compile_experiment, fit
from plm_jax.train.metrics import Sink
from plm_jax.train.spikes import batches_until
from plm_jax.train.workdir import Workdir


def pretrain(
  experiment: Experiment,
  record: dict[str, Any],
  workdir: Workdir,
  cache: Path,
  source: RunInfo | None = None,
  profile: Path | None = None,
  sinks: Sequence[Sink] = (),
) -> None:
  """Prepares the text, trains, evaluates and reports; continues a run that was stopped.

  record: of `chosen_experiment`, for config.json. source: the run to start from. profile: a folder
  for a profiler's trace of a few steps. sinks: further destinations of the records.
  """
  first = processes.is_first()
  with processes.first_goes_first():
    prepared = prepare(experiment.data, cache, progress=first)
  names = ("source", "tokenizer", "splits", "dropped")
  text = {name: prepared.manifest[name] for name in names}
  workdir.write_config(experiment, record | {"text": text})
  if first:
    prepared.tokenizer.save(workdir / "tokenizer")
  processes.say(report.text_line(prepared.manifest))
  train, valid = batches_of(experiment, prepared)
  with processes.first_goes_first():  # the first makes the tables of rows
    train.check()
    evaluation = valid.evaluation(experiment.schedule.evaluation_rows)
  processes.say(report.rows_line(train, experiment.is_counted))
  if experiment.is_counted:
    counted = count(experiment, record | {"text": text}, prepared, evaluation, workdir, sinks)
    params = processes.whole(counted.params)
    if first:
      rows = all_rows(valid).evaluation(experiment.schedule.evaluation_rows)
      show(params, counted.experiment, counted.records, rows, prepared, workdir)
    return
  processes.say("compiling ...", file=sys.stderr)
  program = program_of(experiment)
  processes.say(report.costs(program))
  until = batches_until(experiment, workdir.path)
  data = Data(lambda start: iterate(train, start, until, experiment.data.workers), evaluation)
  initial = initial_parameters(program, source)
  if initial is None and hasattr(program.abstract.params, "spelled"):
    params: Any = program.create().params
    initial = params.spelled(prepared.tokenizer)
  state, records = fit(program, data, workdir, initial=initial, profile=profile, sinks=sinks)
  params = processes.whole(state.params)
  if first:
    rows = all_rows(valid).evaluation(experiment.schedule.evaluation_rows)
    show(params, experiment, records, rows, prepared, workdir)


def show(params, experiment: Experiment, records, rows, prepared: Prepared, workdir) -> None:
  """Prints the report of a run, and draws its curves."""
  results = report.Results(experiment, records, prepared.train.counts, rows)
  print(report.results(results))
  print(report.examples(params, results, prepared))
  if not experiment.is_counted:
    report.draw_curves(results, workdir)
  print(report.goodbye(workdir.path, experiment, params))


def program_of(experiment: Experiment) -> Program:
  """The compiled experiment, for all devices."""
  return compile_experiment(experiment, example_batch(experiment))


def batches_of(experiment: Experiment, prepared: Prepared) -> tuple[Batches, Batches]:
  """The training and the held-out batches of this process."""
  vocab = dataclasses.replace(prepared.tokenizer.vocab, counts=np.asarray(prepared.train.counts))
  corpus: Any = experiment.data
  train, valid = (
    Batches(
      store,
      corpus,
      experiment.objectives,
      vocab,
      seed=experiment.seed,
      global_batch=experiment.global_batch,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    for store in (prepared.train, prepared.valid)
  )
  return train, valid


def all_rows(batches: Batches) -> Batches:
  """The batches of all processes together."""
  return dataclasses.replace(batches, process_index=0, process_count=1)
