"""The task `tag`: one tag at the first piece of each word, windows, baselines, predictions."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import BytePairs, Unigram, WordPiece
from plm_jax.errors import UserError
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.llama import Llama
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.sharding import MeshShape
from plm_jax.tasks.conll import joined, words_of
from plm_jax.tasks.examples import Example
from plm_jax.tasks.finetuning import baseline_cell, model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.tasks.registry import chosen_task
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.tag import NO_TAG, Tag, TokenClassification
from plm_jax.tasks.task import Context, Trained, shown
from plm_jax.tasks.word_pieces import first_pieces
from tests.tasks.conftest import WORDS

LINES = ["anna karenina went to new york", "我在北京", "don't e\u0301t \u200b café 😀", "x"] * 8
TOKENIZERS = {
  "word_piece": WordPiece(vocab_size=60),
  "byte_pairs": BytePairs(vocab_size=290, prefix_space=False),
  "byte_pairs_prefix": BytePairs(vocab_size=290),
  "unigram": Unigram(vocab_size=40),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request):
  return TOKENIZERS[request.param].train(iter(LINES))


def sentence(words, tags=None, name="s"):
  text, spans = joined(words, [True] * len(words))
  return Example((text,), tags, name, name, spans)


SENTENCES = [
  sentence("anna karenina went to new york".split(), ["B-P", "I-P", "O", "O", "B-L", "I-L"]),  # noqa: SIM905
  sentence(["我", "在", "北京"], ["O", "O", "B-L"]),
  sentence(["do", "n't", "e\u0301t", "\u200b", "😀", "x"], ["O"] * 5 + ["B-P"]),
]
TASK = Tag(length=16, tags=("O", "B-L", "I-L", "B-P", "I-P"), scheme="IOB2")


def model_of(kind, tokenizer):
  sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": tokenizer.vocab.size}
  return kind(**sizes, **({"positions": 64} if kind is not T5 else {}))


@pytest.mark.parametrize("kind", [Bert, Gpt2, T5])
def test_the_first_piece_of_each_word_has_its_tag_and_no_other_position_has_one(
  any_tokenizer, kind
):
  examples = TASK.encode(SENTENCES, any_tokenizer)
  config = model_of(kind, any_tokenizer)
  rows = TASK.rows(examples, config, any_tokenizer)
  shift = int(kind is T5)
  for number, item in enumerate(SENTENCES):
    (offsets,) = examples.offsets[number]
    found = []
    for row in np.flatnonzero(rows.example == number):
      for at in np.flatnonzero(rows.tokens["tag"][row] != NO_TAG):
        start, end = offsets[rows.piece[row, at - shift]]
        (word,) = (w for w, (s, e) in enumerate(item.words) if s <= start < e)
        assert end <= item.words[word][1]  # no piece of two words
        assert start == item.words[word][0]
        found.append((word, TASK.tags[rows.tokens["tag"][row, at]]))
    assert sorted(found) == list(enumerate(item.target))  # each word once, in all windows


def test_a_word_has_the_pieces_of_its_text(any_tokenizer):
  item = SENTENCES[0]
  examples = TASK.encode([item], any_tokenizer)
  assert examples.ids[0][0].tolist() == any_tokenizer.encode(item.texts[0]).tolist()
  offsets = examples.offsets[0][0]
  assert len(first_pieces(item.words, offsets)) == len(item.words)


def test_a_sentence_longer_than_a_row_is_read_in_windows_and_none_is_lost():
  tokenizer = TOKENIZERS["word_piece"].train(iter(LINES))
  tags = (["B-P", "O", "O"] * 20)[:50]
  item = sentence(["anna", "went", "to"] * 16 + ["x", "x"], tags)
  task = dataclasses.replace(TASK, length=8)
  rows = task.rows(task.encode([item], tokenizer), model_of(Bert, tokenizer), tokenizer)
  assert len(rows) > 8 and (rows.tokens["tag"] != NO_TAG).sum() == 50
  numbers = np.sort(rows.tokens["tag"][rows.tokens["tag"] >= 0])
  assert numbers.tolist() == sorted(task.tags.index(tag) for tag in tags)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Bert, Roberta, Gpt2, Llama, T5, Bart])
def test_any_family_is_trained_and_predicts_a_tag_for_each_word(kind):
  tokenizer = TOKENIZERS["byte_pairs"].train(iter(LINES))
  config = model_of(kind, tokenizer)
  examples = TASK.encode(SENTENCES, tokenizer)
  (batch,) = LabelledBatches(TASK.rows(examples, config, tokenizer), 0, 8).evaluation()
  objective = TASK.objective()
  params = config.init(jax.random.key(0), objective.heads)
  compute = Compute()
  terms = objective.loss(params, params(batch, compute), batch, None)
  assert float(terms["loss"][1]) == sum(len(item.words) for item in SENTENCES)
  assert np.isfinite(float(terms["loss"][0]))
  mesh = MeshShape().build(jax.devices()[:1])
  trained = Trained(config, params, tokenizer, compute, mesh, 4)
  predictions = TASK.predict(trained, TASK.encode(SENTENCES, tokenizer))
  assert [len(p["tags"]) for p in predictions] == [len(item.words) for item in SENTENCES]


def test_the_loss_is_the_mean_over_words_and_not_over_rows():
  objective = TokenClassification(tags=2)
  tag = np.array([[NO_TAG, 1, 0, NO_TAG], [NO_TAG, 1, NO_TAG, NO_TAG], [0, 0, 0, 0]], np.int32)
  batch = {"tag": tag, "row_weight": np.array([1, 1, 0], np.float32)}

  class Model:
    def token_class_logits(self, hidden, batch, noise):
      return np.broadcast_to(np.log(np.array([0.25, 0.75], np.float32)), (3, 4, 2))

  terms = objective.loss(Model(), None, batch, None)
  assert float(terms["loss"][1]) == 3 == float(objective.count(batch))
  assert float(terms["loss"][0]) == pytest.approx(-2 * np.log(0.75) - np.log(0.25))
  assert float(terms["accuracy"][0]) == 2
  assert objective.baseline(None, [batch], {}).scores == {"accuracy": pytest.approx(2 / 3)}
  with pytest.raises(UserError, match="at least 2 tags"):
    TokenClassification(tags=1)


def lines(count, tags=("B-place", "I-place", "O"), skip=0):
  """Sentences in which "stone house" is a place, and all other words are none."""
  made = []
  for n in range(skip, skip + count):
    words = [WORDS[n // 6**k % 6] for k in range(3)]
    words[n % 3 : n % 3] = ["stone", "bird"]
    marks = [tags[2]] * 5
    marks[n % 3 : n % 3 + 2] = tags[:2]
    made.append("".join(f"{word} {mark}\n" for word, mark in zip(words, marks)))
  return "\n".join(made)


@pytest.fixture(scope="module")
def planned(source, recipe, tmp_path_factory):
  path = tmp_path_factory.mktemp("tag")
  (path / "a.conll").write_text(lines(90))
  settings = ["steps=60"]
  return plan(source, recipe, Tag(source=str(path / "a.conll")), settings, path, path / "runs")


@pytest.mark.slow
def test_entities_are_learnt_stored_and_predicted_with_their_characters(planned):
  assert planned.task.scheme == "IOB2" and planned.task.tags == ("O", "B-place", "I-place")
  assert any("entities in IOB2" in note for note in planned.splits.notes)
  cell = model_cell(planned, "random", None, 0, "toy")
  assert cell.test["f1"] > 0.9 and set(planned.task.metrics) == set(cell.test)
  task, trained = load(planned.path / "random-all-0")
  item = task.parse("  The small STONE bird, of old!", "line 1")
  (prediction,) = task.predict(trained, task.encode([item], trained.tokenizer))
  assert prediction["words"] == ["The", "small", "STONE", "bird", ",", "of", "old", "!"]
  (entity,) = (e for e in prediction["entities"] if e["text"] == "STONE bird")
  assert item.texts[0][entity["start"] : entity["end"]] == "STONE bird"
  assert entity["type"] == "place" and 0.3 < entity["score"] <= 1
  assert next(shown([item], [prediction]))["text"] == item.texts[0]
  report = task.report(planned.splits.test, task.predict(trained, planned.splits.test))
  assert "place" in report and "all" in report


def test_baselines_are_the_majority_tag_and_that_of_each_word(planned):
  majority = baseline_cell(planned, "majority", None, 0).test
  words = baseline_cell(planned, "words", None, 0).test
  assert majority["accuracy"] == pytest.approx(0.6) and majority["f1"] == 0
  assert words["accuracy"] > 0.9


def test_a_mistake_is_larger_the_more_certain_it_was():
  item = sentence(["a", "b"], ["O", "B-P"])
  made = [{"tags": tags, "scores": [0.9, p]} for tags, p in
          ((["O", "B-P"], 0.8), (["O", "O"], 0.8), (["O", "O"], 0.4))]  # fmt: skip
  assert [TASK.mistake(item, p) for p in made] == [0, 0.8, 0.4]


def test_parts_of_speech_are_scored_by_accuracy_alone(source, tmp_path):
  (tmp_path / "a.tsv").write_text(lines(60, ("ADJ", "NOUN", "DET")).replace(" ", "\t"))
  task, splits = Tag(source=str(tmp_path / "a.tsv")).read(Context(source, tmp_path))
  assert task.metrics == ("accuracy",) and task.scheme == "" and task.classes == task.tags
  scores = task.score(splits.test, task.baseline("words", splits))
  assert set(scores) == {"accuracy"} and scores["accuracy"] > 0.9
  report = task.report(splits.test, task.baseline("words", splits))
  assert "NOUN" in report and "S-" not in report


def test_words_may_be_given_instead_of_a_text():
  item = TASK.parse('{"words": ["New", "York", "."]}', "line 1")
  assert item.texts == ("New York .",) and len(item.words) == 3
  assert TASK.parse('{"text": "a b"}', "line 1").words == words_of("a b")
  for line in ("  ", '{"words": []}', '{"title": "x"}'):
    with pytest.raises(UserError, match="line 1 has no text"):
      TASK.parse(line, "line 1")


def test_a_file_of_words_chooses_the_task(tmp_path):
  assert isinstance(chosen_task(None, "corpus.conll"), Tag)
  assert isinstance(chosen_task(None, "corpus.conllu"), Tag)
  (tmp_path / "train.conll").write_text("a X\n")
  assert isinstance(chosen_task(None, str(tmp_path)), Tag)


@pytest.mark.parametrize(
  ("parts", "said"),
  [
    ({"train": "a O\nb O\n"}, r"has 1 tag \(O\); two are needed"),
    ({"train": lines(30), "dev": "a B-ship\n"}, "dev.conll:1 has the tag 'B-ship' .'a'., which tr"),
    ({"train": lines(1)}, "split of .* is empty"),
    ({"train": ""}, "is empty: expected a word and its tag"),
    ({"train": lines(30) + "\nword\n"}, "has the word 'word' and no tag"),
    ({"other": lines(3)}, "has no train.conll"),
  ],
)
def test_files_that_make_no_task_are_refused_in_a_sentence(source, tmp_path, parts, said):
  for name, text in parts.items():
    (tmp_path / f"{name}.conll").write_text(text)
  with pytest.raises(UserError, match=said):
    Tag(source=str(tmp_path)).read(Context(source, tmp_path))


def test_a_rare_continuation_of_a_known_type_is_no_unknown_tag(source, tmp_path):
  (tmp_path / "train.conll").write_text(lines(30, ("B-place", "O", "O")))
  (tmp_path / "dev.conll").write_text(lines(4, skip=50))
  task, _ = Tag(source=str(tmp_path)).read(Context(source, tmp_path))
  assert "I-place" in task.tags


def test_equal_words_are_encoded_alike_wherever_they_are(any_tokenizer):
  """A word after a space has one encoding, in any sentence."""
  items = [sentence(list(words)) for words in itertools.permutations(("x", "to", "new"))]
  examples = TASK.encode(items, any_tokenizer)
  parts = set()
  for item, (ids,), (offsets,) in zip(items, examples.ids, examples.offsets):
    first = [*first_pieces(item.words, offsets), len(ids)]
    last = item.texts[0].split()[-1]
    parts.add((last, tuple(ids[first[-2] : first[-1]])))
  assert len(parts) == 3
