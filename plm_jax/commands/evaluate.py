"""Measures a trained run on sets that are the same for every arm of a table.

  python -m plm_jax.evaluate --from=sweeps/bert_table_6_small/l12_h768_a12/0
  python -m plm_jax.evaluate --from=RUN --blimp=FOLDER --finetune=500,all

The sets depend on the held-out text, the tokenizer and the row length alone, not on the arm's
objective, format or masking. `scores.json` in the run's directory holds every number and a hash of
each set, so that a report compares only numbers from the same set. docs/ablation.md defines the
metrics; their code is in plm_jax/evaluation/.
"""

from absl import flags

from plm_jax import cli
from plm_jax.ablate.evaluating import evaluate
from plm_jax.ablate.plan import Evaluation
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run
from plm_jax.train.process import keep_compilations, keep_freed_memory

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
  for name, value in evaluate(
    Run.load(run_directory(FLAGS["from"].value)), asked, cache
  ).metrics.items():
    print(f"{name:32} {value:.4f}")


if __name__ == "__main__":
  cli.run(main)
