"""BART's noise against the rules of fairseq's denoising_dataset.py."""

import dataclasses
import math

import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.objectives.denoising import Denoising, mbart, permuted, poisson
from tests.data.toy_store import CLS, MASK, PAD, SEP, toy_vocab

SIZE, STOP, CODE = 1000, 10, 1000
VOCAB = dataclasses.replace(
  toy_vocab(SIZE + 1, pieces=0.0),
  full_stop=np.arange(SIZE + 1) == STOP,
  languages={"en_XX": CODE},
  special=(np.arange(SIZE + 1) < 5) | (np.arange(SIZE + 1) == CODE),
)
PIECES = dataclasses.replace(VOCAB, word_start=toy_vocab(SIZE + 1).word_start)
INFILLING = Denoising()
RAGGED = np.array([512, 12, 3, 300, 7, 4, 511, 100])


def batch_of(length, stops=0.05, seed=0):
  """<s> text </s>, with full stops among the text; every other token occurs once in a row."""
  length = np.asarray(length, np.int32)
  columns = int(length.max())
  rng = np.random.default_rng(seed)
  ids = rng.permuted(np.tile(np.arange(11, SIZE), (len(length), 1)), axis=1)[:, :columns]
  ids = np.where(rng.random(ids.shape) < stops, STOP, ids).astype(np.int32)
  ids[:, 0] = CLS
  ids[np.arange(len(length)), length - 1] = SEP
  ids[np.arange(columns) >= length[:, None]] = PAD
  return {"input_ids": ids, "length": length, "row_weight": np.ones(len(length), np.float32)}


def corrupt(objective, batch, epoch=0, rows=None, vocab=VOCAB):
  rows = np.arange(len(batch["length"])) if rows is None else rows
  return objective.corrupt(batch, Draws(0, epoch, rows), vocab)


def source(made, row):
  return made["input_ids"][row, : made["length"][row]].tolist()


def text(batch, row):
  return batch["input_ids"][row, : batch["length"][row]].tolist()


def subsequence(short, long):
  rest = iter(long)
  return all(token in rest for token in short)


@pytest.mark.parametrize(("mean", "ratio", "removed"), [(3.0, 0.817, 0.267), (3.5, 0.805, 0.266)])
def test_infilling_removes_and_shortens_as_measured_of_fairseq(mean, ratio, removed):
  batch = batch_of(np.full(1000, 512), stops=0)
  made = corrupt(Denoising(mean_span_length=mean), batch)
  kept = ((made["input_ids"] != MASK) & (made["input_ids"] != PAD)).sum(axis=1) - 2
  assert np.mean(1 - kept / 510) == pytest.approx(removed, abs=0.003)
  assert (1 - kept / 510).max() <= 0.30
  assert np.mean(made["length"] / 512) == pytest.approx(ratio, abs=0.003)


def test_lengths_are_poisson_and_one_in_twenty_is_nothing():
  u = np.random.default_rng(0).random(200_000)
  drawn = poisson(u, 3.0)
  assert np.mean(drawn == 0) == pytest.approx(0.0498, abs=0.002)
  for n in range(8):
    expected = math.exp(-3) * 3**n / math.factorial(n)
    assert np.mean(drawn == n) == pytest.approx(expected, abs=0.005)


def test_spans_of_length_0_are_realised_as_insertions():
  """Masks between two neighbours of the text; so few of them that they hardly ever meet."""
  batch = batch_of(np.full(1000, 512), stops=0)
  made = corrupt(Denoising(mask=0.02), batch)  # ceil(10.2) words
  inserted = 0
  for row in range(1000):
    place = {token: i for i, token in enumerate(text(batch, row))}
    shown = source(made, row)
    neighbours = zip(shown, shown[1:], shown[2:])
    inserted += sum(b == MASK and place.get(c) == place.get(a, -9) + 1 for a, b, c in neighbours)
  rng, expected = np.random.default_rng(0), 0
  for _ in range(20_000):
    words = 0
    while words < 11:
      drawn = rng.poisson(3.0)
      words += drawn
      expected += drawn == 0
  assert inserted / 1000 == pytest.approx(expected / 20_000, abs=0.05)
  assert 0.1 < inserted / 1000 < 0.4


