"""Files of word vectors, both directions; damage is one sentence; gensim agrees where it is."""

import struct

import numpy as np
import pytest

from plm_jax.data.subwords import Subwords
from plm_jax.data.vector_files import (
  FORMATS,
  WordTable,
  read_vectors,
  with_ngrams,
  write_vectors,
)
from plm_jax.errors import UserError

WORDS = ["the", "naïve", "苹果", "cats"]
VECTORS = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
SUBWORDS = Subwords(3, 6, 20)
NGRAMS = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
COUNTS = np.array([9, 5, 3, 2])
VECTORS_WITH_NGRAMS = with_ngrams(WORDS, VECTORS, NGRAMS, SUBWORDS)
WITH_NGRAMS = WordTable(WORDS, VECTORS_WITH_NGRAMS, COUNTS, SUBWORDS, VECTORS, NGRAMS, 2 * VECTORS)


@pytest.mark.parametrize("form", FORMATS)
def test_a_written_file_is_read_again(tmp_path, form):
  write_vectors(tmp_path / "v", WordTable(WORDS, VECTORS, COUNTS), form)
  table = read_vectors(tmp_path / "v")
  assert table.words == WORDS and table.vector("unknown") is None
  np.testing.assert_allclose(table.vectors, VECTORS, atol=1e-5)
  exact = form in ("word2vec-binary", "fasttext")
  assert not exact or (table.vectors == VECTORS).all()


def test_golden_bytes_of_the_formats(tmp_path):
  table = WordTable(["a", "bc"], np.array([[1, -2.5], [0.1, 1e-7]], np.float32))
  expected = {
    "word2vec": b"2 2\na 1 -2.5\nbc 0.1 1e-07\n",
    "glove": b"a 1 -2.5\nbc 0.1 1e-07\n",
    "word2vec-binary": b"2 2\na " + struct.pack("<2f", 1, -2.5) + b"\nbc "
    + struct.pack("<2f", 0.1, 1e-7) + b"\n",
  }  # fmt: skip
  for form, content in expected.items():
    write_vectors(tmp_path / form, table, form)
    assert (tmp_path / form).read_bytes() == content


def test_a_fasttext_model_keeps_all_its_parts(tmp_path):
  write_vectors(tmp_path / "m.bin", WITH_NGRAMS, "fasttext")
  table = read_vectors(tmp_path / "m.bin")
  assert table.subwords == SUBWORDS and table.counts.tolist() == COUNTS.tolist()
  for name in ("vectors", "rows", "ngrams", "output"):
    np.testing.assert_array_equal(getattr(table, name), getattr(WITH_NGRAMS, name))
  unknown = table.vector("catz")
  assert unknown is not None and not np.allclose(unknown, table.vector("cats"))
  head = (tmp_path / "m.bin").read_bytes()[:8]
  assert struct.unpack("<2i", head) == (793712314, 12)


DAMAGED = {
  "an empty file": (b"\n", "is empty"),
  "a header without numbers": (b"two words\na 1 2\n", "line 1 is neither"),
  "a header that announces more": (b"3 2\na 1 2\nb 1 2\n", "announces 3 words, and the file has 2"),
  "a header of nothing": (b"0 5\n", "announces 0 words"),
  "a broken last line": (b"2 2\na 1 2\nb 1", "line 3 is damaged: expected a word and 2 numbers"),
  "a word among numbers": (b"a 1 2 3\nb 1 x 3\n", "line 2 is damaged"),
  "a number that is none": (b"a 1 2 3\nb 1 nan 3\n", "is not finite"),
  "a cut binary file": (b"2 2\na " + struct.pack("<2f", 1, 2) + b"\nb \0\0", "ends in the vector"),
  "a binary word without end": (b"2 2\na" + b"\xff" * 40, "a word has no end"),
  "an unknown version": (struct.pack("<2i", 793712314, 13), "version 13; "),
  "a cut fastText model": (struct.pack("<4i", 793712314, 12, 5, 5), "is cut off"),
}


@pytest.mark.parametrize("content, sentence", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_sentence(tmp_path, content, sentence):
  path = tmp_path / "vectors"
  path.write_bytes(content)
  with pytest.raises(UserError, match=sentence):
    read_vectors(path)


def test_a_truncated_fasttext_matrix_is_refused(tmp_path):
  write_vectors(tmp_path / "m.bin", WITH_NGRAMS, "fasttext")
  content = (tmp_path / "m.bin").read_bytes()
  for size in range(60, len(content), 97):
    (tmp_path / "cut.bin").write_bytes(content[:size])
    with pytest.raises(UserError):
      read_vectors(tmp_path / "cut.bin")


def test_words_that_no_file_can_hold_are_refused(tmp_path):
  with pytest.raises(UserError, match="has white space"):
    write_vectors(tmp_path / "v", WordTable(["new york"], VECTORS[:1]), "word2vec")


def test_published_vectors_are_read(shared_data):
  table = read_vectors(shared_data("vec", "glove.6B.100d.sample.txt.gz"))
  assert table.words[0] == "the" and table.vectors.shape[1] == 100


@pytest.mark.filterwarnings("ignore")  # gensim leaves a file open
def test_gensim_reads_what_is_written_and_the_other_way_round(tmp_path):
  models = pytest.importorskip("gensim.models")
  fasttext = pytest.importorskip("gensim.models.fasttext")
  for form in ("word2vec", "word2vec-binary", "glove"):
    binary, header = form.endswith("binary"), form != "glove"
    write_vectors(tmp_path / form, WordTable(WORDS, VECTORS), form)
    load = models.KeyedVectors.load_word2vec_format
    theirs = load(str(tmp_path / form), binary=binary, no_header=not header)
    assert theirs.index_to_key == WORDS
    np.testing.assert_allclose(theirs.vectors, VECTORS, atol=1e-5)
    theirs.save_word2vec_format(str(tmp_path / "back"), binary=binary, write_header=header)
    np.testing.assert_allclose(read_vectors(tmp_path / "back").vectors, VECTORS, atol=1e-5)
  write_vectors(tmp_path / "m.bin", WITH_NGRAMS, "fasttext")
  model = fasttext.load_facebook_model(str(tmp_path / "m.bin"))
  for word in ("cats", "unseen", "été"):
    np.testing.assert_allclose(model.wv[word], WITH_NGRAMS.vector(word), atol=1e-6)
  fasttext.save_facebook_model(model, str(tmp_path / "back.bin"))
  again = read_vectors(tmp_path / "back.bin")
  np.testing.assert_allclose(again.vectors, WITH_NGRAMS.vectors, atol=1e-6)
