"""Masking against the rules of create_pretraining_data.py, and against a slow copy of them."""

import dataclasses
from itertools import chain

import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.objectives import masking
from plm_jax.objectives.mlm import MLM
from tests.data.toy_store import CLS, MASK, PAD, SEP, toy_vocab

VOCAB = toy_vocab()


def rows_of(count, columns, shortest=None, seed=0):
  """[CLS] A [SEP] B [SEP] rows of random tokens, of random lengths from `shortest` on."""
  rng = np.random.default_rng(seed)
  length = rng.integers(shortest or columns, columns + 1, count)
  ids = rng.integers(5, VOCAB.size, (count, columns)).astype(np.int32)
  ids[np.arange(columns) >= length[:, None]] = PAD
  ids[:, 0] = CLS
  ids[np.arange(count), rng.integers(2, length - 2)] = SEP
  ids[np.arange(count), length - 1] = SEP
  return ids, length


def corrupt(ids, length, epoch=0, seed=0, rows=None, **options):
  rows = np.arange(len(ids)) if rows is None else rows
  candidate_mask = masking.candidates(ids, VOCAB)
  draws = Draws(seed, epoch, rows)
  return masking.corrupt_tokens(ids, length, candidate_mask, draws, VOCAB, **options)


def reference(ids, length, row, unit, rate=0.15, max_predictions=10**9):
  """The selected positions of one row by the original's loop, words in the order of our keys."""
  candidates = [t for t in range(len(ids)) if ids[t] not in (CLS, SEP, PAD)]
  words = []
  for t in candidates:
    if unit != "token" and words and not VOCAB.word_start[ids[t]]:
      words[-1].append(t)
    else:
      words.append([t])
  keys = Draws(0, 0, np.array([row])).bits(0, len(ids))[0]
  low = (1 << (len(ids) - 1).bit_length()) - 1
  at = {word[0]: i for i, word in enumerate(words)}
  shuffled = sorted(words, key=lambda word: (int(keys[word[0]]) & 0x7FFFFFFF & ~low, word[0]))
  budget = min(max_predictions, max(1, round(length * rate)))
  selected = []
  for word in shuffled:
    if len(selected) >= budget:
      break
    if unit == "ngram":  # google-research/albert
      n = masking.ngram_lengths(Draws(0, 0, np.array([row])), np.array([[word[0]]]), 3)[0, 0]
      begin = at[word[0]]
      runs = [list(chain(*words[begin : begin + m])) for m in range(1, n + 1)]
      while len(runs) > 1 and len(selected) + len(runs[-1]) > budget:
        runs.pop()
      word = runs[-1]
    if len(selected) + len(word) <= budget and not set(word) & set(selected):
      selected += word
  return sorted(selected)


@pytest.mark.parametrize(("length", "expected"), [(128, 19), (512, 77), (16, 2), (3, 1), (10, 2)])
def test_the_budget_is_bert_s(length, expected):
  # 10 tokens: round(1.5) is 2; Python rounds halves to the even neighbour, so 30 give 4, not 5.
  assert masking.predictions(length, 0.15) == expected
  assert masking.predictions(30, 0.15) == 4
  ids, lengths = rows_of(4, 512, shortest=512)
  lengths = np.full(4, length)
  ids[:, length:] = PAD
  if length >= 16:
    assert (corrupt(ids, lengths).weights.sum(axis=1) == expected).all()


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
@pytest.mark.parametrize("max_predictions", [None, 5])
@pytest.mark.parametrize("columns", [64, 67])  # a power of two, and not
def test_selection_equals_the_original_s_loop(unit, max_predictions, columns):
  ids, length = rows_of(300, columns, shortest=6)
  ids[-1], length[-1] = ids[length.argmin()], length.min()
  result = corrupt(ids, length, unit=unit, max_predictions=max_predictions)
  assert result.positions.shape[1] == (max_predictions or 10)
  for row in range(len(ids)):
    got = result.positions[row][result.weights[row] > 0]
    expected = reference(
      ids[row], int(length[row]), row, unit, max_predictions=max_predictions or 10**9
    )
    assert got.tolist() == expected


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
def test_targets_are_the_original_tokens_and_nothing_else_changes(unit):
  ids, length = rows_of(500, 128, shortest=20)
  before = ids.copy()
  result = corrupt(ids, length, unit=unit)
  np.testing.assert_array_equal(ids, before)
  valid = result.weights > 0
  row = np.nonzero(valid)[0]
  np.testing.assert_array_equal(result.targets[valid], ids[row, result.positions[valid]])
  untouched = np.ones(ids.shape, bool)
  untouched[row, result.positions[valid]] = False
  np.testing.assert_array_equal(result.input_ids[untouched], ids[untouched])
  assert not np.isin(result.targets[valid], [CLS, SEP, PAD]).any()
  assert (result.positions[~valid] == 0).all()
  assert (result.targets[~valid] == 0).all()


