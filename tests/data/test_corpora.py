"""Text sources: what a document and a sentence are, and what a user is told about bad files."""

import gzip
import json
import os
import time

import pyarrow
import pytest
from pyarrow import parquet

from plm_jax.data import tfds_text
from plm_jax.data.corpora import open_source
from plm_jax.data.pipeline import Corpus
from plm_jax.data.sentences import split_sentences
from plm_jax.data.text_files import LONGEST_DOCUMENT
from plm_jax.data.tokenizers import BytePairs
from plm_jax.errors import UserError

WRAPPED = """It was a dark night. The rain fell in
torrents, except at occasional times, when it was checked by a
violent gust. The wind swept
up the streets of the town.

Nobody was out. All of them had gone to
bed, and the lamps had gone
out. Then a bell rang.


CHAPTER TWO

The morning came. It was a bright one and the
sea was calm, as
it had not been. Birds sang.


CHAPTER THREE

They left.
"""


def sentences(path):
  return [document.sentences for document in open_source(str(path)).documents()]


def write(path, text, encoding="utf-8"):
  path.write_bytes(text.encode(encoding))
  return path


def test_a_blank_line_separates_documents_and_a_line_is_a_sentence(tmp_path):
  path = write(tmp_path / "a.txt", "\ufeffone. two.\r\nthree  four\r\n\r\n  \r\nfive\n\n")
  assert sentences(path) == [("one. two.", "three four"), ("five",)]


def test_lines_can_be_kept_with_their_breaks_and_indentation(tmp_path):
  path = write(tmp_path / "a.txt", "def f(x):\n    return  x\r\n\n\nif a:\n\tb")
  documents = [d.sentences for d in open_source(str(path), lines=True).documents()]
  assert documents == [("def f(x):\n", "    return  x\n"), ("if a:\n", "\tb")]
  path = write(tmp_path / "a.jsonl", json.dumps({"text": "a:\n\n  b\n"}) + '\n{"text": " "}\n')
  assert [d.sentences for d in open_source(str(path), lines=True).documents()] == [
    ("a:\n", "\n", "  b\n")
  ]
  with pytest.raises(UserError, match=r"it needs a .txt or .jsonl file"):
    open_source("tfds:installed_text", tmp_path, lines=True)


def test_byte_pairs_read_every_later_text_as_they_were_trained():
  """Line by line with lines; else with single spaces: score and generate get text with breaks."""
  lines = ["def f(x):\n", "    return x\n", "\n", "if a:\n"]
  kept = BytePairs(vocab_size=300).train(lines, lines=True)
  parts = kept.encode_batch(lines)
  assert kept.encode("".join(lines)).tolist() == [i for part in parts for i in part]
  assert kept.decode(kept.encode("".join(lines))) == "".join(lines)
  joined = BytePairs(vocab_size=300).train([" ".join(line.split()) for line in lines])
  text = "def f(x):\n    return x"
  assert joined.encode(text).tolist() == joined.encode("def f(x): return x").tolist()
  Corpus(lines=True, tokenizer=BytePairs())
  with pytest.raises(UserError, match=r"data.lines=true has no effect with a WordPiece"):
    Corpus(lines=True)


def test_a_line_of_json_is_read_whole(tmp_path):
  """Escapes of ASCII make 1.2 MB of 200,000 characters; it was cut within an escape."""
  text = "今日は天気がいい。" * 22_000
  path = write(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n")
  assert "".join(sentences(path)[0]) == text


def test_a_long_line_is_a_paragraph_and_is_split(tmp_path):
  sentence = "Dr. Smith saw many of them, e.g. Bob, in No. 5 of the street that day."
  path = write(tmp_path / "a.txt", " ".join([sentence] * 5))
  assert sentences(path) == [(sentence,) * 5]


def test_wrapped_lines_are_joined_and_only_runs_of_blank_lines_end_documents(tmp_path):
  found = sentences(write(tmp_path / "a.txt", WRAPPED))
  assert [len(document) for document in found] == [6, 4, 2]
  assert found[0][2] == "The wind swept up the streets of the town."


def test_articles_of_wikitext_are_documents_and_sections_are_not(tmp_path):
  article = " \n = {0} = \n \n It is {0} . \n \n = = Life = = \n \n Long . \n"
  path = write(tmp_path / "a.txt", article.format("Bob") + article.format("Ann") + " \n")
  assert sentences(path) == [
    (f"= {name} =", f"It is {name} .", "= = Life = =", "Long .") for name in ("Bob", "Ann")
  ]


@pytest.mark.parametrize("line", ["w{} a b c d", "The cat {} sat. It ran.", "A title {}"])
def test_one_sentence_per_line_is_never_taken_for_wrapped_text(tmp_path, line):
  lines = [line.format(i) for i in range(30)]
  assert sentences(write(tmp_path / "a.txt", "\n".join(lines))) == [tuple(lines)]


def test_chinese_and_japanese_are_split_without_spaces():
  assert split_sentences("吾輩は猫である。名前はまだ無い。") == [
    "吾輩は猫である。",
    "名前はまだ無い。",
  ]


def zstd(content: bytes) -> bytes:
  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
    stream.write(content)
  return sink.getvalue().to_pybytes()


def table_of(path, **columns):
  parquet.write_table(pyarrow.table(columns), path)
  return path


def test_json_lines_gzip_zstandard_parquet_and_folders_read_as_the_same_documents(tmp_path):
  texts = ["one\ntwo", "three"]
  lines = "\n".join(json.dumps({"text": text, "label": "x"}) for text in texts)
  folder = tmp_path / "folder" / "deep"
  folder.mkdir(parents=True)
  write(folder / "a.jsonl", lines)
  (folder / "b.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n\nthree\n"))
  (folder / "c.jsonl.zst").write_bytes(zstd(lines.encode()))
  table_of(folder / "d.parquet", text=texts, label=["x", "y"], number=[1, 2])
  write(folder / "notes.pdf", "not read")
  found = list(open_source(str(tmp_path / "folder")).documents())
  assert [document.sentences for document in found] == [("one", "two"), ("three",)] * 4
  assert found[0].label == found[6].label == "x" and found[0].name == "deep/a.jsonl:1"
  assert found[7].name == "deep/d.parquet:2"


