"""Pretrains a language model: an experiment file's function, at a budget, in a working directory.

With no flag: BERT-tiny on the text that is installed with Python, in about two minutes on a laptop.

  python run_pretrain.py
  python run_pretrain.py --list
  python run_pretrain.py --experiment=experiments/bert.py:no_nsp --budget=smoke
  python run_pretrain.py --set=data.source=my_text.txt --set=optim.peak=1e-3 --workdir=runs/mine

A run that was stopped or killed continues when the same command is given again.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

import data.installed_text  # noqa: F401  makes tfds:installed_text known
from plm_jax import cli, overrides
from plm_jax.ablate.table import list_rows
from plm_jax.data.corpora import cache_folder
from plm_jax.data.pipeline import Batches, iterate
from plm_jax.data.preparation import Prepared, prepare
from plm_jax.experiment import BUDGETS, Experiment
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.export.to_run import run_directory
from plm_jax.runs import RunInfo, initial_parameters
from plm_jax.train import report
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import Data, compile_experiment, fit
from plm_jax.train.process import keep_compilations, keep_freed_memory
from plm_jax.train.workdir import Workdir

DEFAULT = "experiments/bert.py:tiny"

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("experiment", None, f"FILE:FUNCTION of the run (default: {DEFAULT}).")
  flags.DEFINE_enum("budget", "small", BUDGETS, "Scale: seconds, minutes, or as published.")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, for example optim.peak=2e-4. Repeatable.")
  flags.DEFINE_string(
    "workdir",
    None,
    "Where the run is kept (default: runs/FILE_FUNCTION[_BUDGET]).",
  )
  flags.DEFINE_string("from", None, "Start from the parameters and the tokenizer of this run.")
  flags.DEFINE_integer("seed", None, "Seed of parameters, dropout, data order and masks.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_bool("list", False, "List all experiments with their published numbers, and exit.")
  flags.DEFINE_bool("dry_run", False, "Show the configuration and its costs, train nothing.")


def main() -> None:
  keep_freed_memory()
  if FLAGS.list:
    for reference, line in list_rows("experiments"):
      print(f"{reference:45} {line}")
    return
  source = RunInfo.read(run_directory(FLAGS["from"].value)) if FLAGS["from"].value else None
  experiment, record = chosen_experiment(
    FLAGS.experiment, DEFAULT, FLAGS.budget, FLAGS.set, FLAGS.seed, source
  )
  print(report.heading(record, experiment), flush=True)
  experiment.check_trains()
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  if FLAGS.dry_run:
    print(overrides.describe(experiment))
    print(report.costs(compile_experiment(experiment, example_batch(experiment))))
    return
  path = Path(FLAGS.workdir or Path("runs") / record["name"])
  with Workdir(path) as workdir:
    workdir.check_same_experiment(experiment, record)
    pretrain(experiment, record, workdir, cache, source)


def pretrain(
  experiment: Experiment, record: dict, workdir: Workdir, cache: Path, source: RunInfo | None
) -> None:
  """Prepares the text, trains, evaluates and reports."""
  prepared = prepare(experiment.data, cache)
  names = ("source", "tokenizer", "splits", "dropped")
  text = {name: prepared.manifest[name] for name in names}
  workdir.write_config(experiment, record | {"text": text})
  prepared.tokenizer.save(workdir / "tokenizer")
  print(report.text_line(prepared.manifest), flush=True)
  train, valid = batches_of(experiment, prepared)
  train.check()
  print(report.rows_line(train), flush=True)
  evaluation = valid.evaluation(experiment.schedule.evaluation_rows)
  print("compiling ...", file=sys.stderr, flush=True)
  program = compile_experiment(experiment, example_batch(experiment))
  print(report.costs(program), flush=True)
  workers = experiment.data.workers
  data = Data(lambda start: iterate(train, start, experiment.steps, workers), evaluation)
  state, records = fit(program, data, workdir, initial=initial_parameters(program, source))
  if jax.process_index() == 0:
    results = report.Results(experiment, records, prepared.train.counts, evaluation)
    print(report.results(results))
    print(report.examples(state.params, results, prepared))
    report.draw_curves(results, workdir)
    print(report.goodbye(workdir.path, experiment, state.params))


def batches_of(experiment: Experiment, prepared: Prepared) -> tuple[Batches, Batches]:
  """The training and the held-out batches of this process."""
  vocab = dataclasses.replace(prepared.tokenizer.vocab, counts=np.asarray(prepared.train.counts))
  train, valid = (
    Batches(
      store,
      experiment.data,
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


if __name__ == "__main__":
  cli.run(main)