def test_positions_ascend_and_slots_are_static():
  ids, length = rows_of(200, 128, shortest=8)
  result = corrupt(ids, length)
  assert [a.dtype for a in result] == [np.int32, np.int32, np.int32, np.float32]
  assert result.positions.shape == (200, 19)
  number = result.weights.sum(axis=1)
  np.testing.assert_array_equal(number, np.maximum(1, np.rint(length * 0.15)))
  for positions, n in zip(result.positions, number.astype(int), strict=True):
    assert (np.diff(positions[:n]) > 0).all()


def test_shares_are_80_10_10_and_random_tokens_come_from_the_whole_vocabulary():
  ids, length = rows_of(8000, 128)
  result = corrupt(ids, length)
  valid = result.weights > 0
  assert valid.sum() >= 1e5
  new = np.take_along_axis(result.input_ids, result.positions, axis=1)[valid]
  old = result.targets[valid]
  # A random token is [MASK] or the token itself once in V times: far below the tolerance.
  assert np.mean(new == MASK) == pytest.approx(0.8, abs=0.005)
  assert np.mean(new == old) == pytest.approx(0.1, abs=0.004)
  drawn = new[(new != MASK) & (new != old)]
  assert len(drawn) / valid.sum() == pytest.approx(0.1, abs=0.004)
  counts = np.bincount(drawn, minlength=VOCAB.size)
  assert (counts[[PAD, CLS, SEP]] > 0).any()
  counts = np.delete(counts, MASK)
  statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
  assert abs(statistic - len(counts)) < 5 * np.sqrt(2 * len(counts))


def test_every_candidate_is_selected_equally_often():
  ids, length = rows_of(1, 64)
  ids, length = np.repeat(ids, 20_000, axis=0), np.repeat(length, 20_000)
  result = corrupt(ids, length)
  counts = np.bincount(result.positions[result.weights > 0], minlength=64)
  allowed = masking.candidates(ids[:1], VOCAB)[0]
  assert (counts[~allowed] == 0).all()
  share = 10 / allowed.sum()
  np.testing.assert_allclose(
    counts[allowed] / 20_000, share, atol=5 * np.sqrt(share * (1 - share) / 20_000)
  )


def test_the_fate_of_a_token_is_drawn_for_itself():
  ids, length = rows_of(8000, 128)
  result = corrupt(ids, length, unit="whole_word")
  new = np.take_along_axis(result.input_ids, result.positions, axis=1)
  masked = (new == MASK)[result.weights > 0].astype(float)
  assert abs(np.corrcoef(masked[1:], masked[:-1])[0, 1]) < 5 / np.sqrt(masked.size)
  assert masked.mean() == pytest.approx(0.8, abs=0.005)


def test_whole_words_are_selected_whole_and_within_the_budget():
  ids, length = rows_of(500, 128, shortest=16)
  result = corrupt(ids, length, unit="whole_word")
  assert (result.weights.sum(axis=1) <= np.maximum(1, np.rint(length * 0.15))).all()
  assert result.weights.sum() > 0.95 * np.rint(length * 0.15).sum()
  for row in range(len(ids)):
    selected = set(result.positions[row][result.weights[row] > 0].tolist())
    word = None
    for t in np.flatnonzero(masking.candidates(ids[row : row + 1], VOCAB)[0]):
      if VOCAB.word_start[ids[row, t]] or word is None:
        word = t in selected
      assert (t in selected) == word


def test_n_of_an_n_gram_is_drawn_by_one_over_n():
  """F27, before what does not fit is shortened."""
  draws, columns = Draws(0, 0, np.arange(2000)), np.tile(np.arange(128), (2000, 1))
  n = masking.ngram_lengths(draws, columns, 3)
  shares = np.bincount(n.ravel(), minlength=4)[1:] / n.size
  np.testing.assert_allclose(shares, [0.5455, 0.2727, 0.1818], atol=0.004)
  assert n.mean() == pytest.approx(1.636, abs=0.006)
  assert set(np.unique(masking.ngram_lengths(draws, columns, 5))) == {1, 2, 3, 4, 5}
  assert (masking.ngram_lengths(draws, columns, 1) == 1).all()


