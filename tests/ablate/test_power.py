"""What seeds could see is what the test of the verdicts finds."""

import numpy as np
import pytest
from scipy.special import stdtr

from experiments import bert
from plm_jax.ablate.power import POWER, detectable, outlook, seeds_needed
from plm_jax.ablate.table import Arm, Better, Table


@pytest.mark.parametrize(("seeds", "alpha"), [(3, 0.05), (5, 0.05), (5, 0.0125), (12, 0.05)])
def test_a_detectable_difference_is_found_four_times_in_five(seeds, alpha):
  random, spread = np.random.default_rng(0), 0.7
  values = random.normal(detectable(spread, seeds, alpha), spread, (40_000, seeds))
  t = values.mean(1) / (values.std(1, ddof=1) / np.sqrt(seeds))
  found = (2 * (1 - stdtr(seeds - 1, t)) <= alpha).mean()
  assert abs(found - POWER) < 0.01


def test_more_seeds_see_less_and_the_number_needed_fits():
  sizes = [detectable(0.1, seeds) for seeds in (3, 4, 5, 10, 30)]
  assert sizes == sorted(sizes, reverse=True)
  needed = seeds_needed(0.08, 0.1)
  assert detectable(0.1, needed) <= 0.08 < detectable(0.1, needed - 1)
  assert seeds_needed(1e-4, 0.1) is None


def test_the_outlook_names_the_smallest_difference_and_the_seeds_that_it_needs():
  arms = tuple(Arm(name, bert.base) for name in ("small", "wide", "deep"))
  claims = (Better("mlm_loss", "wide", than="small"), Better("blimp", "wide", than="small"))
  table = Table(title="t", source="s", arms=arms, claims=claims)
  losses = {"small": (3.0, 3.1), "wide": (2.5, 2.55), "deep": (2.9, 3.02)}
  scores = {
    arm: {seed: {"mlm_loss": loss} for seed, loss in enumerate(pair)}
    for arm, pair in losses.items()
  }
  spread = 0.05 / np.sqrt(2)  # the median of the differences of two seeds: .02, .05, .07
  heading, line = outlook(table, scores, seeds=5)  # blimp was not measured
  assert heading.startswith("by the spread of the seeds so far, four times in five")
  assert f"mlm_loss: 5 seeds can tell a difference of {detectable(spread, 5, 0.025):.2g}" in line
  # Of the claims: small and deep differ by less.
  assert f"is 0.53 (wide and small), for which {seeds_needed(0.525, spread, 0.025)} are" in line
  assert outlook(table, {arm: {0: {"mlm_loss": 3.0}} for arm in losses}, seeds=5) == []
