"""The task `answer`: windows, labels, n-best, the null threshold, predictions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import BytePairs, WordPiece
from plm_jax.errors import UserError
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.sharding import MeshShape
from plm_jax.tasks import answer as answer_file
from plm_jax.tasks.answer import Answer
from plm_jax.tasks.examples import Example
from plm_jax.tasks.finetuning import baseline_cell, model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.tasks.registry import chosen_task
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.spans import SpanLoss, best_spans, best_threshold, null_positions
from plm_jax.tasks.squad import TrueAnswer
from plm_jax.tasks.task import Context, Trained
from tests.tasks.conftest import WORDS
from tests.tasks.test_squad import asked, document, write

CONTEXT = "the old river house was red and the small field by it was blue in the wind"
TASK = Answer(length=16, stride=3, null=True)


@pytest.fixture(scope="module")
def words():
  return WordPiece(vocab_size=120).train(iter([CONTEXT, "who is it ?"] * 20))


def items(*answers, context=CONTEXT, question="who is it?"):
  return [
    Example((question, context), [TrueAnswer(a, context.find(a))] if a else [], f"q{n}", "d")
    for n, a in enumerate(answers)
  ]


def test_windows_with_the_answer_point_at_it_and_others_at_the_null_position(words):
  examples = TASK.encode(items("small field", None, "blue"), words)
  rows = TASK.rows(examples, Bert(vocab_size=120, positions=16), words)
  pointed = {0: 0, 1: 0, 2: 0}
  for row, example in enumerate(rows.example):
    start, end = rows.values["start"][row], rows.values["end"][row]
    if start == 0:
      assert end == 0 and rows.text[row, 0] == -1  # at [CLS]; the window is kept
      continue
    pointed[example] += 1
    offsets = examples.offsets[example][1]
    first, last = (offsets[rows.piece[row, at]] for at in (start, end))
    assert CONTEXT[first[0] : last[1]] == examples.items[example].target[0].text
  assert pointed[0] and not pointed[1] and pointed[2]
  assert len(rows) > 3 * 3 and (rows.values["span_weight"] == 1).all()


def test_an_answer_that_is_not_at_its_offset_is_not_trained_on(words):
  made = items("blue")
  wrong = made[0]._replace(target=[TrueAnswer("blue", -1)])
  both = made[0]._replace(target=[TrueAnswer("blue", -1), made[0].target[0]])
  rows = TASK.rows(TASK.encode([wrong, both], words), Bert(vocab_size=120, positions=16), words)
  weights = [rows.values["span_weight"][rows.example == n] for n in (0, 1)]
  assert (weights[0] == 0).all() and (weights[1] == 1).all()


class Stub:
  """A model whose scores are the ids of the tokens."""

  def span_logits(self, hidden, batch):
    return hidden


def test_the_loss_is_of_start_and_end_and_padding_is_no_position():
  batch = {
    "input_ids": np.zeros((2, 4), np.int32),
    "length": np.array([2, 4]),
    "row_weight": np.array([1, 1], np.float32),
    "span_weight": np.array([1, 0], np.float32),
    "start": np.array([1, 0]),
    "end": np.array([0, 0]),
  }
  scores = np.log(np.array([[1.0, 3.0, 90.0, 90.0]] * 2, np.float32))
  terms = SpanLoss().loss(Stub(), (scores, np.zeros((2, 4), np.float32)), batch, None)
  assert float(terms["loss"][1]) == 1 == float(SpanLoss().count(batch))
  assert float(terms["loss"][0]) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2, abs=1e-5)
  assert float(terms["accuracy"][0]) == 1
  assert SpanLoss().baseline(None, [batch], {}).scores["loss"] == pytest.approx(np.log(8) / 2)


def test_the_best_spans_are_in_order_and_of_limited_length():
  offsets = np.array([[0, 3], [4, 7], [8, 11], [12, 15]])
  start, end = np.array([5.0, 1, 4, -np.inf]), np.array([9.0, 2, 3, 8])
  made = best_spans(start, end, offsets, longest=2)
  assert made[0] == (14.0, 0, 3) and made[1] == (12.0, 8, 15)
  assert all(span.end > span.start for span in made)
  assert (13.0, 0, 15) not in made and (13.0, 0, 15) in best_spans(start, end, offsets, 4)


def predicted(words, monkeypatch, task, starts, ends, context=CONTEXT):
  """Predictions with these scores: functions of (piece, window's place in its row)."""
  examples = task.encode([Example(("who?", context))], words)
  config = Bert(vocab_size=120, positions=16)
  rows, _ = task._rows(examples, config, words)

  def scored(trained, rows, read):
    row, place = np.indices(rows.piece.shape)
    return tuple(np.vectorize(f)(rows.piece, rows.text, place, row) for f in (starts, ends))

  monkeypatch.setattr(answer_file, "outputs", scored)
  (prediction,) = task.predict(Trained(config, None, words, None, None), examples)
  return prediction, rows


def test_a_start_counts_only_where_it_has_the_most_context(words, monkeypatch):
  """Piece 6 has the highest score in every window at the window's edge, and a low one inside."""

  def starts(piece, text, place, row):
    return (9.0 if place > 11 else 1.0) * (text == 1 and piece == 6)

  task = dataclasses.replace(TASK, null=False)
  prediction, rows = predicted(words, monkeypatch, task, starts, lambda *_: 0.0)
  assert ((rows.piece == 6) & (rows.text == 1)).sum() > 1
  assert prediction["nbest"][0]["score"] < 0.5


def test_the_null_score_is_the_least_of_the_windows(words, monkeypatch):
  def starts(piece, text, place, row):
    return 4.0 if (text == 1 and piece == 5) else (5.0 - row if place == 0 else 0.0)

  prediction, rows = predicted(words, monkeypatch, TASK, starts, lambda *_: 0.0)
  null = 5.0 - (len(rows) - 1)
  assert prediction["null_above"] == pytest.approx(null - 4.0)
  assert (
    prediction["answer"]
    and prediction["answer"] == CONTEXT[prediction["start"] : prediction["end"]]
  )
  strict = dataclasses.replace(TASK, threshold=null - 4.5)
  prediction, _ = predicted(words, monkeypatch, strict, starts, lambda *_: 0.0)
  assert prediction["answer"] == "" and prediction["start"] is None
  assert len(prediction["nbest"]) == 20
  assert len({answer["text"] for answer in prediction["nbest"]}) == 20


def test_the_threshold_is_the_best_of_the_dev_split():
  """evaluate-v2.0.py's `find_best_thresh` gives 0.5 for these questions, and a sum of 2.7."""
  above = np.array([-3.0, 0.5, 2.0, -1.0])
  gains = np.array([1.0, 0.7, -1.0, 1.0])
  assert best_threshold(above, gains) == 0.5
  assert best_threshold(above, -np.ones(4)) < -3  # best without any answer
  assert best_threshold(above, np.ones(4)) == 2.0


def test_a_model_that_reads_left_to_right_has_its_null_position_at_the_end(words):
  examples = TASK.encode(items("blue"), words)
  for kind, at_end in ((Bert, False), (Gpt2, True)):
    config = kind(vocab_size=120, positions=16)
    rows, _ = TASK._rows(examples, config, words)
    expected = rows.values["length"] - 1 if at_end else 0
    assert (null_positions(rows, config) == expected).all()


@pytest.mark.parametrize(
  "kind",
  [Bert, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (Roberta, Gpt2, T5, Bart))],
)
def test_any_family_is_trained_and_answers(kind):
  tokenizer = BytePairs(vocab_size=300).train(iter([CONTEXT] * 9))
  sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": tokenizer.vocab.size}
  config = kind(**sizes, **({"positions": 64} if kind is not T5 else {}))
  examples = TASK.encode(items("small field", None), tokenizer)
  batch = LabelledBatches(TASK.rows(examples, config, tokenizer), 0, 8).evaluation()[0]
  params = config.init(jax.random.key(0), TASK.objective().heads)
  terms = TASK.objective().loss(params, params(batch, Compute()), batch, None)
  assert np.isfinite(float(terms["loss"][0])) and float(terms["loss"][1]) == 8
  mesh = MeshShape().build(jax.devices()[:1])
  trained = Trained(config, params, tokenizer, Compute(), mesh, 8)
  for prediction in TASK.predict(trained, examples):
    assert prediction["answer"] in CONTEXT and len(prediction["nbest"]) > 3


