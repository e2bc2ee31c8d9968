"""Documents end to end, and what a causal objective predicts of them."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.objectives.clm import CLM
from tests.data.toy_store import CLS, PAD, SEP, ToyStore, random_store, toy_vocab

VOCAB = toy_vocab()
WHOLE = PackedDocuments(separate=False)


def read(segments, store, length):
  return segments.read(store, segments.table(store, length, 0, 0), length, VOCAB)


@pytest.mark.parametrize("length", [8, 33, 500])
def test_rows_are_the_framed_documents_one_after_the_other(length):
  store = random_store(30)
  rows = read(PackedDocuments(), store, length)
  expected = []
  for d in range(30):
    a, b = (store.sentence_starts[store.document_starts[i]] for i in (d, d + 1))
    expected += [CLS, *store.tokens[a:b].tolist(), SEP]
  real = np.arange(length) < rows["length"][:, None]
  assert rows["input_ids"][real].tolist() == expected
  assert (rows["input_ids"][~real] == PAD).all()
  assert (rows["length"][:-1] == length).all()
  ids = np.concatenate([[0], rows["document_ids"][real]])
  # A document's <s> is where the number changes, or begins a row.
  begins = (np.array(expected) == CLS)[1:]
  starts_row = np.broadcast_to(np.arange(length) == 0, real.shape)[real][1:]
  assert (begins[~starts_row] == (np.diff(ids)[1:] != 0)[~starts_row]).all()


def test_one_token_for_all_that_is_no_text_is_enough():
  """As in GPT-2's vocabulary; what a row is filled up with has no part in it."""
  one = dataclasses.replace(VOCAB, cls=None, sep=None, pad=None, bos=CLS, eos=CLS)
  store = random_store()
  segments = PackedDocuments()
  rows = segments.table(store, 64, 0, 0)
  usual, found = (segments.read(store, rows, 64, vocab) for vocab in (VOCAB, one))
  ids = usual.pop("input_ids")
  expected = np.where((ids == SEP) | (ids == PAD), CLS, ids)
  np.testing.assert_array_equal(found.pop("input_ids"), expected)
  for name, values in usual.items():
    np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("length", [7, 33])
def test_documents_that_are_not_framed_are_their_tokens_one_after_the_other(length):
  """As for GPT-1, whose vocabulary has nothing else."""
  nothing = dataclasses.replace(VOCAB, cls=None, sep=None, pad=None, bos=None, eos=None)
  store, segments = random_store(30), PackedDocuments(framed=False)
  table = segments.table(store, length, 0, 0)
  rows = segments.read(store, table, length, nothing)
  real = np.arange(length) < rows["length"][:, None]
  np.testing.assert_array_equal(rows["input_ids"][real], store.tokens)
  bounds = store.sentence_starts[store.document_starts[:-1]]
  document = np.searchsorted(bounds, np.arange(len(store.tokens)), side="right") - 1
  first = np.arange(len(store.tokens)) // length * length
  np.testing.assert_array_equal(rows["document_ids"][real], document - document[first])
  with pytest.raises(UserError, match=r"set data\.segments\.framed=false"):
    PackedDocuments().read(store, table, length, nothing)


def test_documents_without_tokens_are_left_out():
  with_holes = ToyStore([[0, 0], [3], [], [5, 0], []])
  rows = read(PackedDocuments(), with_holes, 8)
  assert rows["input_ids"][0, [0, 4, 5]].tolist() == [CLS, SEP, CLS]
  assert rows["document_ids"].tolist() == [[0] * 5 + [1] * 3, [0] * 4 + [-1] * 4]
  assert len(PackedDocuments().table(ToyStore([[]]), 8, 0, 0)) == 0


def test_rows_read_as_one_text_have_the_same_tokens_and_no_documents():
  store = random_store(30)
  separate, whole = read(PackedDocuments(), store, 64), read(WHOLE, store, 64)
  assert separate.keys() - whole.keys() == {"document_ids"}
  np.testing.assert_array_equal(separate["input_ids"], whole["input_ids"])


def test_the_first_token_of_a_document_is_not_predicted_from_another():
  store = ToyStore([[3], [4]])  # <s> a a a </s> <s> b b b b </s>
  for segments, predicted in ((PackedDocuments(), 9), (WHOLE, 10)):
    rows = read(segments, store, 16) | {"row_weight": np.ones(1, np.float32)}
    batch = CLM().corrupt(rows, Draws(0, 0, np.arange(1)), VOCAB)
    assert batch["clm_weights"].sum() == predicted
    assert (batch["clm_weights"][0, 4] == 0) == segments.separate  # after </s>
    assert batch["clm_targets"][0, 3] == SEP and batch["clm_weights"][0, 3] == 1


def test_a_row_is_read_alike_alone_and_among_others():
  store, segments = random_store(30), PackedDocuments()
  table = segments.table(store, 64, 0, 0)
  all_rows = segments.read(store, table, 64, VOCAB)
  one = segments.read(store, table[5:6], 64, VOCAB)
  for name, values in one.items():
    np.testing.assert_array_equal(values[0], all_rows[name][5])
  assert dataclasses.replace(segments) == segments


def test_separate_documents_of_ordered_rows_are_whole_and_shuffled():
  store = random_store(30)

  def documents(segments):
    ids, number = segments.running(store, VOCAB)
    return [ids[number == d].tolist() for d in range(30)]

  plain, shuffled = documents(PackedDocuments()), documents(PackedDocuments(ordered=True))
  assert sorted(shuffled) == sorted(plain) and shuffled != plain
  assert documents(PackedDocuments(ordered=True)) == shuffled
  one_text = [PackedDocuments(separate=False, ordered=o).running(store, VOCAB)[0] for o in (0, 1)]
  np.testing.assert_array_equal(*one_text)
