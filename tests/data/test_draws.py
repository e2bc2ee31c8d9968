"""Claims about the counter-based random numbers; limits are 5 standard deviations or more."""

import numpy as np
import pytest

from plm_jax.data.draws import Draws, Sequence, permute

ROWS, COLUMNS = 2000, 128


def block(seed=3, epoch=0, rows=None, stream=0):
  return Draws(seed, epoch, np.arange(ROWS) if rows is None else rows).bits(stream, COLUMNS)


def chi_squared(counts):
  """In standard deviations from its expectation."""
  expected = counts.sum() / counts.size
  statistic = ((counts - expected) ** 2 / expected).sum()
  return (statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1))


def correlation(a, b):
  """In standard deviations."""
  return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


def test_a_row_draws_the_same_in_any_block_and_with_any_number_of_columns():
  rows = np.array([900, 3, 41])
  whole = block()
  np.testing.assert_array_equal(block(rows=rows), whole[rows])
  np.testing.assert_array_equal(Draws(3, 0, rows).bits(0, 10), whole[rows, :10])
  columns = np.array([[5, 0], [127, 2], [9, 9]], np.uint32)
  expected = np.take_along_axis(whole[rows], columns.astype(int), axis=1)
  np.testing.assert_array_equal(Draws(3, 0, rows).bits_at(0, columns), expected)


def test_an_epoch_per_row_is_the_same_as_an_epoch_for_all():
  rows = np.array([5, 5])
  mixed = Draws(3, np.array([0, 7]), rows).bits(0, COLUMNS)
  np.testing.assert_array_equal(mixed[0], block(epoch=0)[5])
  np.testing.assert_array_equal(mixed[1], block(epoch=7)[5])


def test_static_draws_repeat_after_so_many_epochs_and_not_before():
  draws = [Draws(3, epoch, np.arange(4)).repeat(10).bits(0, 8) for epoch in range(21)]
  np.testing.assert_array_equal(draws[3], draws[13])
  assert len({d.tobytes() for d in draws}) == 10


def test_bits_are_uniform():
  bits = block()
  for shift in (0, 8, 16, 24):
    counts = np.bincount((bits >> np.uint32(shift) & np.uint32(255)).ravel(), minlength=256)
    assert abs(chi_squared(counts)) < 5
  per_column = np.stack([np.bincount(c >> np.uint32(28), minlength=16) for c in bits.T])
  assert abs(chi_squared(per_column)) < 5 + COLUMNS**0.5  # every column has its own constraint
  # bits[t] with bits[t + 1], as points of a square
  pairs = (bits[:, :-1] >> np.uint32(28)) * 16 + (bits[:, 1:] >> np.uint32(28))
  assert abs(chi_squared(np.bincount(pairs.ravel(), minlength=256))) < 5


def test_uniform_stays_below_one_and_has_the_moments_of_the_uniform_distribution():
  values = Draws(3, 0, np.arange(ROWS)).uniform(0, COLUMNS)
  assert values.dtype == np.float32
  assert values.min() >= 0
  assert values.max() < 1
  assert abs(values.mean(dtype=np.float64) - 0.5) < 5 * np.sqrt(1 / 12 / values.size)
  assert abs(values.var(dtype=np.float64) - 1 / 12) < 5 * np.sqrt(1 / 180 / values.size)


@pytest.mark.parametrize("lag", [1, 2, 3, 64])
def test_neighbouring_columns_and_rows_are_uncorrelated(lag):
  bits = block().astype(np.float64)
  assert abs(correlation(bits[:, lag:], bits[:, :-lag])) < 5
  assert abs(correlation(bits[lag:], bits[:-lag])) < 5


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}, {"stream": 1}, {"epoch": 2**31}])
def test_seeds_epochs_and_streams_are_independent(change):
  one, other = block(), block(**change)
  assert abs(correlation(one.astype(np.float64), other.astype(np.float64))) < 5
  assert (one == other).mean() < 1e-4


def test_one_changed_bit_of_the_row_or_the_column_changes_half_of_the_bits():
  base = block(rows=np.arange(ROWS))

  def unpack(x):
    return np.unpackbits(x.copy().view(np.uint8)).reshape(-1, 32)

  for bit in range(10):
    flips = unpack(base ^ block(rows=np.arange(ROWS) ^ (1 << bit))).mean(axis=0)
    np.testing.assert_allclose(flips, 0.5, atol=5 * 0.5 / np.sqrt(base.size))
  for bit in range(7):
    flips = unpack(base ^ base[:, np.arange(COLUMNS) ^ (1 << bit)]).mean(axis=0)
    np.testing.assert_allclose(flips, 0.5, atol=7 * 0.5 / np.sqrt(base.size))


def test_no_two_rows_share_their_numbers():
  first = Draws(0, 0, np.arange(200_000)).bits(0, 2)
  assert len(np.unique(first.view(np.uint64))) == len(first)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 256, 257, 10_007])
def test_a_permutation_has_every_place_once(size):
  places = permute(np.arange(size), size, 5, 0)
  np.testing.assert_array_equal(np.sort(places), np.arange(size))


def test_a_permutation_can_be_asked_for_any_part_of_it():
  whole = permute(np.arange(1000), 1000, 5, 0)
  np.testing.assert_array_equal(permute(np.array([999, 0, 7]), 1000, 5, 0), whole[[999, 0, 7]])
  assert permute(np.array([2**40]), 2**41, 5)[0] < 2**41


def test_permutations_differ_by_key_and_put_every_index_everywhere():
  size = 60
  places = np.stack([permute(np.arange(size), size, 5, epoch) for epoch in range(6000)])
  table = np.stack([np.bincount(column, minlength=size) for column in places.T])
  assert abs(chi_squared(table)) < 5 + 2 * size / np.sqrt(2 * size * size)
  neighbours = places[:, 1:].astype(float), places[:, :-1].astype(float)
  without_replacement = -np.sqrt(neighbours[0].size) / (size - 1)
  assert abs(correlation(*neighbours) - without_replacement) < 5
  adjacent = (np.abs(np.diff(places)) == 1).mean()
  assert abs(adjacent - 2 / size) < 5 * np.sqrt(2 / size / places.size)


def test_a_sequence_is_fair():
  draw = Sequence(1, 2, 3)
  values = np.array([draw.below(7) for _ in range(20_000)])
  assert abs(chi_squared(np.bincount(values, minlength=7))) < 5
  heads = sum(draw.chance(0.1) for _ in range(20_000))
  assert abs(heads - 2000) < 5 * np.sqrt(20_000 * 0.09)
  assert Sequence(1, 2, 3).bits() == Sequence(1, 2, 3).bits() != Sequence(1, 3, 2).bits()
