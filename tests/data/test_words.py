"""Vocabularies of whole words: phrases, hashed n-grams, files."""

import numpy as np
import pytest

from plm_jax.data.subwords import Subwords, buckets_of, fnv1a, mean_rows, ngrams_of, ragged_ngrams
from plm_jax.data.tokenizers import Words, load_tokenizer
from plm_jax.data.words import find_phrases, join_phrases, pair_keys
from plm_jax.errors import UserError

TEXT = ["I live in New York. New York is big!"] * 6 + ["the cat's hat"] * 4 + ["rare"]


def test_words_are_ordered_by_frequency_and_rare_ones_are_unknown():
  tokenizer = Words(min_count=2).train(TEXT)
  assert tokenizer.pieces[:6] == ["<pad>", "<unk>", "<s>", "</s>", "new", "york"]
  assert tokenizer.backend.counts[:2] == [12, 12]
  assert tokenizer.tokens(tokenizer.encode("the rare york")) == ["the", "<unk>", "york"]
  dropping = Words(min_count=2, drop_unknown=True).train(TEXT)
  ids, lengths = dropping.encode_flat(["the rare york", "rare", "york"])
  assert dropping.tokens(ids) == ["the", "york", "york"] and lengths.tolist() == [2, 0, 1]


def test_the_vocabulary_has_at_most_its_size():
  assert Words(vocab_size=16, min_count=1).train(TEXT * 2).vocab.size <= 16
  with pytest.raises(UserError, match="no word of the text occurs 99 times"):
    Words(min_count=99).train(TEXT)


@pytest.mark.parametrize(
  ("split", "expected"),
  [
    ("words", ["it's", "5", "o'clock", "苹", "果"]),
    ("marks", ["it's", "5", "o'clock", "!", "苹", "果"]),
    ("space", ["it's", "5", "o'clock!", "苹果"]),
  ],
)
def test_a_text_is_split_as_asked(split, expected):
  tokenizer = Words(min_count=1, split=split).train(["It's 5 o'clock! 苹果"])
  assert tokenizer.tokens(tokenizer.encode("It's 5 o'clock! 苹果")) == expected


def test_offsets_are_those_of_the_words():
  tokenizer = Words(min_count=1).train(TEXT)
  (ids,), (offsets,) = tokenizer.encode_offsets(["The cat's hat?"])
  assert tokenizer.tokens(ids) == ["the", "cat's", "hat"]
  assert offsets.tolist() == [[0, 3], [4, 9], [10, 13]]


def test_phrases_have_the_score_of_word2phrase():
  ids, lengths = np.array([0, 1, 0, 1, 2, 0, 1, 2, 2, 3], np.int32), np.array([5, 5])
  # count(0 1) = 3, count(0) = count(1) = 3, 10 words: (3 - 2) / 3 / 3 * 10 = 1.11
  assert find_phrases(ids, lengths, 4, 2, 1.1).tolist() == [pair_keys(*np.array([[0], [1]]))[0]]
  assert not len(find_phrases(ids, lengths, 4, 2, 1.12))


def test_phrases_are_joined_from_left_to_right_and_within_a_text():
  keys = np.sort(pair_keys(np.array([5, 6, 5]), np.array([6, 5, 5])))
  joined = np.array([100, 101, 102])  # 5 5, 5 6, 6 5
  ids, lengths = np.array([5, 6, 5, 6, 5, 5, 7, 6]), np.array([5, 2, 0, 1])
  ids, lengths = join_phrases(ids, lengths, keys, joined)
  assert ids.tolist() == [101, 101, 5, 5, 7, 6] and lengths.tolist() == [3, 2, 0, 1]


def test_phrases_become_tokens_of_a_trained_vocabulary():
  tokenizer = Words(min_count=2, phrases=2.5).train(TEXT)
  assert "new_york" in tokenizer.pieces
  shown = tokenizer.tokens(tokenizer.encode("new york new"))
  assert shown[0] == "new_york" and len(shown) == 2


def test_a_saved_vocabulary_is_the_same(tmp_path):
  tokenizer = Words(min_count=2, phrases=2.5, buckets=50, drop_unknown=True).train(TEXT)
  tokenizer.save(tmp_path)
  again = load_tokenizer(tmp_path)
  assert again.fingerprint == tokenizer.fingerprint
  ids = again.encode("I live in New York, the rare")
  np.testing.assert_array_equal(ids, tokenizer.encode("I live in New York, the rare"))
  for a, b in zip(again.vocab.ngrams, tokenizer.vocab.ngrams, strict=True):
    np.testing.assert_array_equal(a, b)
  (tmp_path / "words.json").write_text("{}")
  with pytest.raises(UserError, match=r"words.json cannot be read"):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  "setting", [{"min_count": 0}, {"split": "letters"}, {"shortest": 4, "longest": 3}]
)
def test_settings_without_a_meaning_are_refused(setting):
  with pytest.raises(UserError, match=r"Words\."):
    Words(**setting)


def test_n_grams_are_those_of_the_original():
  grams = ngrams_of("where", 3, 6)
  assert len(grams) == 14 and grams[:4] == ["<wh", "<whe", "<wher", "<where"]
  assert "<" not in ngrams_of("ab", 1, 2) and ngrams_of("ab", 1, 1) == ["a", "b"]


def test_the_hash_has_the_signed_characters_of_the_original():
  """F38; equal to gensim's ft_hash_bytes, where bytes from 128 on flip the upper bits."""
  assert fnv1a(["<wh", "é"]).tolist() == [1048167652, 1023043777]
  assert buckets_of("where", Subwords())[0] == 167652
  plain = 2166136261
  for byte in "é".encode():
    plain = (plain ^ byte) * 16777619 % 2**32
  assert plain != 1023043777


def test_a_word_with_n_grams_is_their_mean():
  subwords, rng = Subwords(3, 4, 30), np.random.default_rng(0)
  rows, ngrams = rng.normal(size=(3, 2)), rng.normal(size=(30, 2)).astype(np.float32)
  flat, bounds = ragged_ngrams(["cat", "", "dogs"], subwords)
  ours = mean_rows(rows, ngrams, flat, bounds)
  for i, word in enumerate(["cat", "", "dogs"]):
    own = ngrams[buckets_of(word, subwords)] if word else ngrams[:0]
    np.testing.assert_allclose(ours[i], np.vstack([rows[i], own]).mean(axis=0), rtol=1e-5)
