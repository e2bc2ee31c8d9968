"""Runs a paper's table: every arm with every seed, pretraining and then evaluation.

  python -m plm_jax.ablate.sweep --table=experiments/bert.py:table_6 --out=sweeps/table_6
  python -m plm_jax.ablate.sweep --list
  python -m plm_jax.ablate.sweep --table=... --budget=smoke --seeds=3 --jobs=2 --out=DIR
  python -m plm_jax.ablate.sweep --table=... --out=DIR --arms=no-nsp,base --set=steps=2000

The same command resumes a stopped or killed sweep. Then: python -m plm_jax.ablate.report DIR
"""

from __future__ import annotations

import fcntl
import inspect
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import flags

from plm_jax import cli, overrides
from plm_jax.ablate import launch
from plm_jax.ablate.plan import ROOT, Evaluation, PlannedRun, SweepPlan, claim, is_done
from plm_jax.ablate.table import Arm, Table
from plm_jax.data.corpora import cache_folder
from plm_jax.data.preparation import prepare
from plm_jax.errors import UserError
from plm_jax.evaluation.minimal_pairs import pair_files, read_minimal_pairs
from plm_jax.experiment import BUDGETS, Experiment
from plm_jax.runs import teacher_of

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("table", None, "FILE:FUNCTION of the table.")
  flags.DEFINE_enum("budget", "small", BUDGETS, "Scale: seconds, minutes, or as published.")
  flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, 2, ...")
  flags.DEFINE_string(
    "out", None, "Where the sweep is kept (default: sweeps/FILE_FUNCTION_BUDGET)."
  )
  flags.DEFINE_list("arms", [], "Only these arms, separated by commas (default: all).")
  flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE for all arms, for example steps=2000. Repeatable."
  )
  flags.DEFINE_integer("jobs", 1, "Number of runs at a time; they share the cores and the GPUs.")
  flags.DEFINE_enum("launcher", "local", launch.LAUNCHERS, "Who starts the runs.")
  flags.DEFINE_string("blimp", None, "A folder of BLiMP's .jsonl files to evaluate on.")
  flags.DEFINE_integer("blimp_pairs", None, "At most this many pairs of each of its files.")
  flags.DEFINE_string("finetune", None, "Fine-tune on these numbers of labels, such as 500,all.")
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_bool("list", False, "List all tables with their published numbers, and exit.")
  flags.DEFINE_bool("dry_run", False, "Show every command, run nothing.")


def main() -> int:
  # The runs need the accelerator; this process only reads experiments and prepares the text.
  jax.config.update("jax_platforms", "cpu")
  if FLAGS.list:
    for reference, line in cli.list_experiments("experiments", returns="Table"):
      print(f"{reference:45} {line}")
      print(arm_lines(cli.load_experiment(reference, returns="Table")()))
    return 0
  table, plan, experiments = planned(FLAGS)
  arms = arms_of(table, FLAGS.arms)
  out = Path(FLAGS.out or default_out(plan))
  runs = plan.runs(arms)
  print(heading(table, plan, experiments, runs, out), flush=True)
  if FLAGS.dry_run:
    for run in runs:
      print("", *plan.shown(out, run), sep="\n")
    return 0
  if FLAGS.launcher == "ray":
    launch.import_ray()  # before any text is prepared
  with held(out):
    plan = claim(out, plan)
    runs = [run for run in plan.runs(arms) if not is_done(out, run, plan)]
    for arm in {run.arm for run in runs}:  # a distillation needs a finished teacher
      teacher_of(experiments[arm], plan.budget)
    prepare_texts([experiments[run.arm] for run in runs], cache_folder(plan.cache))
    failed = launch.LAUNCHERS[FLAGS.launcher](out, plan, runs, FLAGS.jobs) if runs else []
    if failed is None:  # handed over
      return 0
  asked = plan.runs(arms)
  done = sum(is_done(out, run, plan) for run in asked)
  print(f"\n{done} of {len(asked)} runs are done")
  if done:
    print(f"next: python -m plm_jax.ablate.report {shlex.quote(str(out))}")
  return 1 if failed else 0


def planned(asked) -> tuple[Table, SweepPlan, dict[str, Experiment]]:
  """The table, the sweep and its experiments. asked: the flags, as attributes. Errors: `UserError`
  for flags with which no arm can be run."""
  if not asked.table:
    raise UserError("--table=FILE:FUNCTION is needed; --list shows all tables.")
  if asked.seeds < 1 or asked.jobs < 1:
    raise UserError(f"--seeds={asked.seeds} and --jobs={asked.jobs} must both be at least 1.")
  if asked.blimp:
    check_blimp(Path(asked.blimp))
  table: Table = cli.load_experiment(asked.table, returns="Table")()
  experiments = experiments_of(table, asked)
  plan = SweepPlan(
    table=asked.table,
    budget=asked.budget,
    settings=tuple(asked.set),
    seeds=asked.seeds,
    references={name: reference_of(table.arm(name)) for name in experiments},
    steps={name: experiment.steps for name, experiment in experiments.items()},
    evaluation=Evaluation(asked.blimp, asked.blimp_pairs, asked.finetune),
    cache=asked.cache,
  )
  return table, plan, experiments