def test_n_grams_of_one_word_are_whole_words():
  ids, length = rows_of(300, 67, shortest=6)
  words, runs = (
    corrupt(ids, length, unit="whole_word"),
    corrupt(ids, length, unit="ngram", max_ngram=1),
  )
  for a, b in zip(words, runs, strict=True):
    np.testing.assert_array_equal(a, b)


def test_n_grams_are_whole_words_within_the_budget_and_longer_runs_than_words_make():
  ids, length = rows_of(2000, 128, shortest=64)
  vocab_of_words = dataclasses.replace(VOCAB, word_start=np.ones(VOCAB.size, bool))
  allowed = masking.candidates(ids, VOCAB)

  def neighbours(**options):
    """The share of selected positions whose right neighbour is selected too."""
    result = masking.corrupt_tokens(
      ids, length, allowed, Draws(0, 0, np.arange(2000)), vocab_of_words, **options
    )
    number = result.weights.sum(axis=1)
    assert (number <= np.rint(length * 0.15)).all()
    selected = np.zeros((2000, 129), bool)
    row, slot = np.nonzero(result.weights)
    selected[row, result.positions[row, slot]] = True
    return (selected[:, 1:] & selected[:, :-1]).sum() / number.sum()

  assert neighbours(unit="whole_word") == pytest.approx(0.145, abs=0.015)
  # Of 1.636 words in a run .636 have a neighbour in it: .389 of all, and some more by chance.
  assert neighbours(unit="ngram") == pytest.approx(0.41, abs=0.03)


def test_a_longest_n_gram_that_is_not_read_is_refused():
  with pytest.raises(UserError, match="max_ngram"):
    MLM(max_ngram=2)
  with pytest.raises(UserError, match="at least 1"):
    MLM(unit="ngram", max_ngram=0)
  assert MLM(unit="ngram", max_ngram=2).max_ngram == 2


def test_a_row_without_enough_candidates_gets_fewer_predictions():
  ids = np.full((2, 40), SEP, np.int32)
  ids[1, 7:9] = 50
  for unit in ("token", "whole_word", "ngram"):
    result = corrupt(ids, np.full(2, 40), unit=unit)
    assert result.weights.sum(axis=1).tolist() == [0, 2]
    assert result.positions[1, :2].tolist() == [7, 8]


def test_masks_belong_to_seed_epoch_and_row_whatever_the_block():
  ids, length = rows_of(60, 64)
  whole = corrupt(ids, length, epoch=2, seed=5)
  part = np.array([40, 3, 17])
  again = corrupt(ids[part], length[part], epoch=2, seed=5, rows=part)
  for a, b in zip(whole, again, strict=True):
    np.testing.assert_array_equal(a[part], b)
  for change in ({"epoch": 3, "seed": 5}, {"epoch": 2, "seed": 6}):
    other = corrupt(ids, length, **change)
    assert (other.positions != whole.positions).any(axis=1).all()


def test_whole_words_without_word_starts_are_refused_in_a_sentence():
  ids, length = rows_of(2, 64)
  vocab = dataclasses.replace(VOCAB, word_start=None)
  candidate_mask = masking.candidates(ids, vocab)
  with pytest.raises(UserError, match="marks where words start"):
    masking.corrupt_tokens(
      ids, length, candidate_mask, Draws(0, 0, np.arange(2)), vocab, unit="whole_word"
    )


def test_shares_of_one_or_zero_are_exact():
  ids, length = rows_of(300, 64)
  everything = corrupt(ids, length, mask=1.0, random=0.0)
  chosen = np.take_along_axis(everything.input_ids, everything.positions, axis=1)
  assert (chosen == MASK).all()
  nothing = corrupt(ids, length, mask=0.0, random=0.0)
  np.testing.assert_array_equal(nothing.input_ids, ids)


def corrupt_as_fairseq(ids, length, rows=None, **options):
  draws = Draws(0, 0, np.arange(len(ids)) if rows is None else rows)
  allowed = np.arange(ids.shape[1]) < length[:, None]
  return masking.corrupt_tokens(ids, length, allowed, draws, VOCAB, rules="fairseq", **options)


