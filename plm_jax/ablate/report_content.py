"""The content of a sweep's report, as blocks of a page (page.py)."""

import dataclasses
import shlex
import statistics
from collections import Counter
from pathlib import Path

from plm_jax import overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Code, Folded, Grid, Heading, PageBlock, Picture, Points, Text
from plm_jax.ablate.plan import PlannedRun, workdir_of
from plm_jax.ablate.report_numbers import (
  MISSING,
  cell,
  main_metrics,
  number,
  shown_tokens,
  tokens_read,
  trivial,
)
from plm_jax.ablate.report_verdicts import summary, verdict_blocks
from plm_jax.ablate.table import Arm
from plm_jax.ablate.verdict import lower_is_better
from plm_jax.ablate.view import duration
from plm_jax.config_tree import is_within
from plm_jax.train.workdir import read_records

UNSET = (
  " `--set` changed some sizes that this paragraph names: the recipes below have those of the runs."
)
WIDEST = 12  # columns of the main table, which fit a page of 1,200 pixels


def report_blocks(measured: Measured, pictures: list[Picture], to: Path) -> list[PageBlock]:
  plan, table = measured.plan, measured.table
  counts = f"{measured.done} of {len(measured.states)}"
  head = f"{table.source}. Budget `{plan.budget}`, {counts} runs measured "
  total = f" of {len(table.arms)}" if measured.left_out else ""
  head += f"({len(measured.arms)}{total} arms, {plan.seeds} seed{'s' * (plan.seeds != 1)})."
  if plan.budget == "smoke":
    head += " **Runs of this budget test the software; their scores mean nothing.**"
  return [
    Heading(table.title, 1),
    Text(head),
    Heading("What to take from it"),
    *([Text(f"**The question.** {table.question}")] if table.question else []),
    Text(summary(measured)),
    *verdict_blocks(measured),
    *(table.blocks(measured, to) if table.blocks else ()),
    Heading("Published and measured"),
    *([Text(table.caveat + (UNSET if plan.settings else ""))] if table.caveat else []),
    *table_blocks(measured),
    *pictures,
    Heading("All measured numbers"),
    *numbers_blocks(measured),
    Heading("Cost"),
    *cost_blocks(measured),
    Heading("Recipes"),
    *recipe_blocks(measured),
    Heading("Commands", 3),
    *command_blocks(measured, to),
  ]


def table_blocks(measured: Measured) -> list[PageBlock]:
  """The paper's columns, each with the measured metric of its kind, then the other metrics. A
  column that is empty for every arm is left out. Published columns without a measured twin are
  folded where the table would be too wide."""
  table, arms, metrics = measured.table, measured.arms, main_metrics(measured)
  columns: list[tuple[str, str]] = []  # (published or measured, name)
  for column in table.columns:
    if any(column in arm.published for arm in measured.arms):
      columns.append(("published", column))
    if table.beside.get(column) in metrics:
      columns.append(("measured", table.beside[column]))
  paired = [name for kind, name in columns if kind == "measured"]
  columns += [("measured", metric) for metric in metrics if metric not in paired]
  alone = [c for c in columns if c[0] == "published" and table.beside.get(c[1]) not in metrics]
  if len(columns) <= WIDEST or len(alone) == len(columns):
    alone = []
  columns = [column for column in columns if column not in alone]

  def grid(columns: list[tuple[str, str]]) -> Grid:
    rows = [[arm.name, *(_entry(measured, arm, *column) for column in columns)] for arm in arms]
    return Grid(["arm", *(f"{name}, {kind}" for kind, name in columns)], rows)

  main = grid(columns)
  shown = [name for kind, name in columns if kind == "measured" and name in measured.references]
  if shown:
    trivials = [measured.references.get(name) if name in shown else None for _, name in columns]
    label = " or ".join(dict.fromkeys(map(trivial, shown)))
    main.rows.append([label, *("" if value is None else number(value) for value in trivials)])
  legend = "Mean ± standard deviation over seeds; in brackets, their number if some are missing. "
  legend += "Perplexities and losses: lower is better; all other metrics: higher. "
  legend += "docs/ablation.md defines the metrics."
  notes = [f"{arm.name}: {arm.note}." for arm in measured.arms if arm.note]
  if measured.left_out:
    notes.append(f"Not run: {', '.join(measured.left_out)}.")
  notes += [*measured.notes, *missing_notes(measured)]
  rest = [Folded("Published columns that are not measured here", [grid(alone)])] if alone else []
  return [main, Text(legend), *rest, *([Points(notes)] if notes else [])]


