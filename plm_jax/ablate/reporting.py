"""The report of a sweep: published and measured numbers in one table, a verdict on each claim.

`report(directory)` writes it; `python -m plm_jax.report` is the command.
"""

import contextlib
import json
import math
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from plm_jax import overrides
from plm_jax.ablate import plots
from plm_jax.ablate.gathering import HEADLINES, Measured, gather
from plm_jax.ablate.page import (
  Code,
  Grid,
  Heading,
  PageBlock,
  Picture,
  Points,
  Text,
  markdown,
  page,
)
from plm_jax.ablate.plan import PlannedRun, workdir_of
from plm_jax.ablate.table import Table
from plm_jax.ablate.verdict import ALPHA, SEEDS, lower_is_better
from plm_jax.ablate.view import duration
from plm_jax.config_tree import is_within
from plm_jax.errors import UserError
from plm_jax.train.workdir import read_records, write_whole

MISSING = "missing"
UNSET = " Sizes in this paragraph are those without `--set`; the recipes below have the others."
FILES = ("report.md", "report.html", "curves.png", "metrics.png", "results.json")


def report(
  directory: str | Path, to: str | Path | None = None, table: Table | None = None
) -> tuple[Measured, list[Path]]:
  """Writes the report of a sweep (default: to DIR/report); returns its content and its files.
  table: needed if it was made in Python."""
  measured = gather(Path(directory), table)
  to = Path(to or measured.out / "report")
  claim_folder(to, measured)
  return measured, [to / name for name in write_report(measured, to)]


def claim_folder(to: Path, measured: Measured) -> None:
  """Makes the folder. Errors: `UserError` if it holds `FILES` of anything but this sweep."""
  try:
    to.mkdir(parents=True, exist_ok=True)
  except FileExistsError:
    raise UserError(f"--to={to} is a file; a report needs a folder") from None
  existing = [name for name in FILES if (to / name).exists()]
  if not existing:
    return
  before = {}
  with contextlib.suppress(OSError, ValueError):
    before = json.loads((to / "results.json").read_text())
  plan = measured.plan
  sweep = {"table": plan.table, "budget": plan.budget, "settings": list(plan.settings)}
  if not isinstance(before, dict) or sweep != {name: before.get(name) for name in sweep}:
    raise UserError(
      f"{to / existing[0]} is not from a report of this sweep; take another folder by --to, or "
      "move it away"
    )


def write_report(measured: Measured, to: Path) -> list[str]:
  """Writes all files; returns their names."""
  # First: if this process is killed, a later one recognises the folder by this file.
  write_whole(to / "results.json", json.dumps(record_of(measured), indent=1) + "\n")
  pictures = []
  if panels := curves(measured):
    plots.draw_learning_curves(panels, [arm.name for arm in measured.arms], to / "curves.png")
    caption = "Loss against steps. Lines: mean of the seeds; bands: their range."
    pictures.append(Picture(to / "curves.png", caption))
  drawn = (m for m in measured.metrics if not m.endswith(("_majority", "_loss")))
  if shown := [m for m in drawn if not m.startswith("blimp/")]:
    names = [arm.name for arm in measured.arms]
    plots.draw_metrics(measured.scores, shown, names, measured.references, to / "metrics.png")
    caption = "Dots: seeds; bars: their mean; dashed line, if within the axis: trivial baseline."
    pictures.append(Picture(to / "metrics.png", caption))
  blocks = report_blocks(measured, pictures, to)
  write_whole(to / "report.md", markdown(blocks))
  write_whole(to / "report.html", page(measured.table.title, blocks))
  return ["report.md", "report.html", "results.json", *(picture.path.name for picture in pictures)]


def curves(measured: Measured) -> dict[str, plots.Curves]:
  """Panel -> arm -> seed -> (step, loss): training and held-out losses of every objective."""
  panels: dict[str, dict[str, dict[int, list]]] = {}
  for run in measured.states:
    for record in read_records(workdir_of(measured.out, run) / "metrics.jsonl"):
      for name, value in record.items():
        if name.endswith("/loss"):
          split = "training" if record["split"] == "train" else "held out"
          title = f"{name.removesuffix('/loss').upper()} loss, {split}"
          seeds = panels.setdefault(title, {}).setdefault(run.arm, {})
          seeds.setdefault(run.seed, []).append((record["step"], value))
  steps = {
    title: {step for seeds in arms.values() for curve in seeds.values() for step, _ in curve}
    for title, arms in panels.items()
  }
  return {title: panels[title] for title in sorted(panels) if len(steps[title]) > 2}


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
    *([Text(table.caveat + (UNSET if plan.settings else ""))] if table.caveat else []),
    Heading("Verdicts"),
    *verdict_blocks(measured),
    Heading("Published and measured"),
    *table_blocks(measured),
    *pictures,
    Heading("All measured numbers"),
    numbers_block(measured),
    Heading("Cost"),
    *cost_blocks(measured),
    Heading("Recipes"),
    *recipe_blocks(measured),
    Heading("Commands", 3),
    *command_blocks(measured, to),
  ]


