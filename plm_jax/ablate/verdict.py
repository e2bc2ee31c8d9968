"""The statistical test of all claims: is a difference between arms more than noise between seeds?

An arm's score varies with the seed, so a claim is tested over seeds. The arms of a comparison share
their seeds (data order, masks, parameters), and Student's t is taken of the per-seed differences.
Verdicts are "supported", "not supported" (the opposite is supported) and "undecided". The level
alpha = 0.05 holds for a whole table: where no arm differs from any other, at most one report in
twenty has a verdict other than "undecided" (Holm's step-down over the claims; each p is two-sided).

Three differences can agree by chance, which makes t huge. So the standard error is raised to the
usual one of the table (the median over all pairs of its arms, for the same metric) if it is
smaller, which can only remove verdicts. In a table with a dial each value has a text of its own,
and the pairs are those of the values that a claim compares. docs/ablation.md says why the test is
not one on signs.

Models that are counted do not vary with the seed. Their differences are exact on the held-out text,
so a claim about them is decided by its sign, and one seed is enough.
"""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

ALPHA = 0.05
SEEDS = 3  # fewer give no verdict

SeedScores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""arm -> seed -> metric -> value, of measured metrics only."""

Outcome = Literal["supported", "not supported", "undecided"]


class Tested(NamedTuple):
  """One-sided p-values of a claim and of its opposite, and their numbers as a text. is_exact:
  whether they are about models that no seed changes."""

  p_for: float
  p_against: float
  numbers: str
  is_exact: bool = False


class Verdict(NamedTuple):
  """p: two-sided, of this claim alone. threshold: Holm's share of alpha, which p is compared to.
  side: to which the seeds lean, "for" or "against" the claim, or "" if to none. is_exact: as in
  `Tested`."""

  claim: object
  outcome: Outcome
  p: float
  threshold: float
  numbers: str
  side: str
  is_exact: bool = False


def lower_is_better(metric: str) -> bool:
  return metric.endswith(("loss", "perplexity", "bits_per_byte"))


def measured(scores: SeedScores, metric: str, arm: str) -> dict[int, float]:
  """seed -> finite value of a metric, or the logarithm of a perplexity."""
  runs = {seed: values[metric] for seed, values in scores.get(arm, {}).items() if metric in values}
  if metric.endswith("perplexity"):  # the noise of its logarithm is about normal
    runs = {seed: math.log(value) for seed, value in runs.items() if value > 0}
  return {seed: value for seed, value in sorted(runs.items()) if math.isfinite(value)}


def difference(scores: SeedScores, metric: str, arm: str, than: str) -> list[float]:
  """By how much `arm` is better than `than`, for each seed that both have."""
  values, baseline = measured(scores, metric, arm), measured(scores, metric, than)
  sign = -1 if lower_is_better(metric) else 1
  return [sign * (values[seed] - baseline[seed]) for seed in values if seed in baseline]


def level(scores: SeedScores, metric: str, arm: str, chance: float | str) -> list[float]:
  """By how much the metric of `arm` is above chance, for each seed."""
  values = measured(scores, metric, arm)
  if not isinstance(chance, str):
    return [value - chance for value in values.values()]
  at = measured(scores, chance, arm)
  return [value - at[seed] for seed, value in values.items() if seed in at]


def standard_error(values: Sequence[float]) -> float:
  return statistics.stdev(values) / math.sqrt(len(values))


def usual_error(scores: SeedScores, metric: str, paired: bool = True) -> float:
  """The median standard error of a metric over all pairs of arms with enough seeds, or over single
  arms if not paired; 0 if there are none."""
  if paired:
    samples = [difference(scores, metric, *pair) for pair in itertools.combinations(scores, 2)]
  else:
    samples = [list(measured(scores, metric, arm).values()) for arm in scores]
  errors = [standard_error(values) for values in samples if len(values) >= SEEDS]
  return statistics.median_low(errors) if errors else 0.0


def student(
  values: Sequence[float],
  bound: float,
  usual: float,
  constant: bool = False,
  exact: bool = False,
) -> Tested:
  """Tests whether the mean is above `bound`: t = (mean - bound) / error, n - 1 degrees of freedom.

  The error is the standard error of `values`, but at least `usual`. constant: whether values
  without any spread can be tested, as those of a head that always gives the same answer. exact:
  whether the seed has no part in them.
  """
  from scipy.special import stdtr

  n = len(values)
  if exact and len({*values}) == 1:
    value = values[0]
    numbers = f"{value:+.4g}, whatever the seed"
    return Tested(float(value <= bound), float(value >= bound), numbers, is_exact=True)
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


def verdicts(
  claims: Sequence,
  scores: SeedScores,
  dials: Mapping[str, float | None] | None = None,
  alpha: float = ALPHA,
  counted: Collection[str] = (),
) -> list[Verdict]:
  """The verdicts, in the order of the claims, by Holm's (1979) procedure at level alpha for all.

  dials: the value of each arm, in a table with a dial. counted: arms whose models do not vary with
  the seed.

  A claim whose seeds or arms are still missing counts as a test, so that results that arrive later
  make no other verdict stricter. A claim whose metric no run of the sweep has does not count.
  """
  dials = dials or {}

  def beside(claim) -> SeedScores:
    values = {dials.get(arm) for arm in claim.arms}
    return {arm: seeds for arm, seeds in scores.items() if dials.get(arm) in values}

  tests = [claim.test(beside(claim), {*claim.arms} <= {*counted}) for claim in claims]
  p = [min(1.0, 2 * min(test.p_for, test.p_against)) for test in tests]
  outcomes: list[Outcome] = ["undecided"] * len(claims)
  thresholds = [alpha] * len(claims)
  metrics = {name for seeds in scores.values() for values in seeds.values() for name in values}
  asked = [i for i, claim in enumerate(claims) if claim.metric in metrics]
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
  sides = [
    "" if t.p_for == t.p_against else "for" if t.p_for < t.p_against else "against" for t in tests
  ]
  exact = [test.is_exact for test in tests]
  return [Verdict(*row) for row in zip(claims, outcomes, p, thresholds, numbers, sides, exact)]
