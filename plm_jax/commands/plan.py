"""Plans a run on devices that are not there: does it fit, and how fast could it be?

  python -m plm_jax.plan --experiment=experiments/bert.py:large --budget=paper --devices=v5e-16
  python -m plm_jax.plan --experiment=experiments/gpt.py:gpt2_xl --budget=paper --devices=h100x8
  python -m plm_jax.plan --devices=cpu:8 --set=mesh.fsdp=8 --set=mesh.data=1 --tensors

Devices: v4-8, v5e-16, v5p-8, v6e-8 and larger slices, by the names of Cloud TPU (v4 and v5p count
cores, two on each chip); a100x8, h100x8 and fewer; cpu:N, simulated. The mesh is chosen if no
mesh.* is set.

The step is compiled ahead of time where the compiler is installed (pip install 'plm_jax[tpu]'),
which takes a minute for a large model; else the plan is arithmetic on shapes. The page says which.
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
from absl import flags

from plm_jax import budgets, cli
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.planning.devices import Target, as_measured, known, target_of
from plm_jax.planning.page import page
from plm_jax.planning.plan import BY, plan
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
DEFAULT = "experiments/bert.py:tiny"


def define_flags() -> None:
  flags.DEFINE_string("experiment", None, f"FILE:FUNCTION of the run (default: {DEFAULT}).")
  flags.DEFINE_enum("budget", "small", budgets.BUDGETS, budgets.HELP)
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, for example mesh.fsdp=16. Repeatable.")
  flags.DEFINE_string("devices", None, f"The devices: {known()}.")
  flags.DEFINE_enum("by", "auto", BY, "How: compiled ahead of time, or by arithmetic on shapes.")
  flags.DEFINE_float("peak", None, "TFLOP/s of products, instead of the data sheet's.")
  flags.DEFINE_float("bandwidth", None, "GB/s of the memory, instead of the data sheet's.")
  flags.DEFINE_bool("tensors", False, "List every parameter: shape, sharding, bytes per device.")
  flags.DEFINE_bool("json", False, "Print JSON instead of the page.")
  flags.DEFINE_string("out", None, "Also write the JSON to this file.")


def main() -> None:
  if not FLAGS.devices:
    raise UserError(f"--devices=NAME is needed: {known()}.")
  target = as_measured(target_of(FLAGS.devices), FLAGS.peak, FLAGS.bandwidth)
  if FLAGS.out and Path(FLAGS.out).exists():
    raise UserError(f"{FLAGS.out} already exists; name another file with --out.")
  if FLAGS.out and not Path(FLAGS.out).parent.is_dir():
    raise UserError(f"--out={FLAGS.out} was given, and its folder is not there; make it first.")
  without_accelerator(target)
  if target.device.platform == "cpu":
    keep_compilations(default_cache())
  else:  # a program for devices that are not there cannot be read back
    jax.config.update("jax_enable_compilation_cache", False)
  with contextlib.redirect_stdout(sys.stderr):  # models say what they choose
    experiment, record = chosen_experiment(FLAGS.experiment, DEFAULT, FLAGS.budget, FLAGS.set, None)
    name = f"{record['reference']} ({FLAGS.budget})"
    made = plan(name, experiment, target, FLAGS.by)
  document = json.dumps(made.document(), indent=2)
  if FLAGS.out:
    Path(FLAGS.out).write_text(document + "\n")
  print(document if FLAGS.json else page(made, FLAGS.tensors))


def without_accelerator(target: Target) -> None:
  """Keeps this process off the machine's accelerators, and gives it simulated devices."""
  with contextlib.suppress(RuntimeError):  # JAX has its devices already
    jax.config.update("jax_platforms", "cpu")
    if target.device.platform == "cpu":
      jax.config.update("jax_num_cpu_devices", target.count)


if __name__ == "__main__":
  cli.run(main)
