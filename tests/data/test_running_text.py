"""Rows of running text: every token once, in order, nothing in between."""

import numpy as np

from plm_jax.data.running_text import RunningText
from plm_jax.data.tables import pass_table
from tests.data.toy_store import PAD, random_store, toy_vocab


def rows_of(store, length):
  table = RunningText().table(store, length, 0, 0)
  return table, RunningText().read(store, table, length, toy_vocab())


def test_rows_are_the_whole_text_in_order_across_documents_without_special_tokens():
  store = random_store()
  table, batch = rows_of(store, 37)
  lengths = batch["length"]
  assert (lengths[:-1] == 37).all() and 2 <= lengths[-1] <= 37
  read = batch["input_ids"][np.arange(37) < lengths[:, None]]
  np.testing.assert_array_equal(read, store.tokens[: len(read)])
  assert len(read) >= len(store.tokens) - 1
  np.testing.assert_array_equal(RunningText().tokens(table), lengths)
  assert (batch["input_ids"][-1, lengths[-1] :] == PAD).all()


def test_a_text_shorter_than_a_row_is_one_short_row():
  store = random_store(documents=1, most=2, longest=8)
  _, batch = rows_of(store, 200)
  assert batch["length"].tolist() == [len(store.tokens)]
  np.testing.assert_array_equal(batch["input_ids"][0, : len(store.tokens)], store.tokens)


def test_every_seed_and_pass_has_the_same_rows():
  store = random_store()
  one, other = (pass_table(store, RunningText(), 30, seed, seed) for seed in (0, 3))
  np.testing.assert_array_equal(one, other)
