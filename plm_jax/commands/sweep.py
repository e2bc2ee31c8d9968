"""Runs a paper's table: every arm with every seed, pretraining and then evaluation.

  python -m plm_jax.sweep --table=experiments/bert.py:table_6 --out=sweeps/table_6
  python -m plm_jax.sweep --list                # or --list=albert
  python -m plm_jax.sweep --table=... --budget=smoke --seeds=3 --jobs=2 --out=DIR
  python -m plm_jax.sweep --table=... --out=DIR --arms=no-nsp,base --set=steps=2000

The same command resumes a stopped or killed sweep. Then: python -m plm_jax.report DIR
"""

import dataclasses

import jax
from absl import flags

from plm_jax import budgets, cli
from plm_jax.ablate import plan
from plm_jax.ablate.launch import LAUNCHERS
from plm_jax.ablate.plan import Evaluation, define_evaluation
from plm_jax.ablate.planned import arm_lines
from plm_jax.ablate.sweeping import sweep
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("table", None, "FILE:FUNCTION of the table.")
  flags.DEFINE_enum("budget", "small", budgets.BUDGETS, budgets.HELP)
  flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, 2, ...")
  flags.DEFINE_string("out", None, "Where it is kept (default: sweeps/FILE_FUNCTION_BUDGET).")
  flags.DEFINE_list("arms", [], "Only these arms, separated by commas (default: all).")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE for all arms, such as steps=2000. Repeatable.")
  flags.DEFINE_list("reuse", [], "Copy trained runs that are equal from these sweeps.")
  flags.DEFINE_integer("jobs", 1, "Number of runs at a time; they share the cores and the GPUs.")
  flags.DEFINE_enum("launcher", "local", LAUNCHERS, "Who starts the runs.")
  define_evaluation()
  flags.adopt_module_key_flags(plan)
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  cli.DEFINE_word("list", "List tables (those with WORD) and published numbers.", __name__)
  flags.DEFINE_bool("inline", None, "All runs in this process (default: of the budget smoke).")
  flags.DEFINE_bool("dry_run", False, "Show every command, run nothing.")


def main() -> int:
  # A run of ten steps takes less time than the start of a process.
  alone = FLAGS.jobs == 1 and FLAGS.launcher == "local"
  inline = alone and (FLAGS.budget == "smoke" if FLAGS.inline is None else FLAGS.inline)
  if FLAGS.inline and not alone:
    raise UserError("--inline runs all in this process; leave out --jobs and --launcher.")
  if inline:
    keep_compilations(cache_folder(FLAGS.cache))
  else:
    # The runs need the accelerator; this process only reads experiments and prepares the text.
    jax.config.update("jax_platforms", "cpu")
  if FLAGS.list is not None:
    tables = cli.list_experiments("experiments", returns="Table")
    for title, rows in cli.listed(tables, FLAGS.list).items():
      print(f"\n{title}")
      for reference, line in rows:
        print(f"{reference:45} {line}")
        print(arm_lines(cli.load_experiment(reference, returns="Table")()))
    return 0
  names = ["table", "out", "budget", "seeds", "jobs", "arms", "cache", "launcher", "dry_run"]
  names += ["reuse"] + [field.name for field in dataclasses.fields(Evaluation)]
  options = {name: FLAGS[name].value for name in names}
  return 1 if sweep(**options, settings=FLAGS.set, inline=inline).failed else 0


if __name__ == "__main__":
  cli.run(main)
