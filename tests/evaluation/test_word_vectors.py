"""Analogies, similarity and neighbours on planted vectors, and the command of each."""

import os
import sys

import numpy as np
import pytest

from plm_jax import cli
from plm_jax.commands import embeddings
from plm_jax.data.subwords import Subwords
from plm_jax.data.vector_files import WordTable, with_ngrams, write_vectors
from plm_jax.errors import UserError
from plm_jax.evaluation.word_vectors import (
  analogies,
  analogy,
  neighbours,
  read_pairs,
  read_questions,
  similarity,
  totals,
)

# A plane of royalty and gender; "duke" is nearer to the answer than "queen" only without exclusion.
WORDS = ["man", "woman", "king", "queen", "Apple", "car", "cars", "dog", "dogs"]
AXES = np.array(
  [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [1, 0, 1, 0, 0],
    [1, 1, 1, 0, 0],
    [0, 0, 0, 0, 1],
    [0, 0, 0, 1, 1],
    [0, 0.6, 0, 1, 1],
    [0, 0, 0.2, 1, 0.3],
    [0, 0.6, 0.2, 1, 0.3],
  ],
  np.float32,
)
TABLE = WordTable(WORDS, AXES)
QUESTIONS = """: family
MAN woman king queen
man king woman queen
man woman king prince
: gram8-plural
car cars dog dogs
car cars dog car
"""


@pytest.fixture
def questions(tmp_path):
  path = tmp_path / "questions.txt"
  path.write_text(QUESTIONS)
  return path


def test_analogies_are_counted_by_section_without_the_words_of_the_question(questions):
  family, plural = analogies(TABLE, read_questions(questions))
  assert family == ("family", 2, 2, 3)
  assert plural == ("gram8-plural", 1, 2, 2)  # "car" is excluded, so it is never the answer
  assert [s[0] for s in totals([family, plural])] == ["semantic", "syntactic", "all"]
  assert totals([family, plural])[-1][1:] == (3, 4, 5)


def test_only_the_first_words_take_part_if_asked(questions):
  family, plural = analogies(TABLE, read_questions(questions), most=4)
  assert family.asked == 2 and plural.asked == 0
  with pytest.raises(UserError, match="none of the 5 analogies"):
    analogies(TABLE, read_questions(questions), most=1)


def test_the_nearest_words_leave_out_the_given_ones():
  assert analogy(TABLE, "man", "king", "woman", best=1)[0].token == "queen"
  assert "car" not in [n.token for n in neighbours(TABLE, "car")]
  assert neighbours(TABLE, "car", 1)[0].token == "cars"


def test_similarity_is_spearmans_with_its_coverage(tmp_path):
  path = tmp_path / "pairs.txt"
  path.write_text("man\twoman\t9\ncar cars 10\nman car 1\nmoon sun 5\napple car 7\n")
  score = similarity(TABLE, read_pairs(path), "pairs")
  assert (score.asked, score.total) == (4, 5)
  assert score.spearman == pytest.approx(0.9487, abs=1e-4)  # cosines .71 .92 0 .71
  assert similarity(TABLE, [("moon", "sun", 1.0)], "none").spearman is None


def test_unknown_words_have_vectors_only_with_n_grams():
  subwords, rng = Subwords(3, 6, 50), np.random.default_rng(0)
  rows, ngrams = AXES * 0.1, rng.normal(size=(50, 5)).astype(np.float32)
  table = WordTable(WORDS, with_ngrams(WORDS, rows, ngrams, subwords), None, subwords, rows, ngrams)
  assert len(neighbours(table, "womanly")) == 8
  with pytest.raises(UserError, match="'womanly' is not among the 9"):
    neighbours(TABLE, "womanly")


@pytest.mark.parametrize("text", ["man woman king\n", ": empty\n"])
def test_a_file_without_analogies_is_refused(tmp_path, text):
  (tmp_path / "q").write_text(text)
  with pytest.raises(UserError, match=r"is no analogy|has no analogies"):
    read_questions(tmp_path / "q")


@pytest.mark.parametrize("text", ["man woman\n", "man woman much\n", "# nothing\n"])
def test_a_file_without_pairs_is_refused(tmp_path, text):
  (tmp_path / "p").write_text(text)
  with pytest.raises(UserError, match=r"is no pair|has no pairs"):
    read_pairs(tmp_path / "p")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """command("eval", "--best=2") -> (exit code, output, errors), with the planted vectors."""
  write_vectors(tmp_path / "v.txt", TABLE, "word2vec")
  monkeypatch.chdir(tmp_path)

  def call(*words):
    for name in list(cli.flags.FLAGS):
      if name in ("model", "words", "analogies", "similarity", "best", "occurrences", "layer",
                  "format", "out"):  # fmt: skip
        delattr(cli.flags.FLAGS, name)
    monkeypatch.setattr(sys, "argv", ["embeddings", *words])
    with pytest.raises(SystemExit) as ended:
      cli.run(embeddings.main, ("ACTION",))
    return (ended.value.code, *capsys.readouterr())

  return call


def test_the_command_scores_finds_and_exports(command, questions, tmp_path):
  code, out, _ = command("eval", "--model=v.txt", f"--analogies={questions}")
  assert not code and "all" in out and "75.0%" in out and "4 of 5" in out
  code, out, _ = command("neighbours", "--model=v.txt", "--words=car", "--best=1")
  assert not code and out.split()[:2] == ["car", "cars"]
  code, out, _ = command("analogy", "--model=v.txt", "--words=man,king,woman")
  assert not code and "queen" in out
  code, _, _ = command("export", "--model=v.txt", "--format=fasttext", "--out=v.bin")
  assert not code
  assert command("neighbours", "--model=v.bin", "--words=car", "--best=1")[1].startswith("car")
  code, _, _ = command("project", "--model=v.txt", "--out=v.png")
  assert not code and (tmp_path / "v.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_word_is_named_and_the_others_have_neighbours(command):
  code, out, errors = command("neighbours", "--model=v.txt", "--words=nix,car", "--best=1")
  assert not code and out.split()[:2] == ["car", "cars"] and len(out.splitlines()) == 1
  assert errors.split()[:4] == ["nix", "is", "not", "among"]


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    (("neighbours", "--model=v.txt", "--words=nix,nox"), "the word 'nix' is not among the"),
    (("look", "--model=v.txt"), "expected one of eval"),
    (("eval", "--model=v.txt"), "give --analogies=FILE"),
    (("eval",), "--model=PATH"),
    (("neighbours", "--model=v.txt"), "give --words"),
    (("analogy", "--model=v.txt", "--words=man"), "give --words=A,B,C"),
    (("export", "--model=v.txt"), "--out=FILE"),
    (("eval", "--model=v.txt", "--similarity=nowhere"), "nowhere does not exist"),
  ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(command, words, sentence):
  code, _, errors = command(*words)
  assert code == 2 and sentence in errors and errors.count("\n") == 1


@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "1e999", "1_0"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path, score):
  (tmp_path / "p").write_text(f"man woman 1\ncar cars {score}\n")
  with pytest.raises(UserError, match="line 2 is no pair"):
    read_pairs(tmp_path / "p")


@pytest.mark.parametrize("read", [read_pairs, read_questions])
def test_a_fifo_or_a_device_is_refused_without_waiting(tmp_path, read):
  os.mkfifo(tmp_path / "fifo")
  for path in (tmp_path / "fifo", "/dev/zero"):
    with pytest.raises(UserError, match=r"a FIFO|a device"):
      read(path)
