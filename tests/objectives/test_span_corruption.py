"""T5's objectives against the rules of its preprocessors.py, and against a slow copy of them."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.objectives.span_corruption import (
  Deshuffling,
  PrefixLM,
  SpanCorruption,
  noise_budget,
  random_spans,
  tokens_for,
)
from tests.data.toy_store import PAD, SEP, toy_vocab

SIZE, SENTINELS = 1000, 100
VOCAB = dataclasses.replace(
  toy_vocab(SIZE + SENTINELS),
  special=(np.arange(SIZE + SENTINELS) < 5) | (np.arange(SIZE + SENTINELS) >= SIZE),
  sentinels=np.arange(SIZE + SENTINELS - 1, SIZE - 1, -1, dtype=np.int32),
)
FIRST = VOCAB.sentinels[0]
RAGGED = np.array([568, 12, 2, 300, 7, 3, 567, 100])
IID = {"mean_span_length": None}


def batch_of(length, columns=None, seed=0):
  length = np.asarray(length, np.int32)
  columns = columns or int(length.max())
  ids = np.random.default_rng(seed).integers(5, SIZE, (len(length), columns)).astype(np.int32)
  ids[np.arange(columns) >= length[:, None]] = PAD
  return {
    "input_ids": ids,
    "segment_ids": np.zeros_like(ids),
    "length": length,
    "row_weight": np.ones(len(length), np.float32),
  }


def corrupt(objective, batch, epoch=0, rows=None):
  rows = np.arange(len(batch["length"])) if rows is None else rows
  return objective.corrupt(batch, Draws(0, epoch, rows), VOCAB)


def source(made, row):
  return made["input_ids"][row, : made["length"][row]].tolist()


def target(made, row):
  return made["seq2seq_targets"][row, : made["decoder_length"][row]].tolist()


def spliced(inputs, targets):
  """The text: every sentinel of the inputs replaced by what follows it in the targets."""
  filled, span = {}, None
  for token in targets[:-1]:
    if token >= SIZE:
      filled[token] = span = []
    else:
      span.append(token)
  return [t for token in inputs[:-1] for t in filled.get(token, [token])]


@pytest.mark.parametrize(
  ("inputs", "expected"),
  [(512, (568, 114)), (256, (284, 58)), (128, (141, 29)), (1024, (1137, 229)), (64, (70, 14))],
)
def test_the_length_helper_gives_the_published_lengths(inputs, expected):
  assert tokens_for(inputs) == expected
  made = corrupt(SpanCorruption(), batch_of([expected[0]] * 2))
  assert made["input_ids"].shape == (2, inputs) and (made["length"] == inputs).all()
  assert made["seq2seq_targets"].shape[1] == expected[1]
  assert (made["decoder_length"] == expected[1]).all()


@pytest.mark.parametrize("mean", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("rate", [0.15, 0.5, 0.9])
def test_noise_is_exactly_so_many_tokens_in_so_many_runs_text_first_and_noise_last(rate, mean):
  length = np.tile(RAGGED, 20)
  mask = random_spans(length, 568, rate, mean, Draws(0, 0, np.arange(len(length))))
  noise, spans = noise_budget(length, rate, mean)
  np.testing.assert_array_equal(noise, np.clip(np.rint(length * rate), 1, length - 1))
  np.testing.assert_array_equal(mask.sum(axis=1), noise)
  begins = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
  np.testing.assert_array_equal(begins.sum(axis=1), spans)
  assert not mask[:, 0].any()
  assert mask[np.arange(len(length)), length - 1].all()
  assert not (mask & (np.arange(568) >= length[:, None])).any()


def test_every_division_into_spans_is_equally_likely():
  """4 noise tokens in 2 spans, 4 text tokens in 2: 3 x 3 masks."""
  draws = Draws(0, 0, np.arange(9000))
  mask = random_spans(np.full(9000, 8), 8, 0.5, 2.0, draws)
  counts = np.unique(mask, axis=0, return_counts=True)[1]
  assert len(counts) == 9
  np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1000))


def test_inputs_and_targets_have_the_same_sentinels_in_falling_order_and_splice_to_the_text():
  batch = batch_of(RAGGED)
  made = corrupt(SpanCorruption(), batch)
  for row, length in enumerate(RAGGED):
    inputs, targets = source(made, row), target(made, row)
    marks = [t for t in inputs if t >= SIZE]
    assert marks == [FIRST - i for i in range(len(marks))]
    assert marks == [t for t in targets if t >= SIZE]
    assert targets[0] == FIRST  # and no closing sentinel
    assert inputs[-1] == targets[-1] == SEP
    assert spliced(inputs, targets) == batch["input_ids"][row, :length].tolist()


def test_the_decoder_reads_the_target_moved_by_one_after_the_token_of_padding():
  made = corrupt(SpanCorruption(), batch_of(RAGGED))
  for row in range(len(RAGGED)):
    read = made["decoder_input_ids"][row, : made["decoder_length"][row]].tolist()
    assert read == [PAD, *target(made, row)[:-1]]
  weights = np.arange(made["seq2seq_targets"].shape[1]) < made["decoder_length"][:, None]
  np.testing.assert_array_equal(made["seq2seq_weights"], weights)
  assert (made["seq2seq_targets"][~weights] == PAD).all()
  assert "segment_ids" not in made


def test_the_i_i_d_objective_drops_tokens_one_by_one():
  batch = batch_of(np.full(400, 511))
  made = corrupt(SpanCorruption(**IID), batch)
  assert made["input_ids"].shape[1] == 512
  noise = made["decoder_length"] - 1 - (made["seq2seq_targets"] >= SIZE).sum(axis=1)
  assert noise.mean() / 511 == pytest.approx(0.15, abs=5 * np.sqrt(0.1275 / 511 / 400))
  runs = (made["input_ids"] >= SIZE).sum(axis=1)
  assert runs.mean() == pytest.approx(511 * 0.1275, rel=0.02)
  assert noise.std() > 5  # ragged, unlike spans
  for row in range(50):
    inputs, targets = source(made, row), target(made, row)
    text = batch["input_ids"][row].tolist()
    # A text that begins with noise has the first span before the first sentinel of the targets.
    starts_with_text = inputs[0] < SIZE
    assert (targets[0] == FIRST) == starts_with_text
    assert [t for t in inputs[:-1] if t < SIZE] + [t for t in targets[:-1] if t < SIZE] != text
    if starts_with_text:
      assert spliced(inputs, targets) == text


def test_bert_style_shows_nine_in_ten_as_one_sentinel_and_one_in_ten_as_another_token():
  batch = batch_of(np.full(400, 511))
  objective = SpanCorruption(**IID, inputs="mask", random=0.1, targets="text")
  made = corrupt(objective, batch)
  shown, text = made["input_ids"][:, :-1], batch["input_ids"]
  np.testing.assert_array_equal(made["seq2seq_targets"][:, :-1], text)
  changed = shown != text
  assert changed.mean() == pytest.approx(0.15, abs=0.005)
  assert np.mean(shown[changed] == FIRST) == pytest.approx(0.9, abs=0.01)
  others = shown[changed & (shown != FIRST)]
  assert not VOCAB.special[others].any() and len(set(others)) > 900


def test_mass_style_shows_all_noise_as_one_sentinel():
  batch = batch_of(np.full(50, 511))
  made = corrupt(SpanCorruption(**IID, inputs="mask", targets="text"), batch)
  shown = made["input_ids"][:, :-1]
  assert set(shown[shown != batch["input_ids"]]) == {FIRST}


def test_dropped_tokens_leave_no_trace_and_are_the_whole_target():
  batch = batch_of(RAGGED[RAGGED > 10])
  made = corrupt(SpanCorruption(**IID, inputs="drop", targets="noise"), batch)
  for row, length in enumerate(batch["length"]):
    inputs, targets, text = source(made, row), target(made, row), batch["input_ids"][row, :length]
    assert max(inputs) < SIZE and max(targets) < SIZE
    assert sorted(inputs[:-1] + targets[:-1]) == sorted(text.tolist())


def test_a_prefix_is_of_every_length_alike_and_its_target_is_the_rest():
  batch = batch_of(np.full(9000, 10))
  made = corrupt(PrefixLM(), batch)
  prefix = made["length"] - 1
  np.testing.assert_allclose(np.bincount(prefix)[1:], 1000, atol=5 * np.sqrt(1000))
  assert prefix.max() == 9
  for row in range(100):
    text = source(made, row)[:-1] + target(made, row)[:-1]
    assert text == batch["input_ids"][row].tolist()


def test_without_a_prefix_the_whole_text_is_the_target():
  batch = batch_of(RAGGED)
  made = corrupt(PrefixLM(prefix="none"), batch)
  for row, length in enumerate(RAGGED):
    assert source(made, row) == [SEP]
    assert target(made, row) == [*batch["input_ids"][row, :length], SEP]


def test_deshuffling_keeps_the_tokens_and_not_their_order():
  batch = batch_of(RAGGED)
  made = corrupt(Deshuffling(), batch)
  for row, length in enumerate(RAGGED):
    text = batch["input_ids"][row, :length].tolist()
    assert target(made, row) == [*text, SEP]
    shuffled = source(made, row)[:-1]
    assert sorted(shuffled) == sorted(text) and (length < 10 or shuffled != text)


@pytest.mark.parametrize(
  "objective",
  [
    SpanCorruption(),
    SpanCorruption(**IID),
    SpanCorruption(**IID, inputs="mask", random=0.1, targets="text"),
    PrefixLM(),
    Deshuffling(),
  ],
)
def test_corruption_belongs_to_the_row_and_the_epoch_whatever_the_block(objective):
  batch = batch_of(RAGGED)
  part = np.array([5, 0, 3])
  whole = corrupt(objective, batch, epoch=1)
  again = corrupt(objective, {k: v[part] for k, v in batch.items()}, epoch=1, rows=part)
  other = corrupt(objective, batch, epoch=2)
  for name, value in whole.items():
    np.testing.assert_array_equal(value[part], again[name])
  assert not np.array_equal(whole["input_ids"], other["input_ids"])


def test_rows_that_need_more_sentinels_than_there_are_keep_their_last_spans():
  few = dataclasses.replace(VOCAB, sentinels=VOCAB.sentinels[:15])
  batch = batch_of(np.full(8000, 60))
  made = SpanCorruption(**IID).corrupt(batch, Draws(0, 0, np.arange(8000)), few)
  marks = (made["seq2seq_targets"] > FIRST - 15).sum(axis=1)
  assert marks.max() == 15 and (made["seq2seq_targets"] <= FIRST).all()
  full = corrupt(SpanCorruption(**IID), batch)
  fits = (full["input_ids"] >= SIZE).sum(axis=1) < 15
  np.testing.assert_array_equal(made["input_ids"][fits], full["input_ids"][fits])
  assert 0 < (~fits).sum() < 80


@pytest.mark.parametrize(
  ("objective", "tokens"), [(SpanCorruption(rate=0.5), 700), (SpanCorruption(**IID, rate=0.5), 512)]
)
def test_too_few_sentinels_are_refused_with_the_number_that_is_needed(objective, tokens):
  with pytest.raises(UserError, match=r"need \d+ sentinels, and the tokenizer has 100: set data"):
    corrupt(objective, batch_of([tokens]))
  none = dataclasses.replace(VOCAB, sentinels=None)
  with pytest.raises(UserError, match=r"the tokenizer has 0: set .*sentinels to 100"):
    SpanCorruption().corrupt(batch_of([20]), Draws(0, 0, np.arange(1)), none)


@pytest.mark.parametrize(
  "options",
  [{"rate": 0}, {"rate": 1}, {"mean_span_length": 0.5}, {"random": 0.1}, {"label_smoothing": 1}],
)
def test_nonsense_is_refused(options):
  with pytest.raises(UserError, match=next(iter(options))):
    SpanCorruption(**options)
