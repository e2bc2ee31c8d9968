"""Do two fine-tuned models differ on the same examples? McNemar's test and the paired bootstrap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plm_jax.tasks.examples import Examples, Prediction
from plm_jax.tasks.task import Task

RESAMPLES = 1000
MCNEMAR = "McNemar's exact test"
LEVEL = 0.95  # of confidence intervals


class Difference(NamedTuple):
  """A metric of two models on the same examples.

  low, high: the 95% confidence interval of `b - a`, from resampled examples. p: the probability of
  a difference at least as large between equal models, by the test named `test`. only_a, only_b: the
  numbers of examples that one model alone has right.
  """

  metric: str
  a: float
  b: float
  low: float
  high: float
  p: float
  test: str
  only_a: int
  only_b: int


def difference(
  task: Task, examples: Examples, a: list[Prediction], b: list[Prediction], seed: int = 0
) -> Difference:
  """The difference by the task's first metric: accuracy of examples by McNemar's exact test, any
  other metric by the paired bootstrap (Efron & Tibshirani 1993, section 16.4; Koehn 2004)."""
  scores_a, scores_b = (task.score(examples, predictions) for predictions in (a, b))
  metric = next(name for name in task.metrics if name in scores_a)  # MNLI's mismatched has another
  right_a, right_b = (right(task, examples, predictions) for predictions in (a, b))
  only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
  rng = np.random.default_rng(seed)
  count = len(examples)
  draws = rng.integers(0, count, (RESAMPLES, count))
  if counts_examples(task):
    gaps = (right_b.astype(float) - right_a)[draws].mean(axis=1)
    p, test = mcnemar(only_a, only_b), MCNEMAR
  else:
    gaps = np.array([_gap(task, examples, a, b, rows, metric) for rows in draws])
    p, test = bootstrap_p(gaps), f"paired bootstrap, {RESAMPLES:,} resamples, seed {seed}"
  low, high = np.quantile(gaps, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  bounds = float(low), float(high)
  return Difference(metric, scores_a[metric], scores_b[metric], *bounds, p, test, only_a, only_b)


def counts_examples(task: Task) -> bool:
  """Whether the first metric is the share of examples that are right."""
  return task.metrics[0] == "accuracy" and task.one_answer


def right(task: Task, examples: Examples, predictions: list[Prediction]) -> np.ndarray:
  """bool [N]: whether a prediction is no mistake."""
  return mistakes(task, examples, predictions) == 0


def mistakes(task: Task, examples: Examples, predictions: list[Prediction]) -> np.ndarray:
  """float64 [N]: `Task.mistake` of every example."""
  pairs = zip(examples.items, predictions, strict=True)
  return np.array([task.mistake(item, prediction) for item, prediction in pairs], float)


def mcnemar(only_a: int, only_b: int) -> float:
  """The two-sided exact p-value: under equal models an example that one alone has right is that of
  either with probability 1/2 (McNemar 1947)."""
  from scipy.stats import binomtest

  return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def bootstrap_p(gaps: np.ndarray) -> float:
  """The two-sided p-value: twice the share of resamples on the other side of 0, never 0."""
  beyond = min((gaps <= 0).sum(), (gaps >= 0).sum())
  return float(min(1.0, 2 * (beyond + 1) / (len(gaps) + 1)))


def _gap(task, examples, a, b, rows: np.ndarray, metric: str) -> float:
  chosen = examples.take(rows)
  scores = [task.score(chosen, [each[row] for row in rows])[metric] for each in (a, b)]
  return scores[1] - scores[0]