@pytest.fixture(scope="module")
def planned(source, recipe, tmp_path_factory):
  """The answer is the word after "red"; without it there is none."""
  path, paragraphs = tmp_path_factory.mktemp("answer"), []
  for n in range(120):
    told = [WORDS[n // 5**k % 5] for k in range(3)]
    answer = None if n % 4 == 0 else WORDS[5 + n % 6]
    context = " ".join([*told[: n % 3], *(["red", answer] if answer else []), *told[n % 3 :]])
    start = context.find(f"red {answer}") + 4
    questions = [asked(answer, start, f"q{n}", is_impossible=answer is None)]
    paragraphs.append({"context": context, "qas": questions})
  (path / "a.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
  task = chosen_task(None, str(path / "a.json"))
  return plan(source, recipe, task, ["steps=80"], path, path / "runs")


@pytest.mark.slow
def test_answers_are_learnt_stored_and_predicted_with_their_characters(planned):
  assert isinstance(planned.task, Answer) and planned.task.null
  assert planned.task.metric == "squad" and planned.task.longest_answer == 30
  cell = model_cell(planned, "random", None, 0, "toy")
  assert cell.test["f1"] > 0.5 > baseline_cell(planned, "majority", None, 0).test["f1"]
  assert {"f1", "em", "f1_answer", "f1_none"} <= set(cell.test)
  task, trained = load(planned.path / "random-all-0")
  assert task.threshold != 0.0  # chosen on the dev split
  item = task.parse("Who?\tThe  old RED bird house", "line 1")
  (prediction,) = task.predict(trained, task.encode([item], trained.tokenizer))
  for answer in prediction["nbest"]:
    assert item.texts[1][answer["start"] : answer["end"]] == answer["text"]
  assert "predicted to have no answer" in task.report(
    planned.splits.test, task.predict(trained, planned.splits.test)
  )


def test_answers_not_at_their_offset_are_counted_and_stop_above_a_threshold(source, tmp_path):
  questions = [asked("Denver", 21, f"q{n}") for n in range(39)] + [asked("Denver", 3, "wrong")]
  parts = [document(question, context="The Panthers lost to Denver.") for question in questions]
  content = {"data": [part["data"][0] for part in parts]}
  for n, article in enumerate(content["data"]):
    article["paragraphs"][0]["context"] += f" {n}"
  path = write(tmp_path, content)
  task, splits = Answer(source=str(path)).read(Context(source, tmp_path))
  assert any("1 of 40 answers are not at their offset" in note for note in splits.notes)
  with pytest.raises(UserError, match=r"1 of the 40 answers of a\.json are not at their offset"):
    Answer(source=str(path), misplaced=0.02).read(Context(source, tmp_path))
  assert not task.null
  with pytest.raises(UserError, match=r"misplaced=1\.5 was given; it is a share, from 0 to 1"):
    Answer(source=str(path), misplaced=1.5)


def test_files_without_any_answer_are_refused(source, tmp_path):
  path = write(tmp_path, document(asked(None, 0, is_impossible=True)))
  dev = {"dev": str(path), "test": str(path)}
  with pytest.raises(UserError, match=r"no question of .* has an answer"):
    Answer(source=str(path), **dev).read(Context(source, tmp_path))


def test_a_question_and_a_context_come_with_a_tab_or_as_json():
  assert TASK.parse("Who?\tA text\twith tabs", "l").texts == ("Who?", "A text\twith tabs")
  line = json.dumps({"question": "Who?", "context": "A"})
  assert TASK.parse(line, "l").texts == ("Who?", "A")
  for line in ("Who?", "Who?\t ", '{"question": "Who?"}'):
    with pytest.raises(UserError, match="line 3 has no question and context"):
      TASK.parse(line, "line 3")


@pytest.mark.parametrize("layout", ["squad", "cmrc"])
def test_chinese_is_scored_by_characters(source, tmp_path, layout):
  context = "他在北京大学工作，住在上海。"
  parts = [document(asked("北京大学", 2, f"q{n}"), context=f"{context}{n}") for n in range(30)]
  content = {"data": [part["data"][0] for part in parts]}
  if layout == "cmrc":
    asks = [{"query_id": "q", "query_text": "Who?", "answers": ["北京大学"]}]
    content = [{"context_id": "c", "context_text": f"{context}{n}", "qas": asks} for n in range(30)]
  path = write(tmp_path, content)
  task, splits = Answer(source=str(path)).read(Context(source, tmp_path))
  assert task.metric == "cmrc"
  assert (splits.train.items[0].target[0].start, len(splits.test)) == (2, 3)
  made = task.score(splits.test, [{"answer": "北京"} for _ in splits.test.items])
  assert made == {"f1": pytest.approx(2 / 3), "em": 0}
