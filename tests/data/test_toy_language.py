"""The toy language: its closed forms against enumeration of every possible row."""

import itertools

import numpy as np
import pytest

from tests.toy_language import (
  HIDDEN,
  Corruption,
  ToyLanguage,
  bayes_mlm_loss,
  bayes_posterior,
  entropy,
  entropy_rate,
  masked_entropy,
  random_language,
  unigram_entropy,
  write_corpus,
)


def probability(language, row):
  """p(row) as a stretch of the stationary source, from the definition."""
  order, words = language.order, language.vocabulary
  total = 0.0
  for past in itertools.product(range(words), repeat=order - 1):  # what came just before the row
    sequence = (*past, *row)
    state = np.ravel_multi_index(sequence[:order], (words,) * order)
    p = language.stationary_S[state]
    for t in range(order, len(sequence)):
      p *= language.table[sequence[t - order : t + 1]]
    total += p
  return total


def shown_given(corruption, word, shown, selected):
  """p(shown | word, selected) from the rule: [MASK], itself, or a random token."""
  if not selected:
    return float(shown == word)
  p = corruption.mask if shown == HIDDEN else corruption.random / corruption.drawn_from
  return p + corruption.same * (shown == word)


def enumerated_posterior(language, shown, selected, corruption, at):
  """p(word at `at` | shown, `at` was selected) by adding up every row there is."""
  words, rate = language.vocabulary, corruption.rate
  posterior = np.zeros(words)
  for row in itertools.product(range(words), repeat=len(shown)):
    p = probability(language, row)
    for t, (word, seen) in enumerate(zip(row, shown)):
      if t == at:
        p *= shown_given(corruption, word, seen, True)
      elif rate is None:
        p *= shown_given(corruption, word, seen, selected[t])
      else:
        p *= rate * shown_given(corruption, word, seen, True) + (1 - rate) * (seen == word)
    posterior[row[at]] += p
  return posterior / posterior.sum()


def corrupted(words, rng, rate, vocabulary):
  selected = rng.random(words.shape) < rate
  draw = rng.random(words.shape)
  replaced = np.where(draw < 0.9, words, rng.integers(0, vocabulary, words.shape))
  return np.where(selected, np.where(draw < 0.8, HIDDEN, replaced), words), selected


