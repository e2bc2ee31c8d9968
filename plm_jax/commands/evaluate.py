"""Measures a trained run on sets that are the same for every arm of a table.

  python -m plm_jax.evaluate --from=sweeps/bert_table_6_small/l12_h768_a12/0
  python -m plm_jax.evaluate --from=RUN --blimp=FOLDER --finetune=500,all

The sets depend on the held-out text, the tokenizer and the row length alone, not on the arm's
objective, format or masking. `scores.json` in the run's directory holds every number and a hash of
each set, so that a report compares only numbers from the same set. docs/ablation.md defines the
metrics; their code is in plm_jax/evaluation/.
"""

import dataclasses

from absl import flags

from plm_jax import cli
from plm_jax.ablate import plan
from plm_jax.ablate.evaluating import evaluate
from plm_jax.ablate.plan import Evaluation, define_evaluation
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The pretraining run to measure.")
  define_evaluation()
  flags.adopt_module_key_flags(plan)
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")


def main() -> None:
  if not FLAGS["from"].value:
    raise UserError("--from=DIR, the directory of a pretraining run, is needed.")
  names = [field.name for field in dataclasses.fields(Evaluation)]
  asked = Evaluation(**{name: FLAGS[name].value for name in names})
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  for name, value in evaluate(
    Run.load(run_directory(FLAGS["from"].value)), asked, cache
  ).metrics.items():
    print(f"{name:32} {value:.4f}")


if __name__ == "__main__":
  cli.run(main)