@pytest.mark.parametrize(
  ("length", "lower", "share"), [(128, 19, 0.2), (512, 76, 0.8), (20, 3, 0), (3, 0, 0.45)]
)
def test_fairseq_rounds_the_number_of_predictions_up_or_down_at_random(length, lower, share):
  rows = 20_000
  ids, lengths = np.full((rows, length), 7, np.int32), np.full(rows, length)
  number = corrupt_as_fairseq(ids, lengths).weights.sum(axis=1)
  assert set(number) <= {lower, lower + 1}
  assert np.mean(number == lower + 1) == pytest.approx(
    share, abs=5 * np.sqrt(share * (1 - share) / rows)
  )
  assert masking.predictions(length, 0.15, rules="fairseq") == max(1, lower + (share > 0))


def test_fairseq_chooses_special_tokens_as_often_as_others_and_padding_never():
  ids, length = rows_of(1, 64)
  ids, length = np.repeat(ids, 20_000, axis=0), np.full(20_000, 60)
  ids[:, 59:] = SEP
  ids[:, 60:] = PAD
  result = corrupt_as_fairseq(ids, length)
  counts = np.bincount(result.positions[result.weights > 0], minlength=64)
  assert (counts[60:] == 0).all()
  np.testing.assert_allclose(counts[:60] / 20_000, 9 / 60, atol=5 * np.sqrt(0.15 * 0.85 / 20_000))


def test_fairseq_s_shares_are_80_10_10_and_its_random_tokens_are_never_special():
  ids, length = rows_of(8000, 128)
  result = corrupt_as_fairseq(ids, length)
  valid = result.weights > 0
  assert valid.sum() >= 1e5
  new = np.take_along_axis(result.input_ids, result.positions, axis=1)[valid]
  old = result.targets[valid]
  assert np.mean(new == MASK) == pytest.approx(0.8, abs=0.005)
  assert np.mean(new == old) == pytest.approx(0.1, abs=0.004)
  drawn = new[(new != MASK) & (new != old)]
  counts = np.bincount(drawn, minlength=VOCAB.size)
  assert (counts[VOCAB.special] == 0).all()
  counts = counts[~VOCAB.special]
  statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
  assert abs(statistic - len(counts)) < 5 * np.sqrt(2 * len(counts))


def test_fairseq_s_masks_belong_to_the_row_whatever_the_block():
  ids, length = rows_of(60, 64, shortest=8)
  part = np.array([40, 3, 17])
  whole = corrupt_as_fairseq(ids, length)
  again = corrupt_as_fairseq(ids[part], length[part], rows=part)
  for a, b in zip(whole, again, strict=True):
    np.testing.assert_array_equal(a[part], b)


def test_static_masks_of_fairseq_s_rules_repeat_with_their_number():
  ids, length = rows_of(60, 64, shortest=8)
  batch = {"input_ids": ids, "length": length, "row_weight": np.ones(60, np.float32)}
  mlm = MLM(rules="fairseq", masking="static", copies=3)
  one, same, other = (
    mlm.corrupt(batch, Draws(0, epoch, np.arange(60)), VOCAB) for epoch in (1, 4, 2)
  )
  for key, value in one.items():
    np.testing.assert_array_equal(value, same[key])
  assert (one["mlm_weights"].sum(axis=1) != other["mlm_weights"].sum(axis=1)).any()
  plain = MLM().corrupt(batch, Draws(0, 0, np.arange(60)), VOCAB)
  assert not np.isin(plain["mlm_targets"][plain["mlm_weights"] > 0], [CLS, SEP]).any()
  assert np.isin(one["mlm_targets"][one["mlm_weights"] > 0], [CLS, SEP]).any()


def test_fairseq_s_rules_refuse_whole_words():
  with pytest.raises(UserError, match="fairseq"):
    MLM(rules="fairseq", unit="whole_word")


@pytest.mark.parametrize("unit", ["token", "whole_word", "ngram"])
def test_a_row_whose_words_run_out_before_its_budget_takes_no_more_than_it_has(unit):
  ids, length = rows_of(8, 40, seed=1)
  ids[0, 1:-1] = np.flatnonzero(~VOCAB.word_start)[-1]  # one word of 38 pieces, which never fits
  found = corrupt(ids, length, unit=unit)
  expected = [reference(ids[i], length[i], i, unit) for i in range(8)]
  assert [sorted(p[w > 0].tolist()) for p, w in zip(found.positions, found.weights)] == expected