def _entry(measured: Measured, arm: Arm, kind: str, name: str) -> str:
  if kind == "published":
    return str(arm.published.get(name, ""))
  return cell(measured, arm.name, name)


def missing_notes(measured: Measured) -> list[str]:
  """Why a run has no numbers."""
  notes = []
  for run, state in measured.states.items():
    if run not in measured.records:
      steps = measured.plan.steps[run.arm]
      why = f" ({state.why})" if state.why else ""
      # A report cannot know whether a process is still working on the run.
      phase = "not finished" if state.phase == "stopped" else state.phase
      notes.append(f"{run} is {MISSING}: {phase} at step {state.step:,} of {steps:,}{why}.")
  return notes


def numbers_blocks(measured: Measured) -> list[PageBlock]:
  """Every metric of every arm, and folded the metrics of the main table for every seed."""
  arms = [arm.name for arm in measured.arms]
  metrics = [m for m in measured.metrics if not m.endswith("_majority")]
  if not metrics:
    return [Text("Nothing has been measured yet.")]
  columns = [
    ["metric", *(f"`{metric}`" for metric in metrics)],
    ["better", *("lower" if lower_is_better(metric) else "higher" for metric in metrics)],
    *([arm, *(cell(measured, arm, metric) for metric in metrics)] for arm in arms),
    ["unigram or chance", *(_baseline(measured, metric) for metric in metrics)],
  ]
  # The longer side goes down the page.
  rows = columns if len(arms) > len(metrics) else [list(row) for row in zip(*columns)]
  main = main_metrics(measured)
  seeds = [
    [arm, str(seed), *(number(v[m]) if m in v else "–" for m in main)]
    for arm in arms
    for seed, v in sorted(measured.scores[arm].items())
  ]
  return [
    Grid(rows[0], rows[1:], left=1 if rows is columns else 2),
    Folded("Every seed", [Grid(("arm", "seed", *main), seeds)]),
  ]


def _baseline(measured: Measured, metric: str) -> str:
  if metric not in measured.references:
    return ""
  return f"{number(measured.references[metric])} {trivial(metric)}"


def cost_blocks(measured: Measured) -> list[PageBlock]:
  rows, hardware, software = [], Counter(), Counter()
  for arm in measured.arms:
    runs = [run for run in measured.configs if run.arm == arm.name]
    seconds = [trained_seconds(measured, run) for run in runs if run in measured.records]
    parameters = {record["parameters"] for run, record in measured.records.items() if run in runs}
    rows.append(
      [
        arm.name,
        f"{parameters.pop():,}" if parameters else MISSING,
        f"{measured.plan.steps.get(arm.name, 0):,}",
        shown_tokens(tokens_read(measured.configs[runs[0]])) if runs else MISSING,
        duration(statistics.fmean(seconds)) if seconds else MISSING,
        str(len(seconds)),
      ]
    )
    for run in runs:
      versions = dict(measured.configs[run]["versions"])
      hardware[versions.pop("platform")] += 1
      software[", ".join(f"{name} {version}" for name, version in versions.items())] += 1
  header = ("arm", "parameters", "steps", "tokens read", "wall time of a run", "runs")
  total = sum(trained_seconds(measured, run) for run in measured.configs)
  notes = [
    f"{duration(total)} of training, summed over all runs; runs that were trained at the same time "
    "share a machine, which makes each of them slower",
    *(f"{count} runs on {name}" for name, count in hardware.items()),
    *software,
  ]
  return [Grid(header, rows), Points(notes)]


