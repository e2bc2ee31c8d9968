"""The top of a report: the verdicts in plain sentences."""

from collections import Counter

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Card, Folded, Grid, PageBlock, Text
from plm_jax.ablate.report_numbers import cell, main_metrics, number, ranking, tokens, trivial
from plm_jax.ablate.table import AboveChance, AtChance
from plm_jax.ablate.verdict import ALPHA, SEEDS, Outcome, Verdict

REASONS: dict[Outcome, str] = {
  "supported": "The seeds agree beyond their noise",
  "not supported": "The seeds agree on the opposite, beyond their noise",
  "undecided": "These seeds do not decide it",
}


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
      v.outcome,
      str(v.claim),
      sentence(measured, v),
      f"p = {v.p:.3g}; at most {v.threshold:.3g} is needed",
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
