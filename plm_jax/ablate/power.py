"""What effect a number of seeds could see, from the spread of the first seeds.

The test is that of verdict.py: Student's t of the differences between two arms with the same seed.
If the true mean difference is d and the standard deviation of a difference s, t has the noncentral
distribution with n - 1 degrees of freedom and noncentrality d sqrt(n) / s (Cohen 1988, section 2).
"""

import itertools
import math
import statistics

from plm_jax.ablate.table import Table
from plm_jax.ablate.verdict import ALPHA, SEEDS, SeedScores, difference

POWER = 0.8  # how often the difference is found
MOST = 100  # seeds that are tried


def detectable(spread: float, seeds: int, alpha: float = ALPHA) -> float:
  """The mean difference that a two-sided test at level alpha finds with the probability `POWER`.
  spread: the standard deviation of a difference. seeds: at least 2."""
  from scipy.special import nctdtr, stdtrit

  critical = stdtrit(seeds - 1, 1 - alpha / 2)
  low, high = 0.0, 2.0 * critical + 10.0  # noncentralities
  for _ in range(60):
    middle = (low + high) / 2
    found = 1 - nctdtr(seeds - 1, middle, critical)
    low, high = (low, middle) if found > POWER else (middle, high)
  return high * spread / math.sqrt(seeds)


def seeds_needed(effect: float, spread: float, alpha: float = ALPHA) -> int | None:
  """The fewest seeds with which a difference of this size is found; None if `MOST` are too few."""
  for seeds in range(SEEDS, MOST + 1):
    if detectable(spread, seeds, alpha) <= abs(effect):
      return seeds
  return None


def outlook(table: Table, scores: SeedScores, seeds: int) -> list[str]:
  """For each metric of the claims: what `seeds` seeds could see, and how many seeds the smallest
  difference between two arms of a claim would need. Empty with fewer than two seeds of two arms."""
  lines, alpha, seeds = [], ALPHA / max(1, len(table.claims)), max(seeds, SEEDS)
  for metric in dict.fromkeys(claim.metric for claim in table.claims):
    pairs = {p: difference(scores, metric, *p) for p in itertools.combinations(scores, 2)}
    spreads = [statistics.stdev(values) for values in pairs.values() if len(values) > 1]
    spread = statistics.median_low(spreads) if spreads else 0.0  # the usual one, as in verdict.py
    if not spread:
      continue
    least = detectable(spread, seeds, alpha)
    line = f"  {metric}: {seeds} seeds can tell a difference of {least:.2g}"
    claimed = [p for c in table.claims if c.metric == metric for p in itertools.pairwise(c.arms)]
    means = {p: abs(statistics.fmean(d)) for p in claimed if (d := difference(scores, metric, *p))}
    means = {pair: mean for pair, mean in means.items() if mean}  # the runs may be identical
    if means:
      one, other = min(means, key=lambda pair: means[pair])
      needed = seeds_needed(means[one, other], spread, alpha)
      line += (
        f"; the smallest so far that a claim compares is {means[one, other]:.2g} ({one} and "
        f"{other}), for which {f'{needed} are enough' if needed else f'{MOST} are too few'}"
      )
    lines.append(line)
  if lines:
    logs = " (perplexities: of their logarithms)" if "perplexity" in "".join(lines) else ""
    lines.insert(0, f"by the spread of the seeds so far{logs}, four times in five:")
  return lines
