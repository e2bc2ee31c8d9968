"""The plan of a sweep: its arms at their budget and settings, checked, and what it will take."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from plm_jax import overrides
from plm_jax.ablate import launch
from plm_jax.ablate.evaluating import task_of
from plm_jax.ablate.here import resolved
from plm_jax.ablate.plan import CELL, Evaluation, PlannedRun, SweepPlan
from plm_jax.ablate.references import at_budget, reference_of, table_of
from plm_jax.ablate.table import Table
from plm_jax.budgets import AnyBudget, has_adam, of_rows
from plm_jax.errors import UserError
from plm_jax.evaluation.minimal_pairs import pair_files, read_minimal_pairs
from plm_jax.experiment import Experiment
from plm_jax.tasks.registry import TASKS
from plm_jax.train import estimate

TAGS = "probe_tag_accuracy"
MOST_RUNS = 10_000  # seeds, and jobs
SECONDS = 500_000  # tokens that take no longer: no time is estimated


def planned(
  table: str | Table | Callable[[], Table] | None,
  budget: AnyBudget = "small",
  seeds: int = 3,
  jobs: int = 1,
  arms: Sequence[str] = (),
  settings: Sequence[str] = (),
  cache: str | None = None,
  **evaluation: Any,
) -> tuple[Table, SweepPlan, dict[str, Experiment]]:
  """The table, the sweep and its experiments, from the values of the command's flags (settings:
  those of `--set`; evaluation: fields of `Evaluation`). table: FILE:FUNCTION, the function, or a
  table that was made in this process. Errors: `UserError` for values with which no arm can be run.
  """
  if not table:
    raise UserError("--table=FILE:FUNCTION is needed; --list shows all tables.")
  if seeds < 1 or jobs < 1:
    raise UserError(f"--seeds={seeds} and --jobs={jobs} must both be at least 1.")
  if max(seeds, jobs) > MOST_RUNS:
    raise UserError(f"--seeds={seeds} and --jobs={jobs} must both be at most {MOST_RUNS:,}.")
  measures = Evaluation(**evaluation)
  for kind, data in measures.parts.items():
    task_of(kind, data)
  for file in pair_files(Path(measures.blimp)) if measures.blimp else ():
    read_minimal_pairs(file)  # an error before anything is trained
  rows, name = table_of(table)
  experiments = experiments_of(rows, budget, arms, settings)
  references = {arm: reference_of(rows.arm(arm), name.startswith(CELL)) for arm in experiments}
  plan = SweepPlan(
    table=name,
    budget=budget,
    settings=tuple(settings),
    seeds=seeds,
    references=references,
    steps={name: experiment.steps for name, experiment in experiments.items()},
    evaluation=measures,
    cache=cache,
    starts={arm.name: arm.start for arm in rows.arms if arm.start and arm.name in experiments},
    own={a: [*own] for a in experiments if (own := rows.settings_of(rows.arm(a), budget))},
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
  table: Table, budget: AnyBudget, arms: Sequence[str], settings: Sequence[str]
) -> dict[str, Experiment]:
  """Arm -> experiment, without arms that `--set` does not fit, an error if --arms names one."""
  experiments, refused = {}, {}
  for arm in table.arms:
    try:
      experiments[arm.name] = overrides.apply(at_budget(table, arm, budget), settings)
    except UserError as error:
      refused[arm.name] = error
  for name in arms_of(table, arms):
    if name in refused:
      others = f" (--arms={','.join(experiments)} runs the others)" if experiments else ""
      raise UserError(f"arm {name}: {refused[name]}{others}")
  check_differ(table, budget, arms_of(table, arms), experiments)
  return experiments


def check_differ(
  table: Table, budget: AnyBudget, names: list[str], experiments: dict[str, Experiment]
) -> None:
  """A `UserError` if settings have made arms equal that differ without them, or differ in more than
  their rows do."""
  arms = [table.arm(name) for name in names]
  rows = {a.name: overrides.apply(a.experiment(of_rows(budget)), a.settings) for a in arms}
  for first, second in itertools.combinations(names, 2):
    optims = [rows[name].optim for name in (first, second) if has_adam(rows[name])]
    if budget == "laptop" and len({type(optim) for optim in optims}) == 2:
      raise UserError(
        f"the arms {first} and {second} differ in their optimiser, which --budget=laptop replaces "
        "by Muon; give --budget=small, with settings of your own"
      )
    trained = {name: as_trained(experiments[name]) for name in names}
    if trained[first] == trained[second] and rows[first] != rows[second]:
      kept = {repr(trained[name]): name for name in reversed(names)}  # the first of each
      others = ",".join(name for name in names if name in kept.values())
      raise UserError(
        f"the arms {first} and {second} are the same experiment with the settings of this budget "
        f"and of --set; --arms={others} runs the others"
      )


def as_trained(experiment: Experiment) -> Experiment:
  """With the numbers to which the length of its rows rounds those of its objectives."""
  length = experiment.data.length
  objectives = (o.rounded(length) if hasattr(o, "rounded") else o for o in experiment.objectives)
  return dataclasses.replace(experiment, objectives=tuple(objectives))


def default_out(plan: SweepPlan) -> Path:
  file, _, function = plan.table.partition(":")
  title = plan.table.removeprefix(CELL) if plan.table.startswith(CELL) else ""
  name = re.sub(r"\W+", "_", title.lower()).strip("_") or f"{Path(file).stem}_{function}"
  return Path("sweeps") / f"{name}_{plan.budget}"


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


def time_needed(
  table: Table, plan: SweepPlan, runs: list[PlannedRun], experiments: dict[str, Experiment]
) -> str:
  """The estimated time of all runs, and how to spend less; empty for runs of seconds, and where
  this process cannot know: runs on an accelerator, and students of a teacher that is missing."""
  counts = Counter(run.arm for run in runs)
  arms = {arm: experiments[arm] for arm in counts}
  tokens = sum(counts[a] * e.steps * e.global_batch * e.data.length for a, e in arms.items())
  if tokens < SECONDS or (jax.default_backend() == "cpu" and launch.gpus()):
    return ""
  try:
    arms = {arm: resolved(plan, PlannedRun(arm, 0), table.arm(arm))[0] for arm in counts}
  except UserError:
    return ""
  rate = estimate.product_rate()
  steps = {arm: estimate.counted(experiment, rate) for arm, experiment in arms.items()}
  seconds = sum(counts[arm] * arms[arm].steps * step.seconds for arm, step in steps.items())
  how = next(iter(steps.values())).how
  told = estimate.sentence(seconds, how, plan.budget)
  return f"{tokens / 1e6:,.0f}M tokens, {told}, or fewer --arms and --seeds"


def _many(number: int, noun: str) -> str:
  return f"{number} {noun}{'s' * (number != 1)}"


def flags_of_claims(table: Table, plan: SweepPlan) -> list[str]:
  """The flags without which some claim's metric is not measured."""
  metrics, asked = {claim.metric for claim in table.claims}, plan.evaluation
  wanted = ["--blimp=FOLDER"] if "blimp" in metrics and not asked.blimp else []
  for flag, part, known in (("finetune", 1, asked.labels), ("probe", 2, asked.probe_labels)):
    parts = [m.split("_") for m in metrics if m.startswith(f"{flag}_") and m != TAGS]
    labels = {words[part] for words in parts}
    if labels - {str(size or "all") for size in known}:
      wanted.append(f"--{flag}={','.join(sorted(labels))}")
  kinds = {kind for kind in TASKS if any(m.startswith(f"{kind}_") for m in metrics)}
  if missing := sorted(kinds - {*asked.parts}):
    parts = (kind if TASKS[kind]().source else f"{kind}:DATA" for kind in missing)
    wanted.append(f"--tasks={','.join(parts)}")
  if TAGS in metrics and not asked.tags:
    wanted.append("--tags=TRAIN,TEST")
  if metrics & {"gap_loss", "gap_bits_per_byte"} and not asked.gaps:
    wanted.append("--gaps")
  return wanted
