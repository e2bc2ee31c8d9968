"""Shows an adapter (a run with --peft), names the new place of its base, or merges the two.

  python -m plm_jax.adapter --model=RUN/finetune/TASK-lora/pretrained-all-0
  python -m plm_jax.adapter --model=DIR --base=NEW      the base was moved to NEW
  python -m plm_jax.adapter --model=DIR --merge=OUT     OUT is a run without a base

The base is known by a hash of its parameters: another model, or one that was trained on, is
refused. Every command reads an adapter as it reads a run. `python -m plm_jax.convert DIR OUT`
writes the merged model for transformers, and with --to=peft the adapter alone for peft.
"""

import json
import shutil

import jax
from absl import flags

from plm_jax import cli
from plm_jax.errors import UserError
from plm_jax.export.to_run import run_directory
from plm_jax.runs import Run, RunInfo, base_of
from plm_jax.tasks.predicting import TASK
from plm_jax.train.workdir import write_whole

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run with --peft.")
  flags.DEFINE_string("base", None, "The new place of its base.")
  flags.DEFINE_string("merge", None, "A new directory for the run of the merged model.")


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a run with --peft, is needed.")
  info = RunInfo.read(FLAGS.model)
  if info.experiment.peft is None:
    raise UserError(f"{FLAGS.model} is a whole model and no adapter.")
  base = base_of(info, FLAGS.base and run_directory(FLAGS.base))
  if FLAGS.base:
    entry = {**info.document["base"], "from": str(base.path.absolute())}
    text = json.dumps({**info.document, "base": entry}, indent=2) + "\n"
    write_whole(info.path / "config.json", text)
  shapes = jax.eval_shape(info.experiment.init_parameters, jax.random.key(0))
  print(f"{shapes.share()}; its base is {base.path}")
  if FLAGS.merge:
    run = Run.load(info.path)
    run.save(FLAGS.merge)
    if (info.path / TASK).exists():
      shutil.copy(info.path / TASK, FLAGS.merge)
    print(f"{FLAGS.merge} is the merged model")


if __name__ == "__main__":
  cli.run(main)
