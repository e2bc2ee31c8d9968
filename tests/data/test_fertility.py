"""Claims about the notes on a tokenizer that fits a text badly."""

from types import SimpleNamespace

import numpy as np
import pytest

from plm_jax.data.fertility import fertility, fertility_notes

# Two beginnings of words, one continuation, an unknown token.
VOCAB = SimpleNamespace(word_start=np.array([True, True, False, True]), unk=3)


def text(*counts):
  return SimpleNamespace(
    train=SimpleNamespace(counts=np.array(counts)),
    tokenizer=SimpleNamespace(vocab=VOCAB),
    manifest={"source": {"given": "new.txt"}},
  )


def test_fertility_is_the_number_of_pieces_of_a_word():
  assert fertility(np.array([3, 1, 6, 0]), VOCAB) == pytest.approx(2.5)
  assert fertility(np.array([3, 1, 6, 0]), SimpleNamespace(word_start=None)) is None


@pytest.mark.parametrize(
  ("pieces", "known", "said"),
  [
    (3, {"": 1.1}, []),  # 1.3, and 1.32 would be the limit
    (4, {"": 1.1}, ["into 1.40 pieces on average; it was 1.10 in the run before"]),
    (8, {}, []),
    (9, {}, ["into 1.90 pieces on average; more than 1.8 is much"]),
  ],
)
def test_a_text_in_many_pieces_is_noted(pieces, known, said):
  notes = fertility_notes({"": text(6, 4, pieces, 0)}, known)
  assert len(notes) == len(said) and all(s in note for s, note in zip(said, notes))
  assert all("new.txt" in note for note in notes)


def test_a_text_with_unknown_words_is_noted():
  (note,) = fertility_notes({"": text(80, 15, 0, 5)}, {})
  assert note == "note: the tokenizer does not know 5.0% of the words of new.txt"
  assert not fertility_notes({"": text(80, 19, 0, 1)}, {})