@pytest.mark.parametrize(
  "objective",
  [
    INFILLING,
    Denoising(unit="token", replace="each"),
    Denoising(unit="token", replace="delete"),
    Denoising(unit="word", replace="each"),
    Denoising(replace="delete"),
  ],
)
@pytest.mark.parametrize("vocab", [VOCAB, PIECES])
def test_tokens_that_survive_keep_their_order_and_the_target_is_the_whole_text(objective, vocab):
  batch = batch_of(RAGGED)
  made = corrupt(objective, batch, vocab=vocab)
  for row in range(len(RAGGED)):
    shown, whole = source(made, row), text(batch, row)
    assert shown[0] == CLS and shown[-1] == SEP
    assert subsequence([t for t in shown if t != MASK], whole)
    target = made["seq2seq_targets"][row, : made["decoder_length"][row]].tolist()
    assert target == whole
    read = made["decoder_input_ids"][row, : made["decoder_length"][row]].tolist()
    assert read == [SEP, *whole[:-1]]
    assert shown != whole or RAGGED[row] < 20
  assert (made["input_ids"][np.arange(512) >= made["length"][:, None]] == PAD).all()


@pytest.mark.parametrize("replace", ["each", "delete"])
def test_single_tokens_are_masked_or_deleted_to_the_budget(replace):
  batch = batch_of(RAGGED)
  made = corrupt(Denoising(unit="token", replace=replace), batch)
  budget = np.ceil((RAGGED - 2).astype(np.float32) * np.float32(0.3))
  if replace == "each":
    np.testing.assert_array_equal((made["input_ids"] == MASK).sum(axis=1), budget)
    same = (made["input_ids"] == batch["input_ids"]) | (made["input_ids"] == MASK)
    assert same.all() and (made["length"] == RAGGED).all()
  else:
    np.testing.assert_array_equal(made["length"], RAGGED - budget)


def test_whole_words_are_masked_with_all_their_pieces():
  batch = batch_of(np.full(50, 200))
  made = corrupt(Denoising(unit="word", replace="each"), batch, vocab=PIECES)
  hidden = made["input_ids"] == MASK
  starts = PIECES.word_start[batch["input_ids"]]
  inside = (np.arange(200) > 0) & (np.arange(200) < 199)
  continues = inside & ~starts
  continues[:, 1] = False  # a piece before the first word belongs to none
  left = np.roll(hidden, 1, axis=1)
  seen = np.cumsum(starts & inside, axis=1) > 0
  np.testing.assert_array_equal(hidden[continues & seen], left[continues & seen])
  words = (starts & inside).sum(axis=1)
  np.testing.assert_array_equal(
    (hidden & starts).sum(axis=1), np.ceil(words.astype(np.float32) * np.float32(0.3))
  )


def test_a_share_of_the_masks_is_a_random_token():
  batch = batch_of(np.full(400, 512), stops=0)
  made = corrupt(Denoising(unit="token", replace="each", random=0.1), batch)
  changed = made["input_ids"] != batch["input_ids"]
  others = made["input_ids"][changed & (made["input_ids"] != MASK)]
  assert len(others) / changed.sum() == pytest.approx(0.1, abs=0.005)
  assert not VOCAB.special[others].any()


def sentences(ids):
  """The sentences of a text without its frame, as the original cuts them."""
  found, current = [], []
  for i, token in enumerate(ids):
    current.append(token)
    is_last = i == len(ids) - 1
    if (token == STOP or is_last) and not (i and ids[i - 1] == STOP):
      found.append(tuple(current))
      current = []
  return found, current


def test_permutation_preserves_the_sentences_of_a_text_and_not_their_order():
  batch = batch_of(np.full(200, 512), stops=0.1)
  batch["input_ids"][:, 40] = batch["input_ids"][:, 41] = STOP  # a second one ends nothing
  made = corrupt(Denoising(mask=0, permute=1.0), batch)
  moved = 0
  for row in range(200):
    before, rest = sentences(text(batch, row)[1:-1])
    shown = source(made, row)
    assert shown[0] == CLS and shown[-1] == SEP
    flat = shown[1:-1]
    assert flat[len(flat) - len(rest) :] == rest
    cut, after = 0, []
    remaining = sorted(before, key=len, reverse=True)
    while cut < len(flat) - len(rest):  # tokens are unique: the next sentence is told by its first
      match = next(s for s in remaining if tuple(flat[cut : cut + len(s)]) == s)
      remaining.remove(match)
      after.append(match)
      cut += len(match)
    assert not remaining
    moved += after != before
  assert moved > 195


