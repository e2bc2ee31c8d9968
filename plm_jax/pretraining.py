"""Pretraining, from an experiment to a report: the work of run_pretrain.py."""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from plm_jax.data.beam import Beam
from plm_jax.data.fertility import fertilities, fertility_notes
from plm_jax.data.manifest import hash_of
from plm_jax.data.mixture import MixedBatches, mixed_counts, prepare_each
from plm_jax.data.pipeline import Batches, iterate
from plm_jax.data.preparation import Prepared
from plm_jax.data.texts import rows_of_block
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
  beam: Beam | None = None,
) -> None:
  """Prepares the text, trains, evaluates and reports; continues a run that was stopped.

  record: of `chosen_experiment`, for config.json. source: the run to start from. profile: a folder
  for a profiler's trace of a few steps. sinks: further destinations of the records. beam: what
  prepares the text in place of this machine's processes.
  """
  first = processes.is_first()
  with processes.first_goes_first():
    texts = prepare_each(experiment.data, cache, progress=first, beam=beam)
  text = text_record(texts)
  record = record | {"text": text, "fertility": fertilities(texts)}
  workdir.write_config(experiment, record)
  train, valid = batches_of(experiment, texts)
  prepared = texts[train.most_read]
  if first:
    prepared.tokenizer.save(workdir / "tokenizer")
  processes.say(report.text_lines(texts, train))
  if source is not None:
    for note in fertility_notes(texts, source.document.get("fertility") or {}):
      processes.say(note)
  with processes.first_goes_first():  # the first makes the tables of rows
    train.check()
    held_out = valid.evaluations(experiment.schedule.evaluation_rows)
  evaluation = [batch for batches in held_out.values() for batch in batches]
  processes.say(report.rows_line(train, experiment.is_counted))
  if experiment.is_counted:
    counted = count(experiment, record, prepared, evaluation, workdir, sinks)
    params = processes.whole(counted.params)
    if first:
      rows = valid.of_all_processes().evaluation(experiment.schedule.evaluation_rows)
      results = report.Results(counted.experiment, counted.records, train.counts, rows)
      show(params, results, prepared, workdir)
    return
  processes.say("compiling ...", file=sys.stderr)
  program = program_of(experiment)
  processes.say(report.costs(program))
  until = batches_until(experiment, workdir.path)
  workers, sizes = experiment.data.workers, {name: len(x) for name, x in held_out.items() if name}
  data = Data(lambda start: iterate(train, start, until, workers), evaluation, sizes)
  initial = initial_parameters(program, source)
  if initial is None and hasattr(program.abstract.params, "spelled"):
    params: Any = program.create().params
    initial = params.spelled(prepared.tokenizer)
  state, records = fit(program, data, workdir, initial=initial, profile=profile, sinks=sinks)
  params = processes.whole(state.params)
  if first:
    rows = valid.of_all_processes().evaluation(experiment.schedule.evaluation_rows)
    results = report.Results(experiment, records, train.counts, rows)
    show(params, results, prepared, workdir)


def show(params, results: report.Results, prepared: Prepared, workdir) -> None:
  """Prints the report of a run, and draws its curves. prepared: the text of its examples."""
  experiment = results.experiment
  print(report.results(results))
  print(report.examples(params, results, prepared))
  if not experiment.is_counted:
    report.draw_curves(results, workdir)
  print(report.goodbye(workdir.path, experiment, params))


def program_of(experiment: Experiment) -> Program:
  """The compiled experiment, for all devices."""
  return compile_experiment(experiment, example_batch(experiment))


def text_record(texts: Mapping[str, Prepared]) -> dict[str, Any]:
  """The entry of config.json for the text; for several, with an entry for each under `texts`."""
  names = ("source", "tokenizer", "splits", "dropped")
  records = {name: {n: text.manifest[n] for n in names} for name, text in texts.items()}
  first, *others = records.values()
  if not others:
    return first
  digest = hash_of({name: record["source"] for name, record in records.items()})
  return {
    "source": {
      "given": ",".join(r["source"]["given"] for r in (first, *others)),
      "fingerprint": digest,
    },
    "tokenizer": first["tokenizer"],
    "splits": functools.reduce(added, (record["splits"] for record in records.values())),
    "dropped": dict(sum((Counter(record["dropped"]) for record in records.values()), Counter())),
    "texts": {name: {n: r[n] for n in ("source", "splits")} for name, r in records.items()},
  }


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  """The sums of the counts of two splits."""
  return {split: {n: one[split][n] + other[split][n] for n in one[split]} for split in one}


def batches_of(
  experiment: Experiment, texts: Mapping[str, Prepared]
) -> tuple[MixedBatches, MixedBatches]:
  """The training and the held-out batches of this process. texts: of `prepare_each`."""
  corpus: Any = experiment.data
  tokens = [len(text.train.tokens) for text in texts.values()]
  rows = rows_of_block(corpus.weights, corpus.alpha, tokens)
  counts = mixed_counts(texts, rows)
  train, valid = (
    {
      name: Batches(
        getattr(text, split),
        corpus,
        experiment.objectives,
        dataclasses.replace(text.tokenizer.vocab, counts=counts),
        seed=experiment.seed,
        global_batch=experiment.global_batch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      )
      for name, text in texts.items()
    }
    for split in ("train", "valid")
  )
  return MixedBatches(train, rows), MixedBatches(valid, rows)
