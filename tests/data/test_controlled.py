"""Controlled languages are functions of their name, and their best scores are those of theory."""

import numpy as np
import pytest

from plm_jax.data.controlled import LANGUAGES, open_controlled
from plm_jax.data.corpora import open_source
from plm_jax.errors import UserError

DIALS = {"topics": 0.3, "places": 0.3, "markov": 0.4, "echoes": 0.5, "motifs": 0.5}
DIALS |= {"classes": 64, "facts": 8}


def words(name, count, dial=None) -> np.ndarray:
  """int [documents, sentences, length]."""
  text = open_controlled(f"controlled:{name}/{DIALS[name] if dial is None else dial:g}/{count}")
  lines = [[line.split() for line in document.sentences] for document in text.documents()]
  return np.array([[[int(w[1:]) for w in line] for line in lines_] for lines_ in lines])


def test_every_language_is_tried_here():
  assert set(DIALS) == set(LANGUAGES)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_text_is_a_function_of_its_name_and_a_longer_one_begins_with_it(name):
  short, long = words(name, 20), words(name, 30)
  np.testing.assert_array_equal(short, long[:20])
  text = open_controlled(f"controlled:{name}/{DIALS[name]:g}/20")
  assert short.shape[1:] == text.language.shape and short.max() < text.language.words
  assert open_source(f"controlled:{name}/{DIALS[name]:g}/20") == text
  assert text.fingerprint() != text._replace(count=30).fingerprint()


def test_the_dial_is_the_share_that_it_names():
  topics = words("topics", 400) // 12
  most = np.stack([(topics == k).mean(axis=(1, 2)) for k in range(16)]).max(axis=0)
  assert abs(most.mean() - (0.3 + 0.7 / 16)) < 0.02
  places = words("places", 400) // 12 - 16
  told = places == np.arange(8)[:, None]
  assert abs(told.mean() - 0.3) < 0.01 and not (places[~told] >= 0).any()
  first, second = np.split(words("echoes", 400), 2, axis=-1)
  assert abs((first == second).mean() - (0.5 + 0.5 / 32)) < 0.01
  motif = words("motifs", 400, dial=1)
  pairs = (motif[..., 0::2] + 1) % 64 == motif[..., 1::2]
  assert abs(pairs.mean() - 0.9**2) < 0.02
  assert abs((motif[:, 1:] == motif[:, :-1]).mean() - 0.9**2) < 0.02


def counted_entropy(rows: np.ndarray, size: int) -> float:
  """The entropy of rows of numbers below `size`, by counting."""
  keys = np.zeros(len(rows), np.int64)
  for column in rows.T:
    keys = keys * size + column
  share = np.unique(keys, return_counts=True)[1] / len(rows)
  return -(share * np.log(share)).sum()


@pytest.mark.parametrize(("name", "size"), [("markov", 48), ("classes", 16)])
def test_the_best_losses_of_a_chain_are_those_that_counting_gives(name, size):
  """With enough text; an entropy that is counted is too small by about cells / (2 N)."""
  language = open_controlled(f"controlled:{name}/{DIALS[name]:g}").language
  rows = words(name, 4_000).reshape(4_000, -1)
  each = language.words // size
  triples = np.concatenate([rows[:, i : i + 3] for i in range(rows.shape[1] - 2)]) // each
  two, three = counted_entropy(triples[:, :2], size), counted_entropy(triples, size)
  ends = counted_entropy(triples[:, ::2], size)
  one = counted_entropy(triples[:, :1], size)
  assert abs(two - one + np.log(each) - language.best("clm_loss")) < 0.03
  assert abs(three - ends + np.log(each) - language.best("mlm_loss")) < 0.03


def test_the_best_accuracy_by_topic_grows_with_the_dial_and_is_one_half_without():
  none, few, some, all_ = (
    open_controlled(f"controlled:topics/{dial}").language.best("nsp_accuracy")
    for dial in (0, 0.1, 0.3, 1)
  )
  assert none == 0.5 < few < some < all_
  assert abs(all_ - (1 - 1 / 32)) < 0.01  # one in 16 of the random pairs has the same topic


def test_the_best_accuracy_of_order_is_that_of_rows_without_a_word_of_a_place():
  told = (words("places", 2_000, dial=0.02) >= 16 * 12)[:, :4].any(axis=(1, 2)).mean()
  best = open_controlled("controlled:places/0.02").language.best("sop_accuracy")
  assert abs(best - (told + (1 - told) / 2)) < 0.01


def test_a_fact_follows_from_two_words_nine_times_in_ten():
  rows = words("facts", 500).reshape(500, -1)
  context, word = (rows[:, :-2] * 8 + rows[:, 1:-1]).ravel(), rows[:, 2:].ravel()
  counts = np.zeros((64, 8))
  np.add.at(counts, (context, word), 1)
  usual = counts.max(axis=1).sum() / counts.sum()
  assert abs(usual - (0.9 + 0.1 / 8)) < 0.01


@pytest.mark.parametrize(
  ("source", "sentence"),
  [
    ("controlled:themes/0.5", "NAME one of topics, places"),
    ("controlled:topics", "expected controlled:NAME/DIAL"),
    ("controlled:topics/much", "needs numbers after topics/"),
    ("controlled:topics/1.5", "that of topics is from 0 to 1"),
    ("controlled:facts/8.5", "expected a multiple of 1"),
    ("controlled:classes/100", "expected a multiple of 16"),
    ("controlled:topics/nan", "that of topics is from 0 to 1"),
    ("controlled:topics/0.5/0", "expected 1 to 10,000,000"),
  ],
)
def test_a_text_that_is_none_is_a_sentence(source, sentence):
  with pytest.raises(UserError, match=sentence):
    open_source(source)
