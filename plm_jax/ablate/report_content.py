"""The content of a sweep's report, as blocks of a page (page.py)."""

import math
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from plm_jax import overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import (
  Card,
  Code,
  Folded,
  Grid,
  Heading,
  PageBlock,
  Picture,
  Points,
  Text,
)
from plm_jax.ablate.plan import PlannedRun, workdir_of
from plm_jax.ablate.table import AboveChance, Arm, AtChance
from plm_jax.ablate.verdict import ALPHA, SEEDS, Outcome, Verdict, lower_is_better
from plm_jax.ablate.view import duration
from plm_jax.config_tree import is_within
from plm_jax.train.workdir import read_records

MISSING = "missing"
UNSET = " Sizes in this paragraph are those without `--set`; the recipes below have the others."
WIDEST = 12  # columns of the main table, which fit a page of 1,200 pixels
REASONS: dict[Outcome, str] = {
  "supported": "The seeds agree beyond their noise",
  "not supported": "The seeds agree on the opposite, beyond their noise",
  "undecided": "These seeds do not decide it",
}


def report_blocks(measured: Measured, pictures: list[Picture], to: Path) -> list[PageBlock]:
  plan, table = measured.plan, measured.table
  done = sum(state.phase == "done" for state in measured.states.values())
  head = f"{table.source}. Budget `{plan.budget}`, {done} of {len(measured.states)} runs measured "
  total = f" of {len(table.arms)}" if measured.left_out else ""
  head += f"({len(measured.arms)}{total} arms, {plan.seeds} seed{'s' * (plan.seeds != 1)})."
  if plan.budget == "smoke":
    head += " **Runs of this budget test the software; their scores mean nothing.**"
  return [
    Heading(table.title, 1),
    Text(head),
    Heading("What to take from it"),
    Text(summary(measured)),
    *verdict_blocks(measured),
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


def summary(measured: Measured) -> str:
  """The paragraph at the top: how many claims were decided, at which size, and the best arm."""
  if not measured.metrics:
    return "Nothing has been measured yet."
  outcomes = Counter(verdict.outcome for verdict in measured.verdicts)
  sizes = sorted({size for run in measured.records if (size := tokens(measured.configs[run]))})
  size = " to ".join(dict.fromkeys((sizes[0], sizes[-1])))
  counts = ", ".join(f"{outcomes[name]} {name}" for name in REASONS if outcomes[name])
  claims = f"{len(measured.verdicts)} claim{'s' * (len(measured.verdicts) != 1)}"
  parts = [f"{claims}, tested with {measured.plan.seeds} seeds on {size} tokens a run"]
  parts[0] += f": {counts}." if counts else "; the table makes no claim."
  if unmeasured := sum(bool(missing_arms(measured, verdict)) for verdict in measured.verdicts):
    parts.append(f"Of the undecided, {unmeasured} lack a measurement.")
  if outcomes["undecided"] > unmeasured:
    parts.append("Undecided does not mean equal: more seeds or longer runs may decide.")
  best = {metric: ranking(measured, metric) for metric in main_metrics(measured)}
  metric = next((metric for metric, arms in best.items() if len(arms) > 1), None)
  if metric is not None:
    first, last = best[metric][0], best[metric][-1]
    shown = (
      f"By the mean {metric}, {first} is best ({cell(measured, first, metric)}) and {last} last "
    )
    shown += f"({cell(measured, last, metric)})"
    if metric in measured.references:
      name = {"unigram": "a unigram model has", "chance": "chance is"}[trivial(metric)]
      shown += f"; {name} {number(measured.references[metric])}"
    parts.append(shown + ".")
  return " ".join(parts)


def ranking(measured: Measured, metric: str) -> list[str]:
  """The arms with this metric, the best mean first."""
  means = {arm.name: measured.values(arm.name, metric) for arm in measured.arms}
  means = {arm: statistics.fmean(values) for arm, values in means.items() if values}
  return sorted(means, key=means.__getitem__, reverse=not lower_is_better(metric))


def trivial(metric: str) -> str:
  """The name of the trivial baseline of a metric."""
  return "unigram" if metric.startswith(("mlm", "clm", "seq2seq", "pseudo")) else "chance"


def verdict_blocks(measured: Measured) -> list[PageBlock]:
  if not measured.verdicts:
    return []
  method = (
    "Two-sided Student's t tests over seeds, on the differences between arms of the same seed, at "
    f"level {ALPHA:g} for all claims together (Holm), with at least {SEEDS} seeds, and a standard "
    "error no smaller than the median of this table's. A claim is decided if p is below the number "
    "that is needed. Positive means favour the claim; perplexities are compared by their "
    "logarithms. docs/ablation.md explains the verdicts."
  )
  cards = [
    Card(
      v.outcome, str(v.claim), sentence(measured, v), f"p = {v.p:.2g}; {v.threshold:.2g} is needed"
    )
    for v in measured.verdicts
  ]
  rows = [[str(v.claim), v.numbers] for v in measured.verdicts]
  test = [Text(method), Grid(("claim", "numbers"), rows, left=2)]
  return [*cards, Folded("How the claims were tested", test)]


def sentence(measured: Measured, verdict: Verdict) -> str:
  """A verdict in one plain sentence with the means of its arms."""
  claim = verdict.claim
  means = {arm: cell(measured, arm, claim.metric) for arm in claim.arms}
  if missing := missing_arms(measured, verdict):
    return f"{claim.metric} was not measured for {', '.join(missing)}."
  shown = ", ".join(f"{arm} {mean}" for arm, mean in means.items())
  if isinstance(claim, AtChance | AboveChance):
    chance = claim.chance if isinstance(claim.chance, float) else measured.references[claim.metric]
    shown += f", chance {number(chance)}"
  return f"{REASONS[verdict.outcome]}: {shown}."


def missing_arms(measured: Measured, verdict: Verdict) -> list[str]:
  """The arms of a claim without its metric."""
  claim = verdict.claim
  return [arm for arm in claim.arms if not measured.values(arm, claim.metric)]


def main_metrics(measured: Measured) -> list[str]:
  """The metrics of the main table: twins of published columns, then claims, then the usual ones
  that compare arms. A table below has all."""
  table, names = measured.table, measured.metrics
  twins = [metric for metric in table.beside.values() if metric in names]
  claimed = {claim.metric for claim in table.claims}
  # A loss is redundant with its perplexity, which papers print.
  twice = {m.replace("perplexity", "loss") for m in names if m.endswith("perplexity")}
  usual = ("mlm_perplexity", "mlm_accuracy", "clm_perplexity", "seq2seq_perplexity", "blimp")
  return twins + [
    m
    for m in names
    if m not in twice
    and m not in twins
    and (m in claimed or m in usual or (m.startswith("finetune") and m.endswith("accuracy")))
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
  rows = []
  for metric in metrics:
    best = "lower" if lower_is_better(metric) else "higher"
    reference = measured.references.get(metric)
    shown = "" if reference is None else f"{number(reference)} {trivial(metric)}"
    rows.append([f"`{metric}`", best, *(cell(measured, arm, metric) for arm in arms), shown])
  main = main_metrics(measured)
  seeds = [
    [arm, str(seed), *(number(v[m]) if m in v else "–" for m in main)]
    for arm in arms
    for seed, v in sorted(measured.scores[arm].items())
  ]
  return [
    Grid(("metric", "better", *arms, "unigram or chance"), rows, left=2),
    Folded("Every seed", [Grid(("arm", "seed", *main), seeds)]),
  ]


def cell(measured: Measured, arm: str, metric: str) -> str:
  """`3.21 ± 0.04`, with the number of seeds if some are missing."""
  values = measured.values(arm, metric)
  if not values:
    evaluated = any(run.arm == arm for run in measured.records)
    return "–" if evaluated else MISSING
  mean = statistics.fmean(values)
  shown = number(mean)
  if len(values) > 1:
    shown += f" ± {number(statistics.stdev(values), like=mean)}"
  if len(values) < measured.plan.seeds:
    shown += f" ({len(values)})"
  return shown


def number(value: float, like: float | None = None) -> str:
  """Four decimals below 10, fewer above; `like`: with the decimals of that number."""
  if not math.isfinite(value):
    return str(value)
  size = abs(value if like is None else like)
  return f"{value:.{1 if size >= 100 else 2 if size >= 10 else 4}f}"


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
        tokens(measured.configs[runs[0]]) if runs else MISSING,
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


def tokens(config: dict[str, Any]) -> str:
  experiment = overrides.from_json(config["experiment"])
  count = experiment.steps * experiment.global_batch * experiment.data.length
  return f"{count / 1e6:,.1f}M"


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
  rows += [[arm.name, differences(first, used[arm.name])] for arm in arms[1:]]
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
  return [
    Code(shlex.join(sweep) + "\n" + shlex.join(report)),
    Folded(f"The {len(every)} commands of the sweep, two for each run", [Code("\n".join(every))]),
  ]
