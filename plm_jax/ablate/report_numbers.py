"""The numbers of a report as text, and the choice of the metrics of its main table."""

import math
import statistics
from typing import Any

from plm_jax import overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.verdict import lower_is_better

MISSING = "missing"


def main_metrics(measured: Measured) -> list[str]:
  """The metrics of the main table: twins of published columns, then claims, then the usual ones
  that compare arms. A table below has all."""
  table, names = measured.table, measured.metrics
  twins = [metric for metric in table.beside.values() if metric in names]
  claimed = {claim.metric for claim in table.claims}
  # A loss is redundant with its perplexity, which papers print.
  twice = {m.replace("perplexity", "loss") for m in names if m.endswith("perplexity")}
  usual = ("mlm_perplexity", "mlm_accuracy", "clm_perplexity", "seq2seq_perplexity", "blimp")
  usual += ("tag_accuracy", "tag_f1", "answer_f1")
  texts = {m.split("/")[0] for m in names if m.endswith("_loss") and "/" in m}
  usual += tuple(f"{text}/{m}" for text in texts for m in usual)
  further = [
    m
    for m in names
    if m not in twice
    and m not in twins
    and (m in claimed or m in usual or (m.startswith("finetune") and m.endswith("accuracy")))
  ]
  # What a single arm has (losses of its own rows) compares nothing, and is shown in want of others.
  compared = [m for m in further if m in claimed or len(ranking(measured, m)) > 1]
  return twins + (compared or further)


def ranking(measured: Measured, metric: str) -> list[str]:
  """The arms with this metric, the best mean first."""
  means = {arm.name: measured.values(arm.name, metric) for arm in measured.arms}
  means = {arm: statistics.fmean(values) for arm, values in means.items() if values}
  return sorted(means, key=means.__getitem__, reverse=not lower_is_better(metric))


def trivial(metric: str) -> str:
  """The name of the trivial baseline of a metric."""
  kind = metric.rpartition("/")[2]
  return "unigram" if kind.startswith(("mlm", "clm", "seq2seq", "pseudo")) else "chance"


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


def tokens_read(config: dict[str, Any]) -> int:
  """The number of tokens that a run of this config.json reads."""
  experiment = overrides.from_json(config["experiment"])
  return experiment.steps * experiment.global_batch * experiment.data.length


def shown_tokens(count: int) -> str:
  return f"{count / 1e6:,.1f}M" if count >= 100_000 else f"{count:,}"