def trained_seconds(measured: Measured, run: PlannedRun) -> float:
  records = read_records(workdir_of(measured.out, run) / "timing.jsonl")
  return sum(record["seconds"] for record in records)


def recipe_blocks(measured: Measured) -> list[PageBlock]:
  """The differences of the arms from each other, and from the published recipes."""
  used = {
    arm.name: overrides.from_json(measured.configs[run]["experiment"])
    for arm in measured.arms
    for run in [PlannedRun(arm.name, 0)]
    if run in measured.configs
  }
  if not used:
    return [Text("No run has started yet.")]
  arms = [arm for arm in measured.arms if arm.name in used]
  first = used[arms[0].name]
  rows = [[arms[0].name, "(the others are compared with it)"]]
  for arm in arms[1:]:
    start, experiment = measured.plan.starts.get(arm.name), used[arm.name]
    if start:  # with the tokenizer of that run
      data = dataclasses.replace(experiment.data, tokenizer=used[arms[0].name].data.tokenizer)
      experiment = dataclasses.replace(experiment, data=data)
    goes_on = f"goes on from {start}; " if start else ""
    rows.append([arm.name, goes_on + differences(first, experiment)])
  blocks: list[PageBlock] = [Grid(("arm", "differs in"), rows, left=2)]
  if measured.plan.budget != "paper":
    changed = {arm.name: changes(arm.experiment("paper"), used[arm.name]) for arm in arms}
    shared = [c for c in changed[arms[0].name] if all(c in fields for fields in changed.values())]
    rest = [[arm, *c] for arm, fields in changed.items() for c in fields if c not in shared]
    inside: list[PageBlock] = []
    if shared:
      inside += [Text("In all arms:"), Grid(("field", "published", "here"), shared, left=3)]
    if rest:
      inside += [Text("In some arms:"), Grid(("arm", "field", "published", "here"), rest, left=4)]
    line = f"{len(shared) + len(rest)} overridden fields of the published recipes"
    blocks.append(Folded(line, inside or [Text("None.")]))
  return blocks


# Not part of a recipe: where a run is computed, and when it reports.
_APART = ("seed", "mesh", "compute", "schedule", "data.workers", "model.vocab_size")


def changes(published, used) -> list[list[str]]:
  return [
    [f"`{path}`", overrides.show(old), overrides.show(new)]
    for path, old, new in overrides.diff(used, published)
    if not is_within(path, _APART)
  ]


def differences(first, second) -> str:
  fields = [f"{path} {new} (not {old})" for path, old, new in changes(first, second)]
  return "; ".join(fields) or "nothing: both have the same recipe"


def command_blocks(measured: Measured, to: Path) -> list[PageBlock]:
  plan = measured.plan
  sweep = [
    *("python", "-m", "plm_jax.sweep", f"--table={plan.table}", f"--budget={plan.budget}"),
    *(f"--seeds={plan.seeds}", f"--out={measured.out}"),
    *([f"--arms={','.join(arm.name for arm in measured.arms)}"] if measured.left_out else []),
    *(f"--set={setting}" for setting in plan.settings),
    *plan.evaluation.flags(),
  ]
  report = ["python", "-m", "plm_jax.report", str(measured.out), f"--to={to}"]
  every = [line for run in measured.states for line in plan.shown(measured.out, run)]
  typed = Code(shlex.join(sweep) + "\n" + shlex.join(report))
  return [
    Text("The table was made in Python: plm_jax.sweep(table).") if plan.is_of_cell else typed,
    Folded(f"The {len(every)} commands of the sweep, two for each run", [Code("\n".join(every))]),
  ]
