"""Measures a trained run on sets that are the same for every arm of a table.

  python -m plm_jax.ablate.evaluate --from=sweeps/bert_table_6_small/l12_h768_a12/0
  python -m plm_jax.ablate.evaluate --from=RUN --blimp=FOLDER --finetune=500,all

The sets depend on the held-out text, the tokenizer and the row length alone, not on the arm's
objective, format or masking. `scores.json` in the run's directory holds every number and a hash of
each set, so that a report compares only numbers from the same set.

    mlm_*     rows "[CLS] A [SEP] B [SEP]", B following A; BERT's rule, 15%, 80/10/10, one draw of
              masks (as the paper's own perplexities)
    pseudo_perplexity     exp of the mean of -log p(token | all others), one token masked at a time,
              in the same rows (Salazar et al. 2020)
    clm_*     the same rows for left-to-right models, which have no mlm_*
    seq2seq_* for encoder-decoders, the run's own sources and targets without label smoothing: arms
              with other objectives were measured on other sets
    nsp_*     pairs of BERT's code, as many random as consecutive ones, including chunks of one
              sentence, which are always random
    sop_*     consecutive pairs, every other one swapped
    blimp     BLiMP (Warstadt et al. 2020): share of pairs whose grammatical sentence has the higher
              pseudo-log-likelihood, or log-likelihood for left-to-right models; ties count half
    finetune_LABELS_*     which package a sentence comes from: run_finetune.py from this run, with
              the run's seed and --task=label

The code of the sets and scores is in plm_jax/evaluation/.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.ablate.plan import SCORES, Evaluation
from plm_jax.data.corpora import cache_folder
from plm_jax.data.preparation import prepare
from plm_jax.errors import UserError
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.minimal_pairs import blimp
from plm_jax.evaluation.pair_accuracy import pair_accuracies
from plm_jax.evaluation.scores import Scores
from plm_jax.runs import Run
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.label import Label
from plm_jax.train.process import keep_compilations, keep_freed_memory, versions
from plm_jax.train.workdir import write_whole

FORMAT = 1

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The pretraining run to measure.")
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files.")
  flags.DEFINE_integer("blimp_pairs", None, "At most this many pairs of each file (default: all).")
  flags.DEFINE_string("finetune", None, "Fine-tune on these numbers of labels, such as 500,all.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")


def main() -> None:
  keep_freed_memory()
  if not FLAGS["from"].value:
    raise UserError("--from=DIR, the directory of a pretraining run, is needed.")
  asked = Evaluation(FLAGS.blimp, FLAGS.blimp_pairs, FLAGS.finetune)
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  start = time.perf_counter()
  run = Run.load(FLAGS["from"].value)
  scores = measured(run, asked, cache)
  record = {
    "format": FORMAT,
    "asked": dataclasses.asdict(asked),
    **scores._asdict(),
    "step": run.step,
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.params)),
    "seconds": time.perf_counter() - start,
    "versions": versions(),
  }
  write_whole(run.path / SCORES, json.dumps(record, indent=2) + "\n")
  for name, value in scores.metrics.items():
    print(f"{name:32} {value:.4f}")


def measured(run: Run, asked: Evaluation, cache: Path) -> Scores:
  """The scores of every run, and the optional ones in `asked`."""
  prepared = prepare(run.experiment.data, cache)
  scores = Scores.of(run)
  if run.step < run.experiment.steps and "public" not in run.document:
    scores.notes.append(f"measured after {run.step:,} of {run.experiment.steps:,} steps")
  held_out(run, prepared, scores)
  pair_accuracies(run, prepared, scores)
  if asked.blimp:
    blimp(run, Path(asked.blimp), asked.blimp_pairs, scores)
  if asked.finetune:
    finetune(run, asked.labels, cache, scores)
  return scores


def finetune(
  run: Run,
  labels: list[int | None],
  cache: Path,
  scores: Scores,
  settings: tuple[str, ...] = (),
) -> None:
  """Adds finetune_LABELS_accuracy and _macro_f1 to `scores`: those of run_finetune.py with
  --task=label and `settings`."""
  recipe = cli.load_module("experiments.finetune").recipe
  chosen = plan(run, recipe, Label(), list(settings), cache, run.path / "finetune")
  for size in labels:
    name = str(size or "all")
    title = f"fine-tuning on {name}"
    cell = model_cell(chosen, "pretrained", size, run.experiment.seed, title)
    test = {metric: cell.test[metric] for metric in chosen.task.metrics}
    measured_on = [{"test": np.array(chosen.splits.test.fingerprint())}]
    scores.add(f"finetune_{name}", test, len(chosen.splits.test), measured_on)


if __name__ == "__main__":
  cli.run(main)
