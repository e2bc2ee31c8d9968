"""The measurements of a sweep, read from its directory: the content of a report."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax import cli
from plm_jax.ablate.plan import (
  CELL,
  PlannedRun,
  RunState,
  SweepPlan,
  read_plan,
  read_scores,
  state_of,
  workdir_of,
)
from plm_jax.ablate.table import Arm, Table
from plm_jax.ablate.verdict import SeedScores, Verdict, verdicts
from plm_jax.errors import UserError
from plm_jax.train.workdir import read_config

# These metrics come first, in this order.
HEADLINES = (
  *("mlm_perplexity", "pseudo_perplexity", "mlm_accuracy", "clm_perplexity"),
  *("seq2seq_perplexity", "nsp_accuracy", "sop_accuracy", "blimp"),
)


class Measured(NamedTuple):
  """A sweep's plan, table, scores and verdicts."""

  out: Path
  plan: SweepPlan
  table: Table
  scores: SeedScores  # only those measured on the same set
  records: dict[PlannedRun, dict[str, Any]]  # scores.json of every evaluated run
  configs: dict[PlannedRun, dict[str, Any]]
  states: dict[PlannedRun, RunState]
  references: dict[str, float]
  notes: list[str]
  verdicts: list[Verdict]

  @property
  def arms(self) -> list[Arm]:
    """The arms with a started run, or all arms if no run was started."""
    started = {run.arm for run in self.states}
    return [arm for arm in self.table.arms if arm.name in started]

  @property
  def done(self) -> int:
    """The number of runs that are measured."""
    return sum(state.phase == "done" for state in self.states.values())

  @property
  def left_out(self) -> list[str]:
    return [arm.name for arm in self.table.arms if arm not in self.arms]

  def values(self, arm: str, metric: str) -> list[float]:
    return [v[metric] for v in self.scores.get(arm, {}).values() if metric in v]

  @property
  def metrics(self) -> list[str]:
    """All measured metrics: headlines first, then by name."""
    names = {m for seeds in self.scores.values() for values in seeds.values() for m in values}
    return [m for m in HEADLINES if m in names] + sorted(names - set(HEADLINES))


def gather(out: Path, table: Table | None = None) -> Measured:
  """Reads a sweep. table: needed if it was made in Python. Errors: `UserError` if `out` holds none,
  or its table has changed."""
  plan = read_plan(out)
  if table is None and plan.table.startswith(CELL):
    raise UserError(
      f"the table of {out} was made in Python, and no file has it: plm_jax.report(SWEEP), with the "
      "result of plm_jax.sweep, writes its report"
    )
  table = table or cli.load_experiment(plan.table, returns="Table")()
  names = [arm.name for arm in table.arms]
  if unknown := [name for name in plan.references if name not in names]:
    raise UserError(
      f"{out} has runs of the arm {unknown[0]!r}, which {plan.table} no longer has; it has: "
      f"{', '.join(names)}"
    )
  runs = [run for run in plan.runs() if run.arm in names]
  records = {run: record for run in runs if (record := read_scores(out, run))}
  configs = {
    run: read_config(workdir_of(out, run))
    for run in runs
    if (workdir_of(out, run) / "config.json").exists()
  }
  scores, references, notes = comparable(records, table.arms)
  dials = {arm.name: arm.dial for arm in table.arms}
  counted = [arm for arm, steps in plan.steps.items() if not steps]
  states = {run: state_of(out, run, plan) for run in runs}
  begun = {run.arm for run, state in states.items() if state.phase != "waiting"}
  return Measured(
    out=out,
    plan=plan,
    table=table,
    scores=scores,
    records=records,
    configs=configs,
    states={run: state for run, state in states.items() if run.arm in begun or not begun},
    references=references,
    notes=notes,
    verdicts=verdicts(table.claims, scores, dials, counted=counted),
  )


def comparable(
  records: dict[PlannedRun, dict[str, Any]], arms: Sequence[Arm]
) -> tuple[dict[str, dict[int, dict[str, float]]], dict[str, float], list[str]]:
  """The scores of every run and of trivial baselines, and notes. A metric of a run is omitted,
  with a note, if it was measured on another set than in most runs of its dial. A baseline is
  omitted if it depends on the dial."""
  dials = {arm.name: arm.dial for arm in arms}
  kinds = {kind for record in records.values() for kind in record["sets"]}
  counts: dict[tuple[float | None, str], Counter[str]] = defaultdict(Counter)
  for run, record in records.items():
    for kind, digest in record["sets"].items():
      counts[dials[run.arm], kind][digest] += 1
  usual = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}
  scores: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in dials}
  references: dict[str, dict[float | None, float]] = defaultdict(dict)
  notes = {}
  for run, record in records.items():
    dial = dials[run.arm]
    unusual = {kind for kind, digest in record["sets"].items() if digest != usual[dial, kind]}

    def same(values, unusual=unusual):
      return {m: value for m, value in values.items() if kind_of(m, kinds) not in unusual}

    scores[run.arm][run.seed] = same(record["metrics"])
    for metric, value in same(record["references"]).items():
      references[metric][dial] = value
    for kind in sorted(unusual):
      notes[
        f"{run.arm}: `{kind}` was measured on another set (with another text, tokenizer or row "
        "length), so it is omitted here."
      ] = None
    for note in record["notes"]:
      notes[f"{run.arm}: {note}."] = None
  alike = {m: next(iter(x.values())) for m, x in references.items() if len({*x.values()}) == 1}
  return scores, alike, list(notes)


def kind_of(metric: str, kinds: set[str]) -> str | None:
  """The kind whose set a metric was measured on: the longest that its name begins with."""
  return max((kind for kind in kinds if metric.startswith(kind)), key=len, default=None)
