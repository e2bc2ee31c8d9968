"""SQuAD's files, and scores against golden values of the official scripts.

The golden values are those of evaluate-v2.0.py and of cmrc2018_evaluate.py (run once with nltk's
`word_tokenize` replaced by a split at spaces, which these texts do not notice).
"""

import json

import pytest

from plm_jax.errors import UserError
from plm_jax.tasks.squad import TrueAnswer, cmrc_tokens, is_chinese, normalized, read_squad, scores
from tests.tasks.test_conll import SHARED, shared

CONTEXT = "The Panthers lost to Denver in 2016. It was the fiftieth."


def document(*questions, context=CONTEXT):
  return {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def asked(text, start, name="q", **more):
  answers = [] if text is None else [{"text": text, "answer_start": start}]
  return {"id": name, "question": "Who?", "answers": answers, **more}


def write(tmp_path, content):
  path = tmp_path / "a.json"
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def test_questions_have_texts_answers_and_a_paragraph(tmp_path):
  impossible = asked(None, 0, "r", is_impossible=True, plausible_answers=[])
  other = {"context": "x", "qas": [asked("x", 0, "s")]}
  content = document(asked("Denver", 21), impossible)
  content["data"][0]["paragraphs"].append(other)
  first, second, third = read_squad(write(tmp_path, content), labelled=True)
  assert first.texts == ("Who?", CONTEXT) and first.target == [TrueAnswer("Denver", 21)]
  assert second.target == [] and (first.name, second.name) == ("q", "r")
  assert first.document == second.document != third.document
  assert read_squad(write(tmp_path, content), labelled=False)[0].target is None


def test_an_answer_that_is_not_at_its_offset_is_marked(tmp_path):
  questions = [asked("Denver", start) for start in (20, -1, 21, 500)]
  items = read_squad(write(tmp_path, document(*questions)), labelled=True)
  assert [item.target[0].start for item in items] == [-1, -1, 21, -1]


CMRC = [
  {"context_id": f"T{n}", "title": "范", "context_text": "他在北京大学工作，北京大学在北京。",
   "qas": [{"query_id": f"T{n}_Q0", "query_text": "他在哪？", "answers": ["北京大学", "上海"]}]}
  for n in range(2)
]  # fmt: skip


def test_cmrc_s_own_layout_has_answers_at_their_first_place(tmp_path):
  first, second = read_squad(write(tmp_path, CMRC), labelled=True)
  assert first.texts == ("他在哪？", CMRC[0]["context_text"]) and first.name == "T0_Q0"
  assert first.target == [TrueAnswer("北京大学", 2), TrueAnswer("上海", -1)]
  assert first.document != second.document
  unlabelled = [{**CMRC[0], "qas": [{"query_text": "他在哪？"}]}]
  assert read_squad(write(tmp_path, unlabelled), labelled=False)[0].target is None
  with pytest.raises(UserError, match=r"The question 0 of a\.json has no answer"):
    read_squad(write(tmp_path, unlabelled), labelled=True)


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("{", "is not JSON"),
    ([{"context_text": "x"}], "or CMRC 2018's list of paragraphs with context_text and qas"),
    ({"rows": []}, "does not have SQuAD's layout .KeyError: 'data'."),
    ([], "does not have SQuAD's layout"),
    ({"data": []}, "is empty: expected at least one question"),
    (document(asked(None, 0)), "The question q of a.json has no answer; SQuAD 2.0 marks it"),
    (document({"id": "q", "answers": []}), "KeyError: 'question'"),
    *(
      (document(asked("x", start)), f"The question q of a.json has answer_start {shown}; expected")
      for start, shown in ((None, "None"), ("abc", "'abc'"), (float("inf"), "inf"), (1.5, "1.5"))
    ),
    (
      document(asked("x", 0, is_impossible="false")),
      "question q .* is_impossible 'false'; expected",
    ),
    (document(asked("x", 0) | {"answers": "x"}), "question q .* the answers 'x'; expected a list"),
    ([{"context_text": "x", "qas": [{"query_text": "?", "answers": "x"}]}], "question 0 .* a list"),
    ([{"context_text": "x", "qas": [{"query_text": "?", "answers": []}]}], r"has no answer\.$"),
  ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path, content, said):
  with pytest.raises(UserError, match=said):
    read_squad(write(tmp_path, content), labelled=True)


@pytest.mark.parametrize(
  ("answer", "true", "f1", "em"),
  [
    ("The Panthers' defense", ["Panthers defense", "the defense"], 1.0, 1),
    ("308 points.", ["308"], 0.6666666666666666, 0),
    ("in 1,000 AD", ["1000 AD", "AD 1000"], 0.8, 0),
    ("dog cat dog", ["dog dog bird"], 0.6666666666666666, 0),
    ("New York, New York", ["New York"], 0.6666666666666666, 0),
    ("Ünïcode — dash", ["ünïcode dash"], 0.8, 0),
    ("", ["x"], 0, 0),
    ("", [], 1, 1),
    ("a dog", [], 0, 0),
    ("the", [], 1, 1),
    ("", ["the"], 1, 1),
  ],
)
def test_scores_are_those_of_the_script_of_squad(answer, true, f1, em):
  true = [TrueAnswer(text, 0) for text in true]
  assert scores("squad", answer, true) == {"f1": pytest.approx(f1), "em": em}


@pytest.mark.parametrize(
  ("answer", "true", "f1", "em"),
  [
    ("光荣和ω-force", ["光荣和ω-force开发"], 0.8, 0),
    ("《战国无双3》", ["战国无双3"], 1.0, 1),
    ("北京大学", ["大学北京", "北京"], 0.6666666666666666, 0),
    ("2008年5月", ["2008 年 5 月"], 1.0, 0),
    ("Java API for XML", ["Java API，XML"], 0.3333333333333333, 0),
    ("……等", ["等"], 0.6666666666666666, 0),
    ("", ["北京"], 0, 0),
  ],
)
def test_scores_are_those_of_the_script_of_cmrc(answer, true, f1, em):
  true = [TrueAnswer(text, 0) for text in true]
  assert scores("cmrc", answer, true) == {"f1": pytest.approx(f1), "em": em}


def test_texts_are_normalised_as_documented():
  assert normalized("The  a.n, Theory's AN end ") == "theorys end"
  assert cmrc_tokens("在2008年，U.S. Army（美）") == [
    "在",
    "2008",
    "年",
    *("u.s", "."),
    "army",
    "美",
  ]
  assert is_chinese(["我在北京 in 2008"]) and not is_chinese([CONTEXT, "北京"])


@shared
@pytest.mark.parametrize(
  ("name", "questions", "wrong"),
  [
    ("xquad.en", 1190, 0),
    ("xquad.zh", 1190, 0),
    ("cmrc2018_trial", 1002, 5),
    ("cmrc2018_dev", 3219, 200),
  ],
)
def test_real_files_are_read_whole_and_their_own_answers_are_right(name, questions, wrong):
  items = read_squad(SHARED / f"qa/{name}.json", labelled=True)
  answers = [answer for item in items for answer in item.target]
  assert len(items) == questions and sum(a.start < 0 for a in answers) == wrong
  metric = "squad" if name == "xquad.en" else "cmrc"
  made = [scores(metric, item.target[0].text, item.target) for item in items[:300]]
  assert all(score == {"f1": 1, "em": 1} for score in made)
