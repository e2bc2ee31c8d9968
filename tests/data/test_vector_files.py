"""Files of word vectors, both directions; damage is one sentence; gensim agrees where it is."""

import gzip
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
  "a header that announces fewer": (b"1 2\na 1 2\nb 1 2\n", "announces 1 words"),
  "a header that is narrower": (b"2 2\na 1 2 3\nb 1 2 3\n", "line 2 is damaged"),
  "a header that is wider": (b"2 3\na 1 2\nb 1 2\n", "line 2 is damaged"),
  "a header twice": (b"2 2\n2 2\na 1 2\nb 1 2\n", "line 2 is damaged"),
  "a number with an underscore": (b"a 1 2\nb 1 1_0\n", "line 2 is damaged"),
  "a lost line break": (b"a 1 2\nb 1 2c 1 2\n", "line 2 is damaged"),
  "a number beyond float32": (b"a 1 2\nb 1 1e39\n", "is not finite"),
  "a count of many digits": (b"9" * 5000 + b" 2\na 1 2\n", "line 1 announces"),
  "a width beyond memory": (b"2 1000000000000\na \xff\n", "line 1 announces"),
  "fewer binary words": (b"1 1\na \xff\0\0\0\nb \xff\0\0\0\n", "more bytes than"),
  "fewer binary words without breaks": (b"1 1\na \xff\0\0\0b \xff\0\0\0", "more bytes than"),
  "a lost binary byte": (b"2 1\na \xff\0\0\0\nb \xff\0\0\n", "damaged at word 2"),
  "a lost byte without breaks": (b"2 1\na \xff\0\0b \xff\0\0\0", "damaged at word 2"),
  "a break after one vector": (b"2 1\na \xff\0\0\0\nb \xff\0\0\0", "damaged at word 2"),
  "a later break": (b"2 1\na \xff\0\0\0b \xff\0\0\0\n", "more bytes than"),
  "a binary word not in UTF-8": (b"1 1\n\xfe \xff\0\0\0\n", "damaged at word 1"),
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


WORDS_AT = 8 + 56 + 28  # magic and version, settings, sizes
MATRIX_AT = WORDS_AT + sum(len(word.encode()) + 10 for word in WORDS)
OUTPUT_AT = MATRIX_AT + 2 + 16 + 24 * 20  # 24 rows of 5 numbers, after a byte and two sizes
HEADER = {  # place, form, values
  "dim": (8, "i", (0, -1, 4, 2**31 - 1)),
  "bucket": (8 + 32, "i", (0, -1, 19, 2**31 - 1)),
  "shortest": (8 + 36, "i", (7, -3, -(10**9))),
  "longest": (8 + 40, "i", (0, -1, 2, 101)),
  "size": (64, "i", (-1, 3, 5)),
  "words": (68, "i", (-1, 0, 3, 5)),
  "labels": (72, "i", (-1, 1)),
  "pruned": (84, "q", (-2, 0, 1)),
  "count": (WORDS_AT + 4, "q", (-1,)),
  "kind": (WORDS_AT + 12, "b", (1, 2)),
  "rows": (MATRIX_AT + 1, "q", (0, -1, 23, 2**62)),
  "columns": (MATRIX_AT + 9, "q", (0, -1, 6, 2**62)),
  "number": (MATRIX_AT + 17, "f", (float("nan"), float("inf"))),
  "output rows": (OUTPUT_AT, "q", (0, 3, 2**40)),
  "output number": (OUTPUT_AT + 16, "f", (float("nan"), float("-inf"))),
}


@pytest.mark.parametrize("place, form, values", HEADER.values(), ids=HEADER)
def test_a_fasttext_field_that_disagrees_is_refused(tmp_path, place, form, values):
  path = tmp_path / "m.bin"
  write_vectors(path, WITH_NGRAMS, "fasttext")
  content = path.read_bytes()
  for value in values:
    changed = bytearray(content)
    struct.pack_into("<" + form, changed, place, value)
    path.write_bytes(changed)
    with pytest.raises(UserError):
      read_vectors(path)
  path.write_bytes(content + b"\0")
  with pytest.raises(UserError, match="more bytes"):
    read_vectors(path)


def test_a_corrupt_gzip_file_is_one_sentence(tmp_path):
  content = gzip.compress(b"".join(b"w%d %d 2\n" % (i, i * i) for i in range(2000)))
  path = tmp_path / "v.gz"
  for damaged in (content[:-9], content[:40] + b"\xff" * 40 + content[80:], b"\0" * 40):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot be read"):
      read_vectors(path)


def test_words_with_spaces_and_binary_files_without_line_breaks_are_read(tmp_path):
  (tmp_path / "glove").write_bytes(b"a 1 2\n. . . 3 4\nat name@domain.com 5 6")
  assert read_vectors(tmp_path / "glove").words == ["a", ". . .", "at name@domain.com"]
  (tmp_path / "binary").write_bytes(b"2 1\na " + struct.pack("<f", 1) + b"b \xff\0\0\0")
  assert read_vectors(tmp_path / "binary").words == ["a", "b"]


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
