"""The top of a report: the verdicts in plain sentences."""

import statistics
from collections import Counter

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Card, Folded, Grid, PageBlock, Text
from plm_jax.ablate.report_numbers import (
  cell,
  main_metrics,
  number,
  ranking,
  shown_tokens,
  tokens_read,
  trivial,
)
from plm_jax.ablate.table import AboveChance, AtChance
from plm_jax.ablate.verdict import ALPHA, SEEDS, Outcome, Verdict, lower_is_better

REASONS: dict[Outcome, str] = {
  "supported": "The seeds agree beyond their noise",
  "not supported": "The seeds agree on the opposite, beyond their noise",
  "undecided": "These seeds do not decide it",
}


OF_COUNTS: dict[Outcome, str] = {
  "supported": "On this text it is so",
  "not supported": "On this text it is the other way round",
  "undecided": "On this text they are equal",
}


def summary(measured: Measured) -> str:
  """The paragraph at the top: how many claims were decided, at which size, and the best arm."""
  if not measured.metrics:
    return "Nothing has been measured yet."
  return " ".join([*claims(measured), *best_arm(measured)])


def claims(measured: Measured) -> list[str]:
  """Sentences on the number of claims, their verdicts, and the size of the runs."""
  sizes = [tokens_read(config) for config in measured.configs.values()]
  size = " to ".join(dict.fromkeys((shown_tokens(min(sizes)), shown_tokens(max(sizes)))))
  seeds = measured.plan.seeds
  runs = f"{seeds} seed{'s' * (seeds != 1)} on {size} tokens a run"
  if not max(sizes):
    runs = "models that are counted, which no seed changes"
  total = len(measured.verdicts)
  if not total:
    return [f"The table makes no claim. Its arms were trained with {runs}."]
  outcomes = Counter(verdict.outcome for verdict in measured.verdicts)
  counts = ", ".join(f"{outcomes[name]} {name}" for name in REASONS if outcomes[name])
  sentences = [f"{total} claim{'s' * (total != 1)}, tested with {runs}: {counts}."]
  if unmeasured := sum(bool(missing_arms(measured, verdict)) for verdict in measured.verdicts):
    sentences.append(f"Of the undecided, {unmeasured} lack a measurement.")
  if outcomes["undecided"] > unmeasured:
    sentences.append("Undecided does not mean equal: more seeds or longer runs may decide.")
  return sentences


def best_arm(measured: Measured) -> list[str]:
  """Sentences on the first metric that compares arms: the best arm, the last, and the baseline;
  none where the arms were measured on different texts."""
  if len({arm.dial for arm in measured.arms}) > 1:
    return []
  arms_of = {metric: ranking(measured, metric) for metric in main_metrics(measured)}
  metric = next((metric for metric, arms in arms_of.items() if len(arms) > 1), None)
  if metric is None:
    return []
  best, last = arms_of[metric][0], arms_of[metric][-1]
  first, second = cell(measured, best, metric), cell(measured, last, metric)
  shown = f'By the mean {metric}, "{best}" is best ({first}) and "{last}" last ({second})'
  if metric not in measured.references:
    return [shown + "."]
  baseline = measured.references[metric]
  name = {"unigram": "a unigram model has", "chance": "chance is"}[trivial(metric)]
  sentences = [f"{shown}; {name} {number(baseline)}."]
  mean = statistics.fmean(measured.values(best, metric))
  if mean >= baseline if lower_is_better(metric) else mean <= baseline:
    sentences.append("No arm is better than that, so the verdicts say nothing about learning.")
  return sentences


def verdict_blocks(measured: Measured) -> list[PageBlock]:
  if not measured.verdicts:
    return []
  has_dial = any(arm.dial is not None for arm in measured.table.arms)
  usual = "of all pairs of arms on the same text" if has_dial else "of this table's"
  method = (
    "Two-sided Student's t tests over seeds, on the differences between arms of the same seed, at "
    f"level {ALPHA:g} for all claims together (Holm), with at least {SEEDS} seeds, and a standard "
    f"error no smaller than the median {usual}. A claim is decided if p is below the number "
    "that is needed. Positive means favour the claim; perplexities are compared by their "
    "logarithms. docs/ablation.md explains the verdicts."
  )
  cards = [
    Card(
      v.outcome,
      str(v.claim),
      sentence(measured, v),
      v.numbers
      if v.is_exact
      else f"{direction(v)}p = {v.p:.3g}, and at most {v.threshold:.3g} is needed",
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
  shown = ", ".join(f'"{arm}" {mean}' for arm, mean in means.items())
  if isinstance(claim, AtChance | AboveChance):
    chance = claim.chance if isinstance(claim.chance, float) else measured.references[claim.metric]
    shown += f", chance {number(chance)}"
  reasons = OF_COUNTS if verdict.is_exact else REASONS
  return f"{reasons[verdict.outcome]}: {shown}."


def direction(verdict: Verdict) -> str:
  """The side to which the seeds lean: the beginning of the numbers of a test."""
  return f"the difference speaks {verdict.side} the claim; " if verdict.side else ""


def missing_arms(measured: Measured, verdict: Verdict) -> list[str]:
  """The arms of a claim without its metric."""
  claim = verdict.claim
  return [arm for arm in claim.arms if not measured.values(arm, claim.metric)]
