"""Fine-tunes a checkpoint on a labelled task; compares it with the same model from random
initialisation and with a bag of words.

The default task: were the words of a sentence of the installed text shuffled? It is trained on 500
labels and on all, three seeds each. --set=data.task=label asks which package it comes from.

  python run_finetune.py --from=runs/bert_tiny
  python run_finetune.py --from=runs/bert_tiny --set=data.task=label
  python run_finetune.py --from=runs/bert_tiny --set=data.source=reviews.csv --labels=200,all

A labelled file is .jsonl, .csv or .tsv with "text" and "label"; --set=data.test=FILE and
--set=data.dev=FILE take splits of your own. Any other text needs no labels: its words are shuffled.
A stopped command continues when it is given again.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

import data.installed_text  # noqa: F401  makes tfds:installed_text known
from experiments.finetune import recipe
from plm_jax import cli, overrides
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.runs import RunInfo
from plm_jax.tasks.classification import score
from plm_jax.tasks.comparison import ARMS, Comparison, draw, numbers_of_labels, table
from plm_jax.tasks.finetuning import (
  RESULTS,
  FinetunePlan,
  earlier_cells,
  identity,
  model_cell,
  plan,
  words_cell,
)
from plm_jax.tasks.labelled_text import INSTALLED_TEXT, LabelledText
from plm_jax.train.process import keep_compilations, keep_freed_memory
from plm_jax.train.workdir import write_whole

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The pretraining run whose checkpoint is fine-tuned.")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, such as data.source=reviews.csv. Repeatable.")
  flags.DEFINE_string("labels", "500,all", "Numbers of labelled examples, separated by commas.")
  flags.DEFINE_integer("seeds", 3, "Number of seeds, for examples, order, dropout, new parameters.")
  flags.DEFINE_string("workdir", None, "Where the runs are kept (default: FROM/finetune/TASK).")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_bool("dry_run", False, "Show the task and the configuration, train nothing.")


def main() -> None:
  keep_freed_memory()
  if not FLAGS["from"].value:
    raise UserError("run_finetune.py needs --from=DIR, the directory of a pretraining run.")
  if FLAGS.seeds < 1:
    raise UserError(f"--seeds={FLAGS.seeds} was given; at least one seed is needed.")
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  source = RunInfo.read(FLAGS["from"].value)
  chosen = plan(source, recipe, FLAGS.set, cache, Path(FLAGS.workdir or source.path / "finetune"))
  if not FLAGS.workdir:
    chosen = chosen._replace(path=chosen.path / name_of(chosen.data))
  sizes = numbers_of_labels(FLAGS.labels, "labels")
  experiments = [chosen.experiment(size, 0) for size in sizes]  # refuses too few examples
  print(describe(chosen), flush=True)
  if FLAGS.dry_run:
    for experiment in experiments:
      print(f"\n{overrides.describe(experiment)}")
    return
  compare(chosen, sizes, range(FLAGS.seeds))


def name_of(data: LabelledText) -> str:
  """The name of a task's directory: word_order, label, label-reviews.csv."""
  if data.source == INSTALLED_TEXT:
    return data.task
  return f"{data.task}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(data.source).name)}"


def describe(chosen: FinetunePlan) -> str:
  """The task: classes, splits, and dropped classes with the reason."""
  task, data = chosen.task, chosen.data
  question = f"which of {len(task.classes)} classes?"
  if data.task == "word_order":
    question = "are the words of a sentence in order or shuffled?"
  lines = [f"{data.source}: {question}", "  " + ", ".join(task.classes)]
  for name in ("train", "dev", "test"):
    examples = getattr(task, name)
    documents = len(set(examples.documents))
    lines.append(f"  {name:6}{len(examples.texts):7,} examples from {documents:,} documents")
  lines.append(
    f"  at most {data.per_class} training and {data.test_per_class} test examples per class; texts "
    f"are cut at {data.length} tokens"
  )
  if task.left_out:
    why = "; ".join(f"{label} ({why})" for label, why in task.left_out.items())
    lines.append(f"  left out: {why}")
  return "\n".join(lines)


def compare(chosen: FinetunePlan, sizes: list[int | None], seeds: range) -> None:
  """Every cell, then the table and results.*, with the directory's earlier cells."""
  cells = {cell.place: cell for cell in earlier_cells(chosen)}
  for size in sizes:
    words = None
    for seed in seeds:
      for arm in ARMS:
        start = time.perf_counter()
        title = f"{arm}, {size or 'all'} labels, seed {seed}"
        if arm == "words":
          cell = words._replace(seed=seed) if words else words_cell(chosen, size, seed)
          words = cell if size is None else None  # with all labels every seed has the same examples
        else:
          cell = model_cell(chosen, arm, size, seed, title)
        cells[cell.place] = cell
        shown = f"accuracy {cell.test['accuracy']:.3f}, macro-F1 {cell.test['macro_f1']:.3f}"
        print(f"{title:36} {shown}  ({time.perf_counter() - start:.0f} s)", flush=True)
  if jax.process_index() == 0:
    comparison = Comparison([cells[place] for place in sorted(cells)])
    chance = majority_class(chosen)
    print(table(comparison, chance))
    record = {"of": identity(chosen), **comparison.record()}
    write_whole(chosen.path / RESULTS, json.dumps(record, indent=2) + "\n")
    draw(comparison, chosen.path / "results.png", chance)
    print(f"\n{chosen.path}/results.png shows the table; {RESULTS} has every number")


def majority_class(chosen: FinetunePlan) -> dict[str, float]:
  """Scores of always predicting the most frequent class of the training split."""
  task = chosen.task
  answer = np.bincount(task.train.label).argmax()
  return score(task.test.label, np.full(len(task.test.label), answer), len(task.classes))


if __name__ == "__main__":
  cli.run(main)
