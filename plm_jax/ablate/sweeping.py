"""A paper's table, run: every arm with every seed, pretraining and then evaluation.

    table, plan, experiments = planned("experiments/bert.py:table_6", budget="smoke")
    sweep(plan, experiments, Path("sweeps/table_6"))

The same call resumes a stopped or killed sweep. `python -m plm_jax.sweep` is the command.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path

from plm_jax import cli, overrides
from plm_jax.ablate import launch
from plm_jax.ablate.plan import ROOT, Evaluation, PlannedRun, SweepPlan, claim, is_done
from plm_jax.ablate.table import Arm, Table
from plm_jax.data.corpora import cache_folder
from plm_jax.data.preparation import prepare
from plm_jax.errors import UserError
from plm_jax.evaluation.minimal_pairs import pair_files, read_minimal_pairs
from plm_jax.experiment import Budget, Experiment
from plm_jax.runs import teacher_of
from plm_jax.train.workdir import lock


def sweep(
  plan: SweepPlan,
  experiments: dict[str, Experiment],
  out: Path,
  arms: list[str] | None = None,
  jobs: int = 1,
  launcher: str = "local",
) -> tuple[SweepPlan, list[PlannedRun] | None]:
  """Runs the arms that are not done yet (default: all). Returns the plan in `out`, which may have
  more seeds from before, and the failed runs; None for them if the launcher only submits runs."""
  if launcher == "ray":
    launch.import_ray()  # before any text is prepared
  with lock(out, "sweep", "--out"):
    plan = claim(out, plan)
    runs = [run for run in plan.runs(arms) if not is_done(out, run, plan)]
    for arm in {run.arm for run in runs}:  # a distillation needs a finished teacher
      teacher_of(experiments[arm], plan.budget)
    prepare_texts([experiments[run.arm] for run in runs], cache_folder(plan.cache))
    return plan, launch.LAUNCHERS[launcher](out, plan, runs, jobs) if runs else []


def planned(
  table: str | None,
  budget: Budget = "small",
  seeds: int = 3,
  jobs: int = 1,
  arms: Sequence[str] = (),
  settings: Sequence[str] = (),
  blimp: str | None = None,
  blimp_pairs: int | None = None,
  finetune: str | None = None,
  cache: str | None = None,
) -> tuple[Table, SweepPlan, dict[str, Experiment]]:
  """The table, the sweep and its experiments, from the values of the command's flags (settings:
  those of `--set`). Errors: `UserError` for values with which no arm can be run."""
  if not table:
    raise UserError("--table=FILE:FUNCTION is needed; --list shows all tables.")
  if seeds < 1 or jobs < 1:
    raise UserError(f"--seeds={seeds} and --jobs={jobs} must both be at least 1.")
  for file in pair_files(Path(blimp)) if blimp else ():
    read_minimal_pairs(file)  # an error before anything is trained
  rows: Table = cli.load_experiment(table, returns="Table")()
  experiments = experiments_of(rows, budget, arms, settings)
  plan = SweepPlan(
    table=table,
    budget=budget,
    settings=tuple(settings),
    seeds=seeds,
    references={name: reference_of(rows.arm(name)) for name in experiments},
    steps={name: experiment.steps for name, experiment in experiments.items()},
    evaluation=Evaluation(blimp, blimp_pairs, finetune),
    cache=cache,
  )
  return rows, plan, experiments


def arms_of(table: Table, asked: Sequence[str]) -> list[str]:
  """The arms of `--arms`, each once, or all; `_` also matches `-`, as in a function's name."""
  names = [arm.name for arm in table.arms]
  meant = {name.replace("_", "-"): name for name in names} | {name: name for name in names}
  chosen = [meant.get(name) or meant.get(name.replace("_", "-"), name) for name in asked]
  return [table.arm(name).name for name in dict.fromkeys(chosen)] or names


def arm_lines(table: Table) -> str:
  """The arms of a table with their published numbers, a line each, as `--list` shows them."""
  width = max(len(arm.name) for arm in table.arms)
  return "\n".join(f"  {arm.name:{width}}  {arm.numbers}".rstrip() for arm in table.arms)


def experiments_of(
  table: Table, budget: Budget, arms: Sequence[str], settings: Sequence[str]
) -> dict[str, Experiment]:
  """Arm -> experiment, without arms that `--set` does not fit, an error if --arms names one."""
  experiments, refused = {}, {}
  for arm in table.arms:
    try:
      experiments[arm.name] = overrides.apply(arm.experiment(budget), settings)
    except UserError as error:
      refused[arm.name] = error
  for name in arms_of(table, arms):
    if name in refused:
      others = f" (--arms={','.join(experiments)} runs the others)" if experiments else ""
      raise UserError(f"arm {name}: {refused[name]}{others}")
  return experiments


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