@pytest.mark.parametrize("order", [1, 2])
def test_the_stationary_distribution_is_kept_by_the_transition(order):
  language = random_language(5, order)
  pi = language.stationary_S
  assert np.all(pi > 0) and pi.sum() == pytest.approx(1)
  np.testing.assert_allclose(pi @ language.transition_SS, pi, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_entropies_agree_with_enumeration(order):
  language = random_language(3, order, seed=4)
  shape = (3,) * (2 * order + 1)
  joint = np.array([probability(language, row) for row in np.ndindex(shape)]).reshape(shape)
  assert joint.sum() == pytest.approx(1)
  middle = order
  marginal = joint.sum(axis=middle, keepdims=True)
  assert masked_entropy(language) == pytest.approx(-(joint * np.log(joint / marginal)).sum())
  after = joint.sum(axis=tuple(range(order)))  # the last order + 1 words
  assert entropy_rate(language) == pytest.approx(
    -(after * np.log(after / after.sum(axis=-1, keepdims=True))).sum()
  )
  ends = joint.sum(axis=tuple(range(2 * order)))
  assert unigram_entropy(language) == pytest.approx(entropy(ends))


def test_context_on_both_sides_helps_more_than_on_one():
  language = random_language(16)
  assert masked_entropy(language) < entropy_rate(language) < unigram_entropy(language) < np.log(16)


def test_a_language_without_structure_has_the_entropy_of_its_vocabulary():
  language = random_language(8, sharpness=0.0)
  for of in (unigram_entropy, entropy_rate, masked_entropy):
    assert of(language) == pytest.approx(np.log(8))


@pytest.mark.parametrize("drawn_from", [3, 8])
@pytest.mark.parametrize("rate", [None, 0.3])
@pytest.mark.parametrize("order", [1, 2])
def test_the_posterior_agrees_with_enumeration(order, rate, drawn_from):
  language = random_language(3, order, seed=1)
  corruption = Corruption(rate=rate, drawn_from=drawn_from)
  words = language.sample(4, 5, seed=2)
  shown, selected = corrupted(words, np.random.default_rng(3), 0.5, 3)
  assert (shown == HIDDEN).any() and (selected & (shown >= 0)).any()
  posterior = bayes_posterior(language, shown, selected, corruption)
  for row, at in np.ndindex(shown.shape):
    expected = enumerated_posterior(language, shown[row], selected[row], corruption, at)
    np.testing.assert_allclose(posterior[row, at], expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_the_loss_at_a_lone_mask_is_the_masked_entropy(order):
  language = random_language(3, order, seed=5)
  length, at = 2 * order + 1, order
  rows = np.array(list(np.ndindex((3,) * length)))
  weight = np.array([probability(language, tuple(row)) for row in rows])
  shown, selected = rows.copy(), np.zeros(rows.shape, bool)
  shown[:, at], selected[:, at] = HIDDEN, True
  posterior = bayes_posterior(language, shown, selected)
  losses = -np.log(posterior[np.arange(len(rows)), at, rows[:, at]])
  assert weight @ losses == pytest.approx(masked_entropy(language))


def test_the_loss_is_the_sum_over_selected_positions_alone():
  language = random_language(4)
  words = language.sample(3, 6, seed=0)
  shown, selected = corrupted(words, np.random.default_rng(0), 0.5, 4)
  posterior = bayes_posterior(language, shown, selected)
  expected = sum(-np.log(posterior[b, t, words[b, t]]) for b, t in np.argwhere(selected))
  unread = np.where(selected, words, 99)
  loss, count = bayes_mlm_loss(language, unread, shown, selected)
  assert (loss, count) == (pytest.approx(expected), selected.sum())


def test_knowing_which_positions_were_selected_can_only_help():
  language = random_language(8)
  words = language.sample(400, 16, seed=0)
  shown, selected = corrupted(words, np.random.default_rng(0), 0.15, 8)
  told = bayes_mlm_loss(language, words, shown, selected, Corruption())[0]
  untold = bayes_mlm_loss(language, words, shown, selected, Corruption(rate=0.15))[0]
  ignorant = bayes_mlm_loss(language, words, shown, selected, Corruption(rate=0.9))[0]
  assert told < untold < ignorant


def test_padding_and_specials_change_no_posterior():
  language = random_language(4, order=2)
  shown = language.sample(2, 6, seed=0)
  selected = np.zeros(shown.shape, bool)
  shown[:, 3], selected[:, 3] = HIDDEN, True
  around = ((0, 0), (1, 4))
  padded = bayes_posterior(
    language, np.pad(shown, around, constant_values=HIDDEN), np.pad(selected, around)
  )
  np.testing.assert_allclose(padded[:, 1:-4], bayes_posterior(language, shown, selected))


@pytest.mark.parametrize("order", [1, 2])
def test_samples_follow_the_table(order):
  language = random_language(4, order)
  rows = language.sample(4000, 20, seed=1)
  np.testing.assert_array_equal(rows, language.sample(4000, 20, seed=1))
  assert not np.array_equal(rows, language.sample(4000, 20, seed=2))
  counts = np.zeros(language.table.shape)
  np.add.at(counts, tuple(rows[:, k : 20 - order + k] for k in range(order + 1)), 1)
  total = counts.sum(axis=-1, keepdims=True)
  # Six standard deviations of a share estimated from `total` draws.
  assert np.all(np.abs(counts / total - language.table) < 6 * np.sqrt(0.25 / total))
  first = np.bincount(rows[:, 0], minlength=4) / 4000
  marginal = language.stationary_S.reshape(-1, 4).sum(axis=0)
  assert np.abs(first - marginal).max() < 6 * np.sqrt(0.25 / 4000)


def test_the_corpus_file_has_a_sentence_a_line_and_blank_lines_between_documents(tmp_path):
  language = random_language(20)
  path = tmp_path / "toy.txt"
  written = write_corpus(path, language, documents=3, sentences=4, words=5, seed=1)
  documents = path.read_text().strip().split("\n\n")
  read = [[[int(w[1:]) for w in s.split()] for s in d.split("\n")] for d in documents]
  np.testing.assert_array_equal(written, read)
  assert written.shape == (3, 4, 5)


def test_a_table_by_hand_gives_the_textbook_entropy_rate():
  # Cover & Thomas, example 4.2: two states, mu = (b, a) / (a + b), H = mu_0 H(a) + mu_1 H(b).
  a, b = 0.2, 0.4
  language = ToyLanguage(np.array([[1 - a, a], [b, 1 - b]]))
  np.testing.assert_allclose(language.stationary_S, [b / (a + b), a / (a + b)])
  expected = (b * entropy(np.array([a, 1 - a])) + a * entropy(np.array([b, 1 - b]))) / (a + b)
  assert entropy_rate(language) == pytest.approx(expected)
