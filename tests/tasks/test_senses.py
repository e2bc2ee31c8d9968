"""One word, two senses: the classifier, its ties, the examples, and the parts of the command."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from plm_jax.commands.senses import described, draw
from plm_jax.data.tokenizers import WordPiece, Words
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.word_vectors import WordVectors
from plm_jax.runs import Run
from plm_jax.tasks.senses import Use, nearest_accuracy, read_uses, senses
from plm_jax.tasks.word_states import occurrence_table, states_of
from tests.toy_run import TOY

USES = read_uses()
TEXTS = [use.text for use in USES]


def run_of(model, tokenizer):
  model = dataclasses.replace(model, vocab_size=tokenizer.vocab.size)
  experiment = dataclasses.replace(TOY, model=model, objectives=(), steps=0)
  return Run(experiment=experiment, params=model.init(jax.random.key(0), {}), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def bert():
  model = Bert(layers=2, width=16, heads=2, positions=32)
  return run_of(model, WordPiece(vocab_size=400).train(TEXTS))


@pytest.fixture(scope="module")
def static():
  return run_of(WordVectors(width=8), Words(min_count=1).train(TEXTS))


def test_the_examples_have_ten_words_of_two_senses_in_eight_sentences():
  counts = Counter((use.word, use.sense) for use in USES)
  words = Counter(word for word, _ in counts)
  assert len(words) >= 10 and set(words.values()) == {2} and set(counts.values()) == {8}
  assert {"bank", "python", "mouse", "apple", "spring", "苹果"} <= set(words)
  assert all(use.text[use.start : use.end].lower() == use.word for use in USES)
  assert len(set(TEXTS)) == len(TEXTS)


def test_the_nearest_use_decides_and_equal_ones_share():
  uses = [Use("a", sense, "", 0, 0) for sense in "xxyy"] + [Use("b", "z", "", 0, 0)]
  apart = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 1]])
  assert nearest_accuracy(apart, uses) == 4 / 5  # b has no other use
  assert nearest_accuracy(np.ones((5, 1)), uses) == pytest.approx(4 / 5 / 3)
  swapped = [uses[0], uses[2], uses[1], uses[3], uses[4]]
  assert nearest_accuracy(apart, swapped) == 0


def test_static_vectors_cannot_tell_senses_apart(static, bert):
  uses = [use for use in USES if use.word in ("bank", "python")]
  floor = senses(static, uses)
  assert floor.accuracy.tolist() == [floor.floor] == pytest.approx([7 / 15])
  shown = described(floor, 1)
  assert "cannot tell senses apart; their accuracy is chance" in shown and "nearest:" not in shown
  result = senses(bert, uses)
  assert len(result.accuracy) == 3 and result.accuracy[-1] != pytest.approx(7 / 15)


def test_states_of_rows_do_not_depend_on_their_company(bert):
  alone = states_of(bert, [TEXTS[0]])[0][0]
  together = states_of(bert, [TEXTS[0], " ".join(TEXTS[1:3])])[0][0]
  np.testing.assert_allclose(alone, together, atol=1e-5)


def test_occurrences_are_averaged(bert):
  table = occurrence_table(bert, ["the bank", "a bank near the bank"])
  assert table.words[:2] == ["bank", "the"] and table.counts[:2].tolist() == [3, 2]
  texts, spans = ["the bank", "a bank near the bank"], [(4, 8), (2, 6), (16, 20)]
  uses = []
  for (start, end), (states, offsets) in zip(spans, states_of(bert, [texts[0], *texts[1:] * 2])):
    inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
    uses.append(states[inside, -1].mean(axis=0))
  np.testing.assert_allclose(table.vectors[0], np.mean(uses, axis=0), atol=1e-5)
  with pytest.raises(UserError, match="has 3 layers"):
    occurrence_table(bert, texts, layer=7)


def test_results_are_printed_and_drawn(bert, tmp_path):
  result = senses(bert, [use for use in USES if use.word in ("bank", "苹果")])
  shown = described(result, 1)
  assert "layer 2" in shown and "nearest:" in shown and "苹果" in shown
  draw(result, tmp_path / "senses.png")
  assert (tmp_path / "senses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  "line", ["bank\tmoney", "bank\tmoney\tno brackets", "bank\tmoney\t[two] [words]", "# nothing"]
)
def test_a_file_without_uses_is_refused(tmp_path, line):
  (tmp_path / "uses.tsv").write_text(line + "\n")
  with pytest.raises(UserError, match=r"is no use of a word|has no uses"):
    read_uses(tmp_path / "uses.tsv")


def test_words_that_the_model_cannot_read_are_refused(static):
  with pytest.raises(UserError, match="reads the word of 0 of 1 sentences"):
    senses(static, [Use("x", "y", "zzz", 0, 3)])
