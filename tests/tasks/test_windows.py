"""Windows of long texts: they cover all, and each token is read where it has the most context."""

import numpy as np
import pytest

from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt2
from plm_jax.models.t5 import T5
from plm_jax.tasks.windows import best_window, windowed_rows, windows_of
from tests.tasks.test_rows import TOKENIZER


def test_windows_begin_at_the_stride_and_the_last_ends_with_the_text():
  assert [w[1:] for w in windows_of(10, 4, 2)] == [(0, 4), (2, 6), (4, 8), (6, 10)]
  assert [w[1:] for w in windows_of(9, 4, 8)] == [(0, 4), (4, 8), (8, 9)]  # no token is skipped
  assert [w[1:] for w in windows_of(4, 4, 2)] == [(0, 4)] and windows_of(0, 4, 2)[0].end == 0


def test_a_token_is_read_where_it_has_the_most_context():
  """BERT's example (run_squad.py, `_check_is_max_context`): "bought" has 4 and 0 tokens in the
  first window, 1 and 3 in the second; all of its windows are compared."""
  windows = windows_of(12, 5, 3)
  assert [w[1:] for w in windows] == [(0, 5), (3, 8), (6, 11), (9, 12)]
  assert best_window(windows, 12).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("model", [Bert, Gpt2, T5])
def test_rows_of_windows_know_their_place_in_the_text(model):
  ids = [(np.array([5, 6]), np.arange(7, 20)), (np.array([5]), np.array([8]))]
  rows, windows = windowed_rows(ids, model(vocab_size=40), TOKENIZER, 12, 3)
  assert rows.example.tolist() == [0] * len(windows[0]) + [1]
  row = 0
  for example, group in enumerate(windows):
    for window in group:
      at = np.flatnonzero(rows.text[row] == 1)
      assert rows.piece[row, at].tolist() == list(range(window.start, window.end))
      assert (rows.tokens["input_ids"][row, at] == ids[example][1][window.start : window.end]).all()
      asked = rows.tokens["input_ids"][row, rows.text[row] == 0]
      assert asked.tolist() == ids[example][0].tolist()
      row += 1
  assert row == len(rows)


def test_a_long_question_is_cut_and_leaves_room():
  rows, windows = windowed_rows(
    [(np.full(90, 5), np.full(9, 6))], Bert(vocab_size=40), TOKENIZER, 16, 4
  )
  assert (rows.text[0] == 0).sum() == 8 and windows[0][0].end == 5