def test_every_order_of_three_sentences_is_equally_likely_and_a_share_leaves_some_in_place():
  ids = np.tile(np.array([CLS, 20, STOP, 21, STOP, 22, STOP, SEP], np.int32), (6000, 1))
  length, draws = np.full(6000, 8), Draws(0, 0, np.arange(6000))
  orders = permuted(ids, length, 1.0, draws, VOCAB)[:, [1, 3, 5]]
  counts = np.unique(orders, axis=0, return_counts=True)[1]
  np.testing.assert_allclose(counts, np.full(6, 1000), atol=5 * np.sqrt(1000))
  fixed = (permuted(ids, length, 0.5, draws, VOCAB)[:, [1, 3, 5]] == [20, 21, 22]).sum(axis=1)
  assert set(fixed) == {1, 3}  # two of three are drawn, and swapped or not


def test_rotation_is_cyclic_between_fixed_ends_and_uniform():
  batch = batch_of(np.full(9000, 10), stops=0)
  made = corrupt(Denoising(mask=0, rotate=1.0), batch)
  shift = []
  for row in range(9000):
    whole, shown = text(batch, row)[1:-1], source(made, row)[1:-1]
    k = whole.index(shown[0])
    assert shown == whole[k:] + whole[:k]
    shift.append(k)
  # Offsets 1 to len - 1 of the original: the text stays as it is by the first and by the last.
  np.testing.assert_allclose(np.bincount(shift), [2000] + 7 * [1000], atol=5 * np.sqrt(2000))
  half = corrupt(Denoising(mask=0, rotate=0.5), batch)
  same = (half["input_ids"] == batch["input_ids"]).all(axis=1).mean()
  assert same == pytest.approx(0.5 + 0.5 * 2 / 9, abs=0.03)


def test_infilling_with_permutation_hides_words_of_the_permuted_text():
  batch = batch_of(np.full(50, 512))
  both = corrupt(Denoising(permute=1.0), batch)
  shuffled = corrupt(Denoising(mask=0, permute=1.0), batch)
  for row in range(50):
    shown = [t for t in source(both, row) if t != MASK]
    assert subsequence(shown, source(shuffled, row))
  np.testing.assert_array_equal(both["seq2seq_targets"], batch["input_ids"])


def test_mbart_ends_source_and_target_with_the_language_that_its_decoder_begins_with():
  batch = batch_of(RAGGED)
  objective = mbart("en_XX")
  made = corrupt(objective, batch)
  for row, length in enumerate(RAGGED):
    whole = [*text(batch, row)[1:], CODE]
    target = made["seq2seq_targets"][row, :length].tolist()
    assert target == whole and made["decoder_length"][row] == length
    assert made["decoder_input_ids"][row, :length].tolist() == [CODE, *whole[:-1]]
    assert source(made, row)[-2:] == [SEP, CODE] and CLS not in source(made, row)
  assert (objective.mask, objective.mean_span_length, objective.permute) == (0.35, 3.5, 1.0)
  with pytest.raises(UserError, match=r"no language code 'de_DE': set data\.tokenizer"):
    corrupt(mbart("de_DE"), batch)


@pytest.mark.parametrize(
  "objective",
  [
    INFILLING,
    Denoising(permute=1.0, rotate=0.5, random=0.1),
    Denoising(unit="token", replace="delete"),
  ],
)
def test_corruption_belongs_to_the_row_and_the_epoch_whatever_the_block(objective):
  batch = batch_of(RAGGED)
  part = np.array([5, 0, 3])
  whole = corrupt(objective, batch, epoch=1)
  again = corrupt(objective, {k: v[part] for k, v in batch.items()}, epoch=1, rows=part)
  other = corrupt(objective, batch, epoch=2)
  for name, value in whole.items():
    np.testing.assert_array_equal(value[part], again[name], err_msg=name)
  assert not np.array_equal(whole["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
  "options",
  [{"mask": 1.5}, {"permute": -1}, {"mean_span_length": 0}, {"replace": "one", "unit": "token"}],
)
def test_nonsense_is_refused(options):
  with pytest.raises(UserError, match=next(iter(options))):
    Denoising(**options)
