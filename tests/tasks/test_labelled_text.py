"""Labelled data: split by document, no sentence on two sides, and sentences for what is wrong."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.documents import Document
from plm_jax.data.preparation import share_of
from plm_jax.errors import UserError
from plm_jax.tasks.labelled_text import LabelledText, documents_of, read_task
from plm_jax.tasks.tables import read_table

TOY = LabelledText(source="tfds:toy", held_out=0.2, dev_share=0.2, length=12, shortest=2, least=2)


def test_no_document_is_in_two_splits(documents, tokenizer):
  task = read_task(TOY, tokenizer, documents)
  sides = [set(s.documents) for s in (task.train, task.dev, task.test)]
  assert all(sides)
  assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
  assert len(set.union(*sides)) == len(documents)


def test_the_test_documents_are_those_that_pretraining_held_out(documents, tokenizer):
  held_out = {d.name for d in documents if share_of(d, b"split") < 0.2}
  assert set(read_task(TOY, tokenizer, documents).test.documents) == held_out


def test_a_sentence_of_the_test_split_is_in_no_other(documents, tokenizer):
  held_out = next(d for d in documents if share_of(d, b"split") < 0.2)
  others = [
    Document(
      f"copy.{i}",
      (held_out.sentences[0], f"{held_out.sentences[1]} tree stone {'old ' * i}"),
      held_out.label,
    )
    for i in range(6)
  ]
  task = read_task(TOY, tokenizer, [*documents, *others])
  keys = [{tokens.tobytes() for tokens in split.ids} for split in (task.train, task.dev, task.test)]
  assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
  assert sum(map(len, keys)) == sum(len(s.ids) for s in (task.train, task.dev, task.test))
  assert held_out.sentences[0] in task.test.texts
  assert held_out.sentences[0] not in task.train.texts + task.dev.texts


def test_few_examples_are_drawn_by_the_seed_and_only_from_training(documents, tokenizer):
  task = read_task(TOY, tokenizer, documents)
  first, again, other = task.few(20, 0), task.few(20, 0), task.few(20, 1)
  assert first.train.texts == again.train.texts != other.train.texts
  assert len(set(first.train.texts)) == 20
  assert set(first.train.texts) <= set(task.train.texts)
  assert first.test.texts == task.test.texts


def test_more_examples_than_there_are_is_refused(documents, tokenizer):
  with pytest.raises(UserError, match=r"5000 labelled examples .* training split has"):
    read_task(TOY, tokenizer, documents).few(5000, 0)


def test_a_class_has_at_most_so_many_examples(documents, tokenizer):
  config = dataclasses.replace(TOY, per_class=10, test_per_class=3)
  task = read_task(config, tokenizer, documents)
  assert np.bincount(task.train.label).tolist() == [10, 10, 10]
  assert np.bincount(task.test.label).max() == 3


def test_a_class_with_few_documents_is_left_out_and_named(documents, tokenizer):
  rare = Document("rare.0", ("a rare bird in a tree",), "rare")
  task = read_task(TOY, tokenizer, [*documents, rare])
  assert task.classes == ("animal", "colour", "number")
  assert list(task.left_out) == ["rare"]


def test_examples_are_cut_to_the_length_and_short_ones_say_too_little(documents, tokenizer):
  config = dataclasses.replace(TOY, length=5, shortest=5)
  task = read_task(config, tokenizer, documents)
  assert {len(tokens) for tokens in task.train.ids} == {3}
  with pytest.raises(UserError, match="has no example in the"):
    read_task(dataclasses.replace(TOY, shortest=50), tokenizer, documents)


def test_a_text_without_labels_or_with_one_class_is_refused(documents, tokenizer):
  with pytest.raises(UserError, match="has no label"):
    read_task(TOY, tokenizer, [documents[0]._replace(label="")])
  with pytest.raises(UserError, match="has 1 class with at least"):
    read_task(TOY, tokenizer, [d._replace(label="same") for d in documents])


def test_tables_of_all_kinds_are_read_alike(tmp_path):
  written = {
    "a.jsonl": '{"text": "red, or \\"blue\\"", "label": 1}\n\n{"text": "two", "label": "b c"}\n',
    "a.csv": 'label,text\r\n1,"red, or ""blue"""\r\nb c,two\r\n',
    "a.tsv": '\ufefftext\tlabel\nred, or "blue"\t1\ntwo\tb c\n',
  }
  for name, text in written.items():
    (tmp_path / name).write_text(text, encoding="utf-8")
    read = read_table(tmp_path / name)
    assert [(d.sentences, d.label) for d in read] == [
      (('red, or "blue"',), "1"),
      (("two",), "b c"),
    ]


def test_splits_of_ones_own_are_taken_as_they_are(table, tokenizer, tmp_path):
  rows = table.read_text().splitlines(keepends=True)
  for name, part in (("train", rows[:180]), ("dev", rows[180:210]), ("test", rows[210:])):
    (tmp_path / f"{name}.jsonl").write_text("".join(part))
  config = dataclasses.replace(
    TOY,
    source=str(tmp_path / "train.jsonl"),
    dev=str(tmp_path / "dev.jsonl"),
    test=str(tmp_path / "test.jsonl"),
  )
  task = read_task(config, tokenizer, documents_of(config, None))
  assert [len(s.ids) for s in (task.train, task.dev, task.test)] == [180, 30, 30]


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("a.jsonl", "", "is empty"),
    ("a.jsonl", '{"text": "x"}\n', 'line 1, has no "label"'),
    ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": 1,\n', "line 2, is not JSON"),
    ("a.jsonl", "[1]\n", "line 1, is not an object"),
    ("a.jsonl", r'{"text": "\ud800", "label": "y"}', "line 1, is not JSON .half a character"),
    ("a.jsonl", "[" * 100_000, "line 1, is not JSON .too many brackets"),
    ("a.csv", "text,kind\nx,y\n", 'no column "label"'),
    ("a.tsv", "text\tlabel\nx\n", 'line 2, has no "label"'),
    ("a.csv", 'text,label\n"x,y\n', "cannot be read"),
    ("a.jsonl", b"\xff\xfe", "is not UTF-8"),
    ("a.parquet", "", "unknown file suffix"),
    ("none.csv", None, "does not exist"),
  ],
)
def test_a_table_that_cannot_be_read_is_named_in_a_sentence(tmp_path, name, text, said):
  path = tmp_path / name
  if text is not None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=said):
    list(documents_of(dataclasses.replace(TOY, source=str(path)), None))
