"""Pretrains a language model: an experiment file's function, at a budget, in a working directory.

With no flag: BERT-tiny on the text that is installed with Python, in about two minutes on a laptop.

  python run_pretrain.py
  python run_pretrain.py --list             # or --list=albert
  python run_pretrain.py --experiment=experiments/bert.py:no_nsp --budget=smoke
  python run_pretrain.py --set=data.source=my_text.txt --set=optim.peak=1e-3 --workdir=runs/mine

A run that was stopped or killed continues when the same command is given again.
"""

from pathlib import Path

from absl import flags

import data.installed_text  # noqa: F401  makes tfds:installed_text known
from plm_jax import budgets, cli, overrides
from plm_jax.ablate.table import list_rows
from plm_jax.data.beam import Beam
from plm_jax.data.corpora import cache_folder
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.export.to_run import run_directory
from plm_jax.peft.methods import METHODS
from plm_jax.pretraining import pretrain, program_of
from plm_jax.runs import RunInfo
from plm_jax.train import estimate, launch, processes, report
from plm_jax.train.process import enough_threads, keep_compilations
from plm_jax.train.workdir import Workdir

DEFAULT = "experiments/bert.py:tiny"

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("experiment", None, f"FILE:FUNCTION of the run (default: {DEFAULT}).")
  flags.DEFINE_enum("budget", "small", budgets.BUDGETS, budgets.HELP)
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, for example optim.peak=2e-4. Repeatable.")
  flags.DEFINE_string(
    "workdir",
    None,
    "Where the run is kept (default: runs/FILE_FUNCTION[_BUDGET]).",
  )
  flags.DEFINE_string(
    "from", None, "Start from the parameters and the tokenizer of this run, or published model."
  )
  flags.DEFINE_enum("on_spike", None, ["tell", "stop", "skip", "rewind"],
                    "When the loss explodes: tell (default), stop, skip such updates, or rewind to "
                    "the last good checkpoint and leave out the rows since.")  # fmt: skip
  flags.DEFINE_enum("peft", None, METHODS, "With --from: train few parameters beside the model.")
  flags.DEFINE_integer("seed", None, "Seed of parameters, dropout, data order and masks.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_string(
    "beam",
    None,
    "Prepare the text with Apache Beam and these options, such as --runner=FlinkRunner.",
  )
  cli.DEFINE_word("list", "List experiments (those with WORD) and published numbers.", __name__)
  flags.DEFINE_bool("dry_run", False, "Show the configuration and its costs, train nothing.")
  flags.DEFINE_string("profile", None, "Folder for a profiler trace of a few steps.")
  launch.define_flags()
  flags.adopt_module_key_flags(launch)


def main() -> None:
  if FLAGS.list is not None:
    for title, rows in cli.listed(list_rows("experiments"), FLAGS.list).items():
      print(f"\n{title}", *(f"{reference:45} {line}" for reference, line in rows), sep="\n")
    return
  enough_threads()
  with processes.joined(*launch.flags_of_place()):
    run()


def run() -> None:
  """The run of the flags, in this process."""
  beam = None if FLAGS.beam is None else Beam(FLAGS.beam)
  cache, given = cache_folder(FLAGS.cache), FLAGS["from"].value
  source = RunInfo.read(run_directory(given, cache)) if given else None
  settings = [f"peft={overrides.show(METHODS[FLAGS.peft])}"] if FLAGS.peft else []
  settings += [*FLAGS.set, *([f"on_spike={FLAGS.on_spike}"] if FLAGS.on_spike else [])]
  experiment, record = chosen_experiment(
    FLAGS.experiment, DEFAULT, FLAGS.budget, settings, FLAGS.seed, source
  )
  processes.say(report.heading(record, experiment))
  experiment.check_trains()
  keep_compilations(cache)
  if FLAGS.dry_run:
    processes.say(overrides.describe(experiment))
    if experiment.is_counted:
      processes.say("counted in one pass over the text, without gradient steps")
      return
    program = program_of(experiment)
    processes.say(report.costs(program))
    step = estimate.timed(program)
    seconds = step.seconds * experiment.steps
    processes.say(estimate.sentence(seconds, step.how, record["budget"]))
    return
  path = Path(FLAGS.workdir or Path("runs") / record["name"])
  with Workdir(path) as workdir:
    workdir.check_same_experiment(experiment, record)
    profile = Path(FLAGS.profile) if FLAGS.profile else None
    pretrain(experiment, record, workdir, cache, source, profile, beam=beam)


if __name__ == "__main__":
  cli.run(main)
