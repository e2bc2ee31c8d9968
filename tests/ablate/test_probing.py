"""Linear probes: what they read, and which examples they are trained on."""

from types import SimpleNamespace

import numpy as np
import pytest

from plm_jax.ablate.probing import (
  SIZES,
  chosen,
  order,
  probe,
  ridge_accuracy,
  tagging,
)
from plm_jax.data.documents import Document
from plm_jax.errors import UserError
from plm_jax.evaluation.scores import Scores
from plm_jax.runs import Run
from plm_jax.tasks.frozen_states import text_vectors, word_vectors
from plm_jax.tasks.label import Label
from plm_jax.tasks.labelled_text import side_of

TASK = Label(held_out=0.2)


def some_documents(count=120):
  words = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
  return [
    Document(f"{n}", (" ".join([*words, str(n)]), "too short"), f"class {n % 2}")
    for n in range(count)
  ]


def test_a_probe_learns_a_linear_rule_and_nothing_from_noise():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 10)).astype(np.float32)
  linear = [str(int(v > 0)) for v in x @ rng.normal(size=10)]
  noise = [str(v) for v in rng.integers(0, 2, 600)]
  parts = [slice(0, 300), slice(300, 400), slice(400, 600)]
  assert ridge_accuracy(*((x[p], linear[p]) for p in parts)) > 0.95
  assert abs(ridge_accuracy(*((x[p], noise[p]) for p in parts)) - 0.5) < 0.12


def test_examples_are_long_enough_and_of_the_side_of_their_document():
  documents = some_documents()
  splits = chosen(documents, TASK)
  side = {d.sentences[0]: side_of(d, TASK) for d in documents}
  for split, each in splits.items():
    assert 0 < len(each.texts) <= SIZES[split]
    assert {side[text] for text in each.texts} == {split}
  assert chosen(documents[::-1], TASK) == splits, "the order of the documents does not matter"


def test_the_first_labels_of_a_seed_are_another_draw_than_those_of_the_next():
  texts = [str(n) for n in range(50)]
  assert order(texts, "0")[:20] != order(texts, "1")[:20]
  assert sorted(order(texts, "0")) == list(range(50))


def test_the_vector_of_a_text_is_the_mean_of_its_words(source):
  run = Run.load(source.path)
  (whole,) = text_vectors(run, ["small old river"])
  words = word_vectors(run, ["small old river"], [[(0, 5), (6, 9), (10, 15)]])
  assert words.shape == (3, whole.shape[0])
  np.testing.assert_allclose(whole, words.mean(axis=0), atol=1e-5)
  assert not np.allclose(words[0], words[1], atol=1e-3)


def test_words_are_tagged_from_two_files_and_models_of_counts_have_no_states(source, tmp_path):
  source = Run.load(source.path)
  tagged = zip(("small", "old", "river", "house"), "ABAB", strict=True)
  sentence = "".join(f"{word}\t{tag}\n" for word, tag in tagged) + "\n"
  for name in ("train.conll", "test.conll"):
    (tmp_path / name).write_text(sentence * 140)
  scores = Scores.of(source)
  tagging(source, f"{tmp_path / 'train.conll'},{tmp_path / 'test.conll'}", scores)
  assert scores.metrics["probe_tag_accuracy"] == 1.0
  assert scores.references["probe_tag_accuracy"] == pytest.approx(0.5)
  with pytest.raises(UserError, match="must be two files"):
    tagging(source, "one", scores)

  counted = SimpleNamespace(experiment=SimpleNamespace(is_counted=True))
  probe(counted, [None], tmp_path, scores)
  assert "no states to probe" in scores.notes[-1]
