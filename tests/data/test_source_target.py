"""Pairs of texts keep to themselves from the file to the two sides of a batch."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.corpora import open_source
from plm_jax.data.draws import Draws
from plm_jax.data.source_target import SourceTarget
from plm_jax.errors import UserError
from plm_jax.objectives.seq2seq import Translation
from tests.data.toy_store import CLS, PAD, SEP, ToyStore, random_store, toy_vocab
from tests.toy_language import Copy


def batch_of(store, length):
  table = SourceTarget().table(store, length, 0, 0)
  batch = SourceTarget().read(store, table, length, toy_vocab())
  return batch | {"row_weight": np.ones(len(table), np.float32)}


def test_a_line_of_a_tsv_file_is_a_document_of_a_source_and_a_target(tmp_path):
  path = tmp_path / "pairs.tsv"
  path.write_text("Hi.  All!\tHallo. Alle!\tCC-BY\n\nRun\tLauf\n")
  found = list(open_source(str(path)).documents())
  assert [d.sentences for d in found] == [("Hi. All!", "Hallo. Alle!"), ("Run", "Lauf")]
  path.write_text("Hi\tHallo\nRun\n")
  with pytest.raises(UserError, match=r"Line 2 of .* is not a pair: expected a source, a tab"):
    list(open_source(str(path)).documents())


@pytest.mark.parametrize("framed", [True, False])
def test_source_and_target_are_the_two_texts_cut_to_half_a_row_each(framed):
  store = ToyStore([[4, 6], [30, 2], [3, 3, 3], [1, 40]])
  batch = batch_of(store, 32)
  assert len(batch["input_ids"]) == 3  # three sentences are no pair
  objective = Translation(framed=framed)
  made = objective.corrupt(batch, Draws(0, 0, np.arange(3)), toy_vocab())
  assert made["input_ids"].shape == made["seq2seq_targets"].shape == (3, 16)
  texts = [(0, 4, 4, 6), (10, 14, 40, 2), (51, 1, 52, 14)]
  for row, (a, a_length, b, b_length) in enumerate(texts):
    source = [*store.tokens[a : a + a_length], SEP]
    target = [*store.tokens[b : b + b_length], SEP]
    n, m = made["length"][row], made["decoder_length"][row]
    assert made["input_ids"][row, :n].tolist() == ([CLS] if framed else []) + source
    assert made["seq2seq_targets"][row, :m].tolist() == target
    first = CLS if framed else PAD
    assert made["decoder_input_ids"][row, :m].tolist() == [first, *target[:-1]]
    assert (made["input_ids"][row, n:] == PAD).all()
    assert made["seq2seq_weights"][row].sum() == m


def test_a_vocabulary_without_a_begin_serves_sources_without_one():
  store, vocab = ToyStore([[4, 6]]), toy_vocab()
  t5 = dataclasses.replace(vocab, cls=None, sep=None, eos=1)
  table = SourceTarget().table(store, 32, 0, 0)
  batch = SourceTarget().read(store, table, 32, t5) | {"row_weight": np.ones(1, np.float32)}
  made = Translation(framed=False).corrupt(batch, Draws(0, 0, np.arange(1)), t5)
  assert made["input_ids"][0, :5].tolist() == [*store.tokens[:4], 1]


def test_a_text_that_has_no_pairs_is_refused():
  store = random_store(documents=3, seed=1)
  store.document_starts = store.document_starts[[0, -1]]
  with pytest.raises(UserError, match=r"give a \.tsv file"):
    SourceTarget().table(store, 32, 0, 0)


@pytest.mark.parametrize("reverse", [True, False])
def test_the_toy_task_is_the_text_itself_or_backwards(reverse):
  batch = batch_of(ToyStore([[4, 6], [30, 2]]), 32)
  made = Copy(reverse=reverse).corrupt(batch, Draws(0, 0, np.arange(2)), toy_vocab())
  for row in range(2):
    n = batch["length"][row]
    text = batch["input_ids"][row, 1 : n - 1].tolist()
    expected = [*(text[::-1] if reverse else text), SEP]
    assert made["seq2seq_targets"][row, : n - 1].tolist() == expected
    assert made["decoder_input_ids"][row, : n - 1].tolist() == [CLS, *expected[:-1]]
    assert made["input_ids"][row, :n].tolist() == [CLS, *text, SEP]


def test_smoothing_out_of_range_is_refused():
  with pytest.raises(UserError, match=r"seq2seq\.label_smoothing=1"):
    dataclasses.replace(Copy(), label_smoothing=1)
