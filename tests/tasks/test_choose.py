"""Multiple choice: a score for each choice, padded choices masked, groups of rows kept together."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.tasks.choose import Choice, Choose
from plm_jax.tasks.examples import Example
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.task import Context
from plm_jax.train.step import accumulate, together
from tests.tasks.conftest import TELLING, toy_sentence


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  """The right choice has the word of an animal; there are two or three choices."""
  kinds = sorted(TELLING)
  rows = []
  for n in range(60):
    choices = [toy_sentence(3 * n + k, kinds[1 + k % 2]) for k in range(2 + n % 2)]
    choices[n % 2] = toy_sentence(3 * n, "animal")
    rows.append({"prompt": "the old house", "choices": choices, "label": n % 2})
  return written(tmp_path_factory.mktemp("choose") / "q.jsonl", rows)


@pytest.fixture(scope="module")
def read(source, questions, tmp_path_factory):
  task = Choose(source=str(questions), test_share=0.2, dev_share=0.2)
  return task.read(Context(source, tmp_path_factory.mktemp("cache")))


def test_every_choice_is_a_row_after_its_prompt_and_missing_ones_have_no_score(
  read, source, tokenizer
):
  task, splits = read
  rows = task.rows(splits.test, source.config, tokenizer)
  assert task.most == rows.together == 3 and len(rows) == 3 * len(splits.test)
  vocab = tokenizer.vocab
  for number, item in enumerate(splits.test.items):
    for place, choice in enumerate(item.texts[1:]):
      row = rows.tokens["input_ids"][3 * number + place]
      ids = [tokenizer.encode(text).tolist() for text in (item.texts[0], choice)]
      expected = [vocab.cls, *ids[0], vocab.sep, *ids[1], vocab.sep]
      assert row[: len(expected)].tolist() == expected
    is_choice = rows.values["is_choice"][3 * number : 3 * number + 3]
    assert is_choice.tolist() == [1.0] * (len(item.texts) - 1) + [0.0] * (4 - len(item.texts))
  assert (rows.values["label"][::3] == splits.test.targets["label"]).all()


class Scores:
  """A model whose score of a row is its `score` in the batch."""

  def class_logits(self, hidden, batch, noise):
    return batch["score"][:, None]


def test_the_loss_is_the_softmax_over_the_choices_of_an_example_by_hand():
  batch = {
    "score": jnp.array([1.0, 2.0, 50.0, 0.0, 3.0, 1.0, 9.0, 9.0, 9.0]),
    "is_choice": jnp.array([1.0, 1, 0, 1, 1, 1, 1, 1, 1]),
    "label": jnp.array([1, 1, 1, 0, 0, 0, 2, 2, 2]),
    "row_weight": jnp.array([1.0] * 6 + [0.0] * 3),
  }
  terms = Choice(together=3).loss(Scores(), None, batch, None)
  expected = -np.log(np.exp(2) / (np.exp(1) + np.exp(2)))
  expected += -np.log(np.exp(0) / (np.exp(0) + np.exp(3) + np.exp(1)))
  assert float(terms["loss"][0]) == pytest.approx(expected, rel=1e-6)
  assert float(terms["loss"][1]) == float(Choice(together=3).count(batch)) == 2
  assert float(terms["accuracy"][0]) == 1


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_keep_the_choices_of_an_example_together(parts):
  objective = Choice(together=3)
  rng = np.random.default_rng(0)
  batch = {
    "score": jnp.asarray(rng.normal(size=24), jnp.float32),
    "is_choice": jnp.ones(24),
    "label": jnp.repeat(jnp.asarray(rng.integers(0, 3, 8)), 3),
    "row_weight": jnp.ones(24),
  }

  def value(scale, batch, noise):
    batch = batch | {"score": scale * batch["score"]}
    terms = objective.loss(Scores(), None, batch, None)
    return terms["loss"][0], ({"loss": jnp.stack(terms["loss"])}, None)

  def total(parts):
    return accumulate(
      jax.value_and_grad(value, has_aux=True),
      jnp.ones(()),
      batch,
      jax.random.key(0),
      "hash",
      parts,
      together([objective]),
    )

  whole, split = total(1), total(parts)
  np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
  np.testing.assert_allclose(split[3], whole[3], rtol=1e-6)


def test_a_batch_that_would_split_an_example_is_refused(read, source, tokenizer):
  task, splits = read
  rows = task.rows(splits.train, source.config, tokenizer)
  with pytest.raises(UserError, match="multiple of the 3 rows of an example"):
    LabelledBatches(rows, seed=0, global_batch=16)
  batch = LabelledBatches(rows, seed=0, global_batch=12)(1)
  assert (batch["label"].reshape(-1, 3) == batch["label"][::3, None]).all()


@pytest.mark.slow
def test_the_telling_word_is_learnt_and_predictions_name_the_choice(
  source, recipe, questions, tmp_path
):
  def grouped(source, task, examples):
    return dataclasses.replace(recipe(source, task, examples), global_batch=24)

  settings = ["steps=120", "model.initializer_range=0.2", "task.test_share=0.2"]
  chosen = plan(source, grouped, Choose(source=str(questions)), settings, tmp_path, tmp_path)
  cell = model_cell(chosen, "random", None, 0, "toy")
  assert cell.test["accuracy"] > 0.9
  with pytest.raises(UserError, match="would split the 3 rows"):
    more = chosen._replace(settings=[*settings, "compute.micro_batches=3"], path=tmp_path / "b")
    model_cell(more, "random", None, 0, "toy")
  task, trained = load(tmp_path / "random-all-0")
  items = task.read_file(questions, labelled=True)
  predictions = task.predict(trained, task.encode(items, trained.tokenizer))
  for item, prediction in zip(items, predictions):
    assert prediction["answer"] == item.texts[1 + prediction["choice"]]
    assert len(prediction["scores"]) == len(item.texts) - 1
    assert sum(prediction["scores"]) == pytest.approx(1, abs=1e-5)
  item = task.parse("the old house\tthe red bird\tthe cat tree", "line 1")
  (prediction,) = task.predict(trained, task.encode([item], trained.tokenizer))
  assert prediction["choice"] == 1
  with pytest.raises(UserError, match="4 choices, and training had at most 3"):
    task.encode([Example(("a", "b", "c", "d", "e"))], trained.tokenizer)


KNOWN = {
  "hellaswag": (
    {"ind": 4, "ctx": "He", "endings": ["a", "b", "c", "d"], "label": 3},
    (("He", "a", "b", "c", "d"), 3),
  ),
  "swag": (
    {"sent1": "He sits.", "sent2": "He", **{f"ending{n}": f"{n}x" for n in range(4)}, "label": 2},
    (("He sits.", "He 0x", "He 1x", "He 2x", "He 3x"), 2),
  ),
  "copa": (
    {"premise": "It fell.", "choice1": "a", "choice2": "b", "question": "cause", "label": 1},
    (("It fell.", "What was the cause? a", "What was the cause? b"), 1),
  ),
  "piqa": ({"goal": "Cut.", "sol1": "a", "sol2": "b", "label": 0}, (("Cut.", "a", "b"), 0)),
  "race": (
    {"article": "Long.", "question": "Why?", "options": ["a", "b", "c", "d"], "answer": "B"},
    (("Long.", "Why? a", "Why? b", "Why? c", "Why? d"), 1),
  ),
  "arc": (
    {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
    (("Q?", "a", "b"), 1),
  ),
  "csqa": (
    {
      "question": {
        "stem": "Q?",
        "choices": [{"label": "A", "text": "a"}, {"label": "B", "text": "b"}],
      },
      "choices": None,
      "answerKey": "A",
    },
    (("Q?", "a", "b"), 0),
  ),
  "text": ({"prompt": "P", "choices": ["yes", "no"], "answer": "no"}, (("P", "yes", "no"), 1)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_columns_of_known_data_sets_are_found(tmp_path, name):
  row, expected = KNOWN[name]
  (item,), notes = Choose().read_noted(str(written(tmp_path / "a.jsonl", [row, row][:1])))
  assert (item.texts, item.target) == expected
  assert "columns: text = " in notes[0]


def test_numbers_from_1_are_seen_where_a_label_is_the_number_of_choices(tmp_path):
  rows = [{"prompt": "P", "choice1": "a", "choice2": "b", "label": n} for n in (1, 2)]
  items = Choose().read_file(written(tmp_path / "a.jsonl", rows), labelled=True)
  assert [item.target for item in items] == [0, 1]
  with pytest.raises(UserError, match=r"line 2, has '2' as its right choice"):
    Choose(first=0).read_file(tmp_path / "a.jsonl", labelled=True)


@pytest.mark.parametrize(
  ("row", "said"),
  [
    ({"prompt": "P", "choices": ["a"], "label": 0}, "has 1 choices; two are needed"),
    ({"prompt": "P", "choices": ["a", "b"], "label": 7}, "'7' as its right choice"),
    ({"prompt": "P", "choices": ["a", "b"]}, "no column that tells the right choice"),
    ({"prompt": "P", "label": 0}, "no column of choices"),
    ({"choices": ["a", "b"], "label": 0}, "no column of text"),
    ({"prompt": "", "choices": ["a", "b"], "label": 0}, 'has no "prompt"'),
  ],
)
def test_rows_that_make_no_choice_are_refused_in_a_sentence(tmp_path, row, said):
  with pytest.raises(UserError, match=said):
    Choose().read_file(written(tmp_path / "a.jsonl", [row]), labelled=True)


def test_baselines_are_the_most_frequent_place_and_words_in_common(read):
  task, splits = read
  majority = {p["choice"] for p in task.baseline("majority", splits)}
  assert len(majority) == 1
  items = [Example(("the red bird flies", "a cat", "the bird"), 1)]
  same = dataclasses.replace(splits.test, items=items, ids=[], targets={})
  assert task.baseline("overlap", splits._replace(test=same)) == [{"choice": 1}]


def test_predictions_do_not_need_a_label(tmp_path):
  row = {"prompt": "P", "choices": ["a", "b"]}
  (item,) = Choose().read_file(written(tmp_path / "a.jsonl", [row]), labelled=False)
  assert item.target is None and item.texts == ("P", "a", "b")


def test_the_columns_and_numbers_of_the_training_file_are_kept(tmp_path):
  row = {"premise": "P", "question": "cause", "choice1": "a", "choice2": "b"}
  path = written(tmp_path / "train.jsonl", [row | {"label": n} for n in (1, 2)])
  task = Choose(source=str(path)).with_columns()
  assert task == task.with_columns() and (task.text, task.first) == ("premise", 1)
  line = row | {"label": 1, "context": "not this one"}
  (item,) = task.read_file(written(tmp_path / "new.jsonl", [line]), labelled=True)
  assert (item.texts[0], item.target) == ("P", 0)
  assert task.parse(json.dumps(line), "x").texts[1] == "What was the cause? a"
  with pytest.raises(UserError, match=r"no column 'question' \(task.then\)"):
    task.parse(json.dumps(line | {"question": 0}).replace("question", "why"), "x")
