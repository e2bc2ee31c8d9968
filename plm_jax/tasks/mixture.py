"""Examples-proportional mixing (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2): batches of
several data sets, of which one with n_i examples has the share min(n_i, K) / sum_j min(n_j, K).

Deviation: T5 draws the data set of each example at random. Here every sum_j min(n_j, K) examples
have exactly min(n_i, K) of each set, in a random order, so that a batch is a function of its step.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.tasks.rows import LabelledBatches

_MIXED = 5  # salt for the order of the data sets
_OWN = 6  # salt for the order of an epoch of a data set


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedBatches(LabelledBatches):
  """Training batches of a mixture. part: int [rows], the data set of each row. cap: K."""

  part: np.ndarray
  cap: int

  @functools.cached_property
  def members(self) -> list[np.ndarray]:
    """The rows of each data set."""
    return [np.flatnonzero(self.part == number) for number in np.unique(self.part)]

  @functools.cached_property
  def shares(self) -> np.ndarray:
    """min(n_i, K) of each data set, int [sets]."""
    return np.array([min(len(rows), self.cap) for rows in self.members])

  def _order(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The epoch of its data set, and the row, at each position of the training."""
    total, ends = int(self.shares.sum()), np.cumsum(self.shares)
    rounds, slots = np.divmod(positions, total)
    for number in np.unique(rounds):
      chosen = rounds == number
      slots[chosen] = permute(slots[chosen], total, self.seed, _MIXED, int(number))
    sets = np.searchsorted(ends, slots, side="right")
    # The rows of the same set that came before this one, as a set's order counts them.
    before = rounds * self.shares[sets] + slots - (ends - self.shares)[sets]
    epochs, rows = np.zeros_like(before), np.zeros_like(before)
    for number in np.unique(sets):
      members, chosen = self.members[number], sets == number
      epochs[chosen], place = np.divmod(before[chosen], len(members))
      for epoch in np.unique(epochs[chosen]):
        same = epochs[chosen] == epoch
        order = permute(place[same], len(members), self.seed, _OWN, int(number), int(epoch))
        place[same] = order
      rows[chosen] = members[place]
    return epochs, rows