@pytest.mark.parametrize("packed", [gzip.compress, zstd])
def test_lines_of_a_parquet_file_are_kept_as_those_of_compressed_json(tmp_path, packed):
  texts = ["def f():\n  return 1\n", "\n", "x = 1"]
  suffix = "gz" if packed is gzip.compress else "zst"
  (tmp_path / f"a.jsonl.{suffix}").write_bytes(
    packed("\n".join(json.dumps({"text": text}) for text in texts).encode())
  )
  table_of(tmp_path / "a.parquet", text=[*texts, None])
  found = [
    [d.sentences for d in open_source(str(tmp_path / name), lines=True).documents()]
    for name in (f"a.jsonl.{suffix}", "a.parquet")
  ]
  assert found[0] == found[1] == [("def f():\n", "  return 1\n"), ("x = 1",)]


@pytest.mark.parametrize(
  ("columns", "words"),
  [
    ({"sentence": ["a"]}, 'no "text" among its columns; it has: sentence'),
    ({"text": [1], "n": [2]}, 'no "text" of strings, but of int64; it has: text, n'),
    ({}, "it has: none"),
    (
      {"text": pyarrow.array([b"ok", b"\xff"], pyarrow.binary()).view(pyarrow.string())},
      "has a text that is not UTF-8, in rows 1 to 256",
    ),
  ],
)
def test_a_parquet_file_without_texts_is_a_sentence(tmp_path, columns, words):
  path = table_of(tmp_path / "a.parquet", **columns)
  with pytest.raises(UserError, match=words):
    list(open_source(str(path)).documents())


def test_texts_of_parquet_may_be_large_or_categories_and_labels_null(tmp_path):
  words = pyarrow.array(["one", "two"])
  for at, text in enumerate((words.dictionary_encode(), words.cast(pyarrow.large_string()))):
    path = table_of(tmp_path / f"{at}.jsonl.parquet", text=text, label=["x", None])
    found = list(open_source(str(path)).documents())
    assert [(d.sentences, d.label) for d in found] == [(("one",), "x"), (("two",), "")]


def test_the_fingerprint_changes_with_the_text_and_not_with_the_place(tmp_path):
  (tmp_path / "moved").mkdir()
  prints = [
    open_source(str(write(path, text))).fingerprint()
    for path, text in [
      (tmp_path / "a.txt", "one"),
      (tmp_path / "moved" / "a.txt", "one"),
      (tmp_path / "a.txt", "two"),
    ]
  ]
  assert prints[0] == prints[1] != prints[2]


def test_text_without_line_breaks_comes_in_bounded_pieces(tmp_path):
  path = write(tmp_path / "a.txt", "w\u00f6rd " * 600_000)
  found = list(open_source(str(path)).documents())
  assert all(sum(map(len, d.sentences)) <= 2 * LONGEST_DOCUMENT for d in found) and len(found) > 1
  assert sum(len(s.split()) for d in found for s in d.sentences) == 600_000


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("a.txt", "one\ncaf\u00e9".encode("latin1"), ["a.txt", "UTF-8", "offset 7", "line 2"]),
    ("a.txt", b" \n\n", ["empty"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": ', ["line 2", "JSON"]),
    ("a.jsonl", b'{"text": 3}', ["line 1", '"text"']),
    (
      "a.jsonl",
      rb'{"text": "\ud83d\ude00"}' + b"\n" + rb'{"text": "\ud800"}',
      ["line 2", r"\ud800"],
    ),
    ("a.jsonl", b"[" * 100_000, ["line 1", "brackets"]),
    ("a.txt.gz", b"not gzip", ["gzip"]),
    ("a.txt.gz", gzip.compress(b"text " * 50, mtime=0)[:-9], ["gzip"]),
    ("a.txt.zst", b"not zstandard", ["a.txt.zst", "damaged or not Zstandard (ZSTD"]),
    ("a.txt.zst", zstd(b"text " * 5000)[:-9], ["a.txt.zst", "Truncated"]),
    ("a.parquet", b"not parquet", ["a.parquet", "Parquet"]),
    ("a.pdf", b"x", [".txt"]),
  ],
)
def test_bad_files_get_a_sentence(tmp_path, name, content, words):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as error:
    list(open_source(str(tmp_path / name)).documents())
  assert all(word in str(error.value) for word in words), error.value


def test_missing_text_and_empty_folders_and_unprepared_data_sets_get_a_sentence(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  for source, word in [
    (str(tmp_path / "none.txt"), "does not exist"),
    (str(tmp_path), "contains no text"),
    ("tfds:wiki40b/en", "tfds build"),
  ]:
    with pytest.raises(UserError, match=word):
      open_source(source, tmp_path)


def test_what_killed_preparations_left_is_removed_a_day_later_and_not_before(tmp_path):
  old, new = tmp_path / ".preparing-old", tmp_path / ".preparing-new"
  for folder in (old, new):
    folder.mkdir()
    (folder / "half").write_text("x")
  os.utime(old, (time.time() - 90_000,) * 2)
  tfds_text._remove_left_over(tmp_path)
  assert not old.exists() and new.exists()
