"""Makes runs smaller in several ways, and compares size, latency and score on one page.

  python -m plm_jax.shrink --from=RUN/finetune/TASK/pretrained-all-0 --ways=bf16,int8 --out=small
  python -m plm_jax.shrink --from=A,B,C --ways=int8,prune50,heads50,layers3,distil --out=small
  python -m plm_jax.shrink --from=runs/gpt_tiny --ways=w8,w4,prune50 --out=small_gpt

The ways are bf16, int8 (weights and activations), static8 (with scales that are measured on dev
rows before), w8 and w4 (weights alone), pruneP (P% of the weights are 0), headsP (without P% of the
heads), layersK (K of the layers) and distil (half of the layers, taught by the run itself). After
the last four the run is trained on. Several runs in --from differ in their seeds. Every smaller run
is a directory in --out that predict, evaluate and generate read like any other. A stopped command
continues when it is given again.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.shrinking.shrink import shrink
from plm_jax.train.process import enough_threads, keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The runs, with commas: fine-tuned, or pretrained.")
  flags.DEFINE_string("ways", "bf16,int8", "The ways, with commas.")
  flags.DEFINE_string("out", None, "The directory of the smaller runs and of the page.")
  flags.DEFINE_string("data", None, "The data of the fine-tuning (default: where it was).")
  flags.DEFINE_integer("seeds", 1, "Trainings of each run, of ways that train on.")
  flags.DEFINE_integer("steps", None, "Steps of training on (default: as many as the run had).")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE of training on. Repeatable.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")


def main() -> None:
  start = FLAGS["from"].value
  if not (start and FLAGS.out):
    raise UserError("--from=DIR, the run to make smaller, and --out=DIR, a new place, are needed.")
  if FLAGS.seeds < 1 or (FLAGS.steps is not None and FLAGS.steps < 0):
    raise UserError(
      f"--seeds={FLAGS.seeds} must be at least 1, and --steps={FLAGS.steps} at least 0."
    )
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  enough_threads()
  page = shrink(
    start.split(","),
    FLAGS.ways,
    Path(FLAGS.out),
    cache,
    FLAGS.data,
    FLAGS.seeds,
    FLAGS.steps,
    FLAGS.set,
    shlex.join(["python", "-m", "plm_jax.shrink", *sys.argv[1:]]),
  )
  print(page.with_name("page.md").read_text())
  print(f"{page} is the page")


if __name__ == "__main__":
  cli.run(main)
