"""Labelled data: split by document, no sentence on two sides, and sentences for what is wrong."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.documents import Document, share_of
from plm_jax.errors import UserError
from plm_jax.tasks.label import Label

TOY = Label(source="tfds:toy", held_out=0.2, dev_share=0.2, length=12, shortest=2, least=2)


def texts(examples):
  return [item.texts[0] for item in examples.items]


def test_no_document_is_in_two_splits(documents, tokenizer):
  task = TOY.split(tokenizer, documents)[1]
  sides = [s.documents for s in (task.train, task.dev, task.test)]
  assert all(sides)
  assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
  assert len(set.union(*sides)) == len(documents)


def test_the_test_documents_are_those_that_pretraining_held_out(documents, tokenizer):
  held_out = {d.name for d in documents if share_of(d, b"split") < 0.2}
  assert TOY.split(tokenizer, documents)[1].test.documents == held_out


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
  task = TOY.split(tokenizer, [*documents, *others])[1]
  keys = [
    {tokens.tobytes() for (tokens,) in split.ids} for split in (task.train, task.dev, task.test)
  ]
  assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
  assert sum(map(len, keys)) == sum(len(s.ids) for s in (task.train, task.dev, task.test))
  assert held_out.sentences[0] in texts(task.test)
  assert held_out.sentences[0] not in texts(task.train) + texts(task.dev)


def test_few_examples_are_drawn_by_the_seed_and_only_from_training(documents, tokenizer):
  task = TOY.split(tokenizer, documents)[1]
  first, again, other = task.few(20, 0), task.few(20, 0), task.few(20, 1)
  assert texts(first.train) == texts(again.train) != texts(other.train)
  assert len(set(texts(first.train))) == 20
  assert set(texts(first.train)) <= set(texts(task.train))
  assert texts(first.test) == texts(task.test)


def test_more_examples_than_there_are_is_refused(documents, tokenizer):
  with pytest.raises(UserError, match=r"5000 labelled examples .* training split has"):
    TOY.split(tokenizer, documents)[1].few(5000, 0)


def test_a_class_has_at_most_so_many_examples(documents, tokenizer):
  config = dataclasses.replace(TOY, per_class=10, test_per_class=3)
  task = config.split(tokenizer, documents)[1]
  assert np.bincount(task.train.targets["label"]).tolist() == [10, 10, 10]
  assert np.bincount(task.test.targets["label"]).max() == 3


def test_a_class_with_few_documents_is_left_out_and_named(documents, tokenizer):
  rare = Document("rare.0", ("a rare bird in a tree",), "rare")
  task, splits = TOY.split(tokenizer, [*documents, rare])
  assert task.classes == ("animal", "colour", "number")
  assert list(splits.left_out) == ["rare"]


def test_examples_are_cut_to_the_length_and_short_ones_say_too_little(documents, tokenizer):
  config = dataclasses.replace(TOY, length=5, shortest=5)
  task = config.split(tokenizer, documents)[1]
  assert {len(tokens) for (tokens,) in task.train.ids} == {3}
  with pytest.raises(UserError, match="has no example in the"):
    dataclasses.replace(TOY, shortest=50).split(tokenizer, documents)


def test_a_text_without_labels_or_with_one_class_is_refused(documents, tokenizer):
  with pytest.raises(UserError, match="has no label"):
    TOY.split(tokenizer, [documents[0]._replace(label="")])[1]
  with pytest.raises(UserError, match="has 1 class with at least"):
    TOY.split(tokenizer, [d._replace(label="same") for d in documents])[1]
