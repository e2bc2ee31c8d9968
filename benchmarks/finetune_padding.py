"""The share of positions that fine-tuning computes and that hold no token.

    python benchmarks/finetune_padding.py --from=minilm --data=reviews.tsv
    python benchmarks/finetune_padding.py --from=minilm --data=squad.json --task=answer

One epoch of training batches: rows as wide as the longest allowed (`task.length`), rows of similar
length together (the default, `by_length`), and examples that share rows (`task.packed`).
"""

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import cache_folder
from plm_jax.export.to_run import run_directory
from plm_jax.models.packed import PREFIX
from plm_jax.runs import RunInfo
from plm_jax.tasks.registry import chosen_task
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.task import Context

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "A run or a directory with a published model.")
  flags.DEFINE_string("data", None, "The data of the task.")
  flags.DEFINE_string("task", None, "The task (default: what the data look like).")
  flags.DEFINE_integer("batch", 32, "Rows of a batch.")


def main() -> None:
  run = RunInfo.read(run_directory(FLAGS["from"].value))
  task = chosen_task(FLAGS.task, FLAGS.data)
  task, splits = task.read(Context(run, cache_folder(None)))
  rows = task.rows(splits.train, run.experiment.model, run.tokenizer)
  steps = max(1, len(rows) // FLAGS.batch)
  print(f"{len(rows):,} rows of up to {rows.width} tokens, {np.mean(rows.longest):.1f} in the mean")
  kinds = {
    "all as wide as the longest allowed": {},
    "by length": {"by_length": True},
    "packed": {"packed": True},
  }
  for name, kind in kinds.items():
    batches = LabelledBatches(rows, 0, FLAGS.batch, **kind)
    made = [batches(step) for step in range(steps)]
    read = [batch.get(PREFIX + "input_ids", batch["input_ids"]) for batch in made]
    paid = sum(ids.size for ids in read)
    real = sum(int(batch["length"].sum()) for batch in made)
    shapes = len({ids.shape for ids in read})
    print(f"{name:36} {1 - real / paid:6.1%} of the positions are padding, {shapes} shapes")


if __name__ == "__main__":
  cli.run(main)