def arms_of(table: Table, asked: list[str]) -> list[str]:
  """The arms of `--arms`, each once, or all; `_` also matches `-`, as in a function's name."""
  names = [arm.name for arm in table.arms]
  meant = {name.replace("_", "-"): name for name in names} | {name: name for name in names}
  chosen = [meant.get(name) or meant.get(name.replace("_", "-"), name) for name in asked]
  return [table.arm(name).name for name in dict.fromkeys(chosen)] or names


def arm_lines(table: Table) -> str:
  """The arms of a table with their published numbers, a line each, as `--list` shows them."""
  width = max(len(arm.name) for arm in table.arms)
  return "\n".join(f"  {arm.name:{width}}  {arm.numbers}".rstrip() for arm in table.arms)


def experiments_of(table: Table, asked) -> dict[str, Experiment]:
  """Arm -> experiment, without arms that `--set` does not fit, an error if --arms names one."""
  experiments, refused = {}, {}
  for arm in table.arms:
    try:
      experiments[arm.name] = overrides.apply(arm.experiment(asked.budget), asked.set)
    except UserError as error:
      refused[arm.name] = error
  for name in arms_of(table, asked.arms):
    if name in refused:
      others = f" (--arms={','.join(experiments)} runs the others)" if experiments else ""
      raise UserError(f"arm {name}: {refused[name]}{others}")
  return experiments


def check_blimp(folder: Path) -> None:
  """A `UserError` for files that an evaluation cannot read, before anything is trained."""
  for file in pair_files(folder):
    read_minimal_pairs(file)


def reference_of(arm: Arm) -> str:
  """`FILE:FUNCTION` by which run_pretrain.py finds the arm's experiment."""
  name = getattr(arm.experiment, "__name__", "")
  file = Path(inspect.getsourcefile(arm.experiment) or "") if name else Path()
  if file.is_relative_to(ROOT):
    file = file.relative_to(ROOT)
  if not name or name not in cli.experiments_of(str(file)):
    raise UserError(
      f"the arm {arm.name} must be given a public function of an experiment file that is annotated "
      f"to return Experiment, not {arm.experiment!r}"
    )
  return f"{file.as_posix()}:{name}"


def default_out(plan: SweepPlan) -> Path:
  file, _, function = plan.table.partition(":")
  return Path("sweeps") / f"{Path(file).stem}_{function}_{plan.budget}"


def heading(table: Table, plan: SweepPlan, experiments, runs: list[PlannedRun], out: Path) -> str:
  """The table, and the runs that are about to start."""
  width = max(map(len, experiments))
  lines = [
    f"{table.title} ({table.source})",
    f"budget {plan.budget}, {_many(plan.seeds, 'seed')}, {_many(len(runs), 'run')} in {out}",
    *(
      f"  {name:{width}}  {plan.references[name]}, {e.steps:,} steps of {e.global_batch} x "
      f"{e.data.length} tokens"
      for name, e in experiments.items()
      if name in {run.arm for run in runs}
    ),
  ]
  if wanted := flags_of_claims(table, plan):
    lines.append(
      f"some claims of this table need {' and '.join(wanted)}, and stay undecided without; they "
      "can be added later"
    )
  return "\n".join(lines)


def _many(number: int, noun: str) -> str:
  return f"{number} {noun}{'s' * (number != 1)}"


def flags_of_claims(table: Table, plan: SweepPlan) -> list[str]:
  """The flags without which some claim's metric is not measured."""
  metrics = {claim.metric for claim in table.claims}
  wanted = ["--blimp=FOLDER"] if "blimp" in metrics and not plan.evaluation.blimp else []
  labels = {m.split("_")[1] for m in metrics if m.startswith("finetune_")}
  missing = labels - {str(size or "all") for size in plan.evaluation.labels}
  if missing:
    wanted.append(f"--finetune={','.join(sorted(labels))}")
  return wanted


def prepare_texts(experiments: list[Experiment], cache: Path) -> None:
  """Reads, tokenises and stores every text once, before the runs start."""
  cli.load_module("data.installed_text")  # makes tfds:installed_text known
  texts = {repr((e.data.source, e.data.tokenizer, e.data.held_out)): e for e in experiments}
  for experiment in texts.values():
    prepare(experiment.data, cache)


@contextmanager
def held(out: Path) -> Iterator[None]:
  """Locks the directory, so that one sweep at a time works in it."""
  try:
    out.mkdir(parents=True, exist_ok=True)
    # Opened to append: in a folder that is then refused, `.lock` may be another program's file.
    lock = open(out / ".lock", "a")  # noqa: SIM115  held as long as the sweep
  except OSError as error:
    raise UserError(f"the directory {out} cannot be written: {error.strerror}") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another sweep is working in {out}; wait for it or take another --out"
      ) from None
    yield


if __name__ == "__main__":
  cli.run(main)
