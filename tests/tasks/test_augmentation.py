"""Changed training texts: what each option does, and that a batch is a function of its step."""

import dataclasses

import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.tasks.augmentation import Augmentation, AugmentedBatches
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example

TEXT = "one two  three four five six"


def changed(augmentation, text=TEXT, row=0, epoch=0):
  return augmentation.changed(text, Draws(7, epoch, np.array([row])), 0)


def test_dropped_words_leave_the_others_in_order_and_never_nothing():
  texts = [changed(Augmentation(drop=0.5), row=row) for row in range(200)]
  for text in texts:
    words = iter(TEXT.split())
    assert text and all(word in words for word in text.split())
  share = np.mean([len(text.split()) for text in texts]) / 6
  assert 0.4 < share < 0.6
  assert {changed(Augmentation(drop=0.99), row=row) for row in range(99)} == set(TEXT.split())


def test_swapped_words_are_the_same_words():
  texts = [changed(Augmentation(swap=0.3), row=row) for row in range(50)]
  assert all(sorted(text.split()) == sorted(TEXT.split()) for text in texts)
  assert len(set(texts)) > 10


def test_chinese_words_are_characters_without_spaces():
  text = changed(Augmentation(swap=0.9), "今天 很好 x1")
  assert sorted(text) == sorted("今天 很好 x1") and text != "今天 很好 x1" and "x1" in text


def test_synonyms_come_from_the_users_file(tmp_path):
  (tmp_path / "s.txt").write_text("two, zwei, deux\n\nthree\tdrei\nalone\n")
  augmentation = Augmentation(replace=0.99, synonyms=str(tmp_path / "s.txt"))
  texts = {changed(augmentation, row=row) for row in range(60)}
  assert {text.split()[1] for text in texts} >= {"zwei", "deux"}
  assert {text.split()[2] for text in texts} <= {"three", "drei"}
  assert all(text.startswith("one ") for text in texts)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"drop": 1.0}, "augment.drop=1.0 must be at least 0 and below 1"),
    ({"replace": 0.1}, "go together"),
    ({"synonyms": "x.txt"}, "go together"),
  ],
)
def test_options_that_change_nothing_or_all_are_refused(options, said):
  with pytest.raises(UserError, match=said):
    Augmentation(**options)


def test_a_file_without_synonyms_is_refused(tmp_path):
  (tmp_path / "s.txt").write_text("alone\n")
  with pytest.raises(UserError, match="has no synonyms"):
    changed(Augmentation(replace=0.5, synonyms=str(tmp_path / "s.txt")))
  with pytest.raises(UserError, match="cannot be read as text"):
    changed(Augmentation(replace=0.5, synonyms=str(tmp_path / "none.txt")))


def test_batches_of_changed_texts_are_functions_of_the_step_and_differ_by_epoch(tokenizer):
  task = Classify(labels=("a", "b"), length=12, augment=Augmentation(drop=0.3))
  texts = ["the small old house", "a river", "red stone road bird", "blue field dog"]
  items = [Example((text,), "ab"[n % 2], str(n)) for n, text in enumerate(texts)]
  examples, model = task.encode(items, tokenizer), Bert(vocab_size=tokenizer.vocab.size)
  made = AugmentedBatches(
    rows=task.rows(examples, model, tokenizer),
    seed=3,
    global_batch=4,
    examples=examples,
    task=task,
    model=model,
    tokenizer=tokenizer,
  )
  plain = dataclasses.replace(task, augment=Augmentation())
  first, again, second = made(0), made(0), made(1)
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  assert sorted(first["label"]) == sorted(second["label"]) == [0, 0, 1, 1]
  by_label = [sorted(map(tuple, batch["input_ids"].tolist())) for batch in (first, second)]
  assert by_label[0] != by_label[1]
  assert first["length"].sum() < plain.rows(examples, model, tokenizer).values["length"].sum()