def verdict_blocks(measured: Measured) -> list[PageBlock]:
  if not measured.verdicts:
    return [Text("The table makes no claim.")]
  rows = [
    [str(v.claim), f"**{v.outcome}**", v.numbers, f"{v.p:.2g} ({v.threshold:.2g})"]
    for v in measured.verdicts
  ]
  method = (
    "Two-sided Student's t tests over seeds, on the differences between arms of the same seed, at "
    f"level {ALPHA:g} for all claims together (Holm), with at least {SEEDS} seeds, and a standard "
    "error no smaller than the median of this table's. A claim is decided if p is below the number "
    "in brackets. Positive means favour the claim; perplexities are compared by their logarithms. "
    "docs/ablation.md explains the verdicts; undecided is not the same as equal."
  )
  return [Grid(("claim", "verdict", "numbers", "p (needed)"), rows, left=3), Text(method)]


def table_blocks(measured: Measured) -> list[PageBlock]:
  """The paper's columns, each with the measured metric of its kind, then the other metrics."""
  table = measured.table
  header, columns = ["arm"], []
  beside = [metric for metric in table.beside.values() if metric in measured.metrics]
  # A loss is redundant with its perplexity, which papers print.
  twice = {m.replace("perplexity", "loss") for m in measured.metrics if m.endswith("perplexity")}
  for column in table.columns:
    header.append(f"{column}, published")
    columns.append(lambda arm, column=column: str(arm.published.get(column, "")))
    if table.beside.get(column) in beside:
      header.append(f"{table.beside[column]}, measured")
      columns.append(lambda arm, m=table.beside[column]: cell(measured, arm.name, m))
  claimed = {claim.metric for claim in table.claims}
  for metric in measured.metrics:
    wanted = metric in HEADLINES or metric in claimed or metric.startswith("finetune")
    if wanted and metric not in beside and metric not in twice:
      header.append(f"{metric}, measured")
      columns.append(lambda arm, m=metric: cell(measured, arm.name, m))
  rows = [[arm.name, *(column(arm) for column in columns)] for arm in measured.arms]
  if measured.references:
    baselines = {f"{m}, measured": f"{number(v)}" for m, v in measured.references.items()}
    if any(name in baselines for name in header):
      rows.append(["baseline", *(baselines.get(name, "") for name in header[1:])])
  blocks: list[PageBlock] = [Grid(header, rows)]
  legend = "Mean ± standard deviation over seeds; in brackets, their number if some are missing. "
  legend += "Perplexities and losses: lower is better; all other metrics: higher. Baselines are "
  legend += "trivial (unigram, majority class, chance). docs/ablation.md defines the metrics."
  blocks.append(Text(legend))
  notes = [f"{arm.name}: {arm.note}." for arm in measured.arms if arm.note]
  if measured.left_out:
    notes.append(f"Not run: {', '.join(measured.left_out)}.")
  notes += [*measured.notes, *missing_notes(measured)]
  return [*blocks, *([Points(notes)] if notes else [])]


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


def numbers_block(measured: Measured) -> PageBlock:
  arms = [arm.name for arm in measured.arms]
  metrics = [m for m in measured.metrics if not m.endswith("_majority")]
  if not metrics:
    return Text("Nothing has been measured yet.")
  rows = []
  for metric in metrics:
    best = "lower" if lower_is_better(metric) else "higher"
    reference = measured.references.get(metric)
    shown = "" if reference is None else number(reference)
    rows.append([f"`{metric}`", best, *(cell(measured, arm, metric) for arm in arms), shown])
  return Grid(("metric", "better", *arms, "baseline"), rows, left=2)


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
    blocks.append(Heading("Overridden from the published recipe", 3))
    if shared:
      blocks += [Text("In all arms:"), Grid(("field", "published", "here"), shared, left=3)]
    rest = [[arm, *c] for arm, fields in changed.items() for c in fields if c not in shared]
    if not shared and not rest:
      blocks.append(Text("Nothing."))
    if rest:
      blocks += [Text("In some arms:"), Grid(("arm", "field", "published", "here"), rest, left=4)]
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
    Text("The sweep's commands, one pair for each run:"),
    Code("\n".join(every), folded=f"{len(every)} commands"),
  ]


def record_of(measured: Measured) -> dict[str, Any]:
  """The content of results.json: every number of the report."""
  return {
    "table": measured.plan.table,
    "title": measured.table.title,
    "budget": measured.plan.budget,
    "seeds": measured.plan.seeds,
    "settings": measured.plan.settings,
    "published": {arm.name: dict(arm.published) for arm in measured.arms},
    "states": {str(run): state.phase for run, state in measured.states.items()},
    "scores": measured.scores,
    "counts": next((r["counts"] for r in measured.records.values()), {}),
    "references": measured.references,
    "verdicts": [
      {
        "claim": str(v.claim),
        "test": f"{type(v.claim).__name__}({v.claim.metric}: {', '.join(v.claim.arms)})",
        "verdict": v.outcome,
        "p": v.p,
        "needed": v.threshold,
        "numbers": v.numbers,
      }
      for v in measured.verdicts
    ],
    "alpha": ALPHA,
    "notes": [*measured.notes, *missing_notes(measured)],
    "versions": [
      json.loads(text)
      for text in dict.fromkeys(json.dumps(c["versions"]) for c in measured.configs.values())
    ],
  }
