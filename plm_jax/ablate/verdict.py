"""When a difference between arms is more than the luck of the seeds: the one test of all claims.

An arm's score varies with the seed, so a claim is tested over seeds: the arms of a comparison share
their seeds (data order, masks, parameters), and Student's t is taken of the per-seed differences.
Verdicts are "supported", "not supported" (the opposite is) and "undecided", and under the level
alpha = 0.05 of a whole table: where no arm differs from any other, at most one report in twenty
says anything but "undecided" (Holm's step-down over the claims; each p is two-sided).

Why not a sign rule: with three seeds, three equal signs happen by luck one time in four (2 / 2^3),
so an exact rule on signs has no level below 25%, and six seeds are the fewest at which it has 5%
(2 / 2^6). Three seeds can say more only if something is assumed of the noise; t assumes that
differences between seeds are about normal. It then has its level at any n, and pays with power: at
n = 3 a single claim needs |mean| > 2.5 standard deviations of the differences, one of five claims
5.7. Effects of the size that papers print are of that kind; a tenth of a point is not, and stays
"undecided" until there are more seeds.

Three differences can also agree by luck, and then t is huge. So a standard error below what is
usual in the table (the median over all pairs of its arms, for the same metric) is replaced by that.
This can only take verdicts away, never make one; it is what keeps a report silent in which arms
were exchanged between seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

ALPHA = 0.05
SEEDS = 3  # fewer give no verdict

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""arm -> seed -> metric -> value; what was not measured is not there."""

Outcome = Literal["supported", "not supported", "undecided"]


class Tested(NamedTuple):
  """One-sided p-values of a claim and of its opposite, and the numbers that they come from."""

  p_for: float
  p_against: float
  numbers: str


class Verdict(NamedTuple):
  """p: two-sided, of this claim alone; it is judged against `threshold`, Holm's share of alpha."""

  claim: object
  outcome: Outcome
  p: float
  threshold: float
  numbers: str


def lower_is_better(metric: str) -> bool:
  return metric.endswith(("loss", "perplexity"))


def is_logarithmic(metric: str) -> bool:
  """Perplexities are compared by their logarithms, where a seed's noise is about normal."""
  return metric.endswith("perplexity")


def measured(scores: Scores, metric: str, arm: str) -> dict[int, float]:
  """seed -> finite value of a metric, as it is compared."""
  found = {seed: values[metric] for seed, values in scores.get(arm, {}).items() if metric in values}
  if is_logarithmic(metric):
    found = {seed: math.log(value) for seed, value in found.items() if value > 0}
  return {seed: value for seed, value in sorted(found.items()) if math.isfinite(value)}


def is_measured(scores: Scores, metric: str) -> bool:
  """Whether any run has it."""
  return any(metric in values for seeds in scores.values() for values in seeds.values())


def difference(scores: Scores, metric: str, arm: str, than: str) -> list[float]:
  """Per common seed, by how much `arm` is better than `than`."""
  one, other = measured(scores, metric, arm), measured(scores, metric, than)
  sign = -1 if lower_is_better(metric) else 1
  return [sign * (one[seed] - other[seed]) for seed in one if seed in other]


def level(scores: Scores, metric: str, arm: str, chance: float | str) -> list[float]:
  """Per seed, by how much the metric of `arm` is above chance."""
  values = measured(scores, metric, arm)
  if not isinstance(chance, str):
    return [value - chance for value in values.values()]
  at = measured(scores, chance, arm)
  return [value - at[seed] for seed, value in values.items() if seed in at]


def standard_error(values: Sequence[float]) -> float:
  return statistics.stdev(values) / math.sqrt(len(values))


def usual_error(scores: Scores, metric: str, paired: bool = True) -> float:
  """The median standard error of a metric over all pairs of arms (or, not paired, over all arms)
  that have enough seeds; 0 if there are none."""
  if paired:
    samples = [difference(scores, metric, *pair) for pair in itertools.combinations(scores, 2)]
  else:
    samples = [list(measured(scores, metric, arm).values()) for arm in scores]
  errors = [standard_error(values) for values in samples if len(values) >= SEEDS]
  return statistics.median_low(errors) if errors else 0.0


def student(values: Sequence[float], bound: float, usual: float, constant: bool = False) -> Tested:
  """Is the mean above `bound`? t = (mean - bound) / error with n - 1 degrees of freedom, the error
  being the standard error of `values`, but at least `usual`.

  constant: whether values without any spread are an answer, as those of a head are that always says
  the same. Otherwise they are no sample.
  """
  from scipy.special import stdtr

  n = len(values)
  if n < SEEDS:
    return Tested(1.0, 1.0, f"{n} of {SEEDS} seeds that are needed")
  mean, spread = statistics.fmean(values), statistics.stdev(values)
  error = max(standard_error(values), usual)
  numbers = f"mean {mean:+.4g}, sd {spread:.3g}, n = {n}"
  if bound:
    numbers += f", against {bound:+.3g}"
  if error == 0:
    if not constant:
      return Tested(1.0, 1.0, numbers + ": no spread over seeds, so nothing to test with")
    return Tested(float(mean <= bound), float(mean >= bound), numbers)
  t = (mean - bound) / error
  if error > standard_error(values):
    numbers += f", standard error {standard_error(values):.2g} raised to the table's {error:.2g}"
  return Tested(float(stdtr(n - 1, -t)), float(stdtr(n - 1, t)), f"{numbers}, t = {t:.2f}")


def verdicts(claims: Sequence, scores: Scores, alpha: float = ALPHA) -> list[Verdict]:
  """The verdict of every claim, in their order, by Holm's (1979) procedure at level alpha for all
  of them together.

  A claim of which seeds or arms are still missing counts as a test, so that what comes in late
  makes no other verdict stricter than it was. One whose metric no run of the sweep has does not.
  """
  tests = [claim.test(scores) for claim in claims]
  p = [min(1.0, 2 * min(test.p_for, test.p_against)) for test in tests]
  outcomes: list[Outcome] = ["undecided"] * len(claims)
  thresholds = [alpha] * len(claims)
  asked = [i for i, claim in enumerate(claims) if is_measured(scores, claim.metric)]
  rejecting = True
  for rank, i in enumerate(sorted(asked, key=p.__getitem__)):
    thresholds[i] = alpha / (len(asked) - rank)
    rejecting = rejecting and p[i] <= thresholds[i]
    if rejecting:
      outcomes[i] = "supported" if tests[i].p_for < tests[i].p_against else "not supported"
  numbers = [
    test.numbers if i in asked else f"no run of this sweep has {claims[i].metric}"
    for i, test in enumerate(tests)
  ]
  return [Verdict(*row) for row in zip(claims, outcomes, p, thresholds, numbers)]
