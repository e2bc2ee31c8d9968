"""SQuAD 1.1 and 2.0 files, CMRC 2018 in their layout and its own, and the scores of their official
scripts.

Sources: evaluate-v1.1.py and evaluate-v2.0.py of SQuAD; cmrc2018_evaluate.py of CMRC 2018. Scores
are between 0 and 1, not percentages. Deviation: CMRC splits Latin text by nltk's `word_tokenize`,
this file by a regular expression.
"""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

from plm_jax.data.text_files import read_json
from plm_jax.errors import UserError
from plm_jax.tasks.examples import Example
from plm_jax.tasks.table_files import text_of

SUFFIXES = (".json",)
_CHINESE = re.compile("[\u4e00-\u9fa5]")
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_LATIN = re.compile(r"…+|\w+(?:[.,'’]\w+)*|[^\w\s]")


class TrueAnswer(NamedTuple):
  """start: its first character in the context; -1 if it is not at the offset that its file has."""

  text: str
  start: int


def read_squad(path: str | Path, labelled: bool) -> list[Example]:
  """The questions of a file of SQuAD's layout or CMRC 2018's; texts are question and context,
  targets lists of `TrueAnswer`, empty for a question without an answer. document: the paragraph.
  Errors: `UserError` for another layout."""
  path = Path(os.path.expanduser(path))
  if not path.is_file():
    raise UserError(f"The file {str(path)!r} does not exist: give a .json file of SQuAD's layout.")
  try:
    content = read_json(text_of(path))
  except ValueError as error:
    raise UserError(f"The file {str(path)!r} is not JSON ({error}).") from None
  items, squad = [], not isinstance(content, list)
  try:
    for place, paragraph in _paragraphs(content):
      for question in paragraph["qas"]:
        name = str(question.get("id", len(items)))
        texts = (_text(question["question"]), _text(paragraph["context"]))
        target = _answers(path, name, question, texts[1], squad) if labelled else None
        items.append(Example(texts, target, name, f"{path.name}#{place}"))
  except (TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f"The file {str(path)!r} does not have SQuAD's layout ({type(error).__name__}: {error}): "
      "expected data[].paragraphs[] with a context and qas[], each with a question and answers; or "
      "CMRC 2018's list of paragraphs with context_text and qas[] of query_text and answers."
    ) from None
  if not items:
    raise UserError(f"The file {str(path)!r} is empty: expected at least one question.")
  return items


def _paragraphs(content: Any) -> Iterator[tuple[str, dict]]:
  """(place, paragraph in SQuAD's layout). CMRC 2018's answers are texts without an offset; theirs
  is the first place where the context has the text."""
  if not isinstance(content, list):
    for number, article in enumerate(content["data"]):
      for part, paragraph in enumerate(article["paragraphs"]):
        yield f"{number}.{part}", paragraph
    return
  if not content:
    raise TypeError("an empty list")
  for number, paragraph in enumerate(content):
    context, questions = _text(paragraph["context_text"]), []
    for question in paragraph["qas"]:
      answers = question.get("answers", [])
      if isinstance(answers, list):  # else `_answers` refuses it
        answers = [{"text": a, "answer_start": context.find(_text(a))} for a in answers]
      questions.append({"question": question["query_text"], "answers": answers})
      questions[-1] |= {"id": question["query_id"]} if "query_id" in question else {}
    yield str(number), {"context": context, "qas": questions}


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError(f"{value!r} is no text")
  return value


def _answers(path: Path, name: str, question: dict, context: str, squad: bool) -> list[TrueAnswer]:
  """squad: whether the file has SQuAD's layout, not CMRC's."""
  place = f"The question {name} of {path.name}"
  answers, impossible = question.get("answers") or [], question.get("is_impossible") or False
  if not isinstance(impossible, bool):
    raise UserError(f"{place} has is_impossible {impossible!r}; expected true or false.")
  if not isinstance(answers, list):
    raise UserError(f"{place} has the answers {answers!r}; expected a list.")
  if impossible:
    return []
  if not answers and "is_impossible" not in question:
    advice = "; SQuAD 2.0 marks it by is_impossible" if squad else ""
    raise UserError(f"{place} has no answer{advice}.")
  made = []
  for answer in answers:
    text, start = _text(answer["text"]), answer["answer_start"]
    if not re.fullmatch(r"-?\d+", str(start)):
      raise UserError(f"{place} has answer_start {start!r}; expected an integer.")
    start = int(start)
    matches = start >= 0 and text and context[start : start + len(text)] == text
    made.append(TrueAnswer(text, start if matches else -1))
  return made


# --- scores ---------------------------------------------------------------------------------------


def normalized(text: str) -> str:
  """Lower case, without punctuation, articles and superfluous spaces."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, true: str) -> float:
  return float(normalized(answer) == normalized(true))


def f1(answer: str, true: str) -> float:
  """Of the words that both have. Without a word on one side: 1 if both have none."""
  ours, theirs = normalized(answer).split(), normalized(true).split()
  if not ours or not theirs:
    return float(ours == theirs)
  return _harmonic((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def cmrc_exact_match(answer: str, true: str) -> float:
  ours, theirs = ("".join(c for c in t.lower().strip() if c not in _CMRC_MARKS)
                  for t in (answer, true))  # fmt: skip
  return float(ours == theirs)


def cmrc_f1(answer: str, true: str) -> float:
  """Of the longest common run of Chinese characters and Latin words."""
  ours, theirs = cmrc_tokens(answer), cmrc_tokens(true)
  match = SequenceMatcher(None, ours, theirs, autojunk=False)
  return _harmonic(match.find_longest_match().size, len(ours), len(theirs))


def cmrc_tokens(text: str) -> list[str]:
  """Chinese characters and Latin words, without marks."""
  tokens, latin = [], ""
  for character in text.lower().strip():
    if character in _CMRC_MARKS:
      continue
    if _CHINESE.match(character):
      tokens += [*_LATIN.findall(latin), character]
      latin = ""
    else:
      latin += character
  return tokens + _LATIN.findall(latin)


def _harmonic(same: int, ours: int, theirs: int) -> float:
  if not same:
    return 0.0
  precision, recall = same / ours, same / theirs
  return 2 * precision * recall / (precision + recall)


METRICS: dict[str, dict[str, Callable[[str, str], float]]] = {
  "squad": {"f1": f1, "em": exact_match},
  "cmrc": {"f1": cmrc_f1, "em": cmrc_exact_match},
}


def scores(metric: str, answer: str, true: Sequence[TrueAnswer]) -> dict[str, float]:
  """The best over the true answers; without one, no answer is right. metric: of `METRICS`."""
  functions, texts = METRICS[metric], [t.text for t in true]
  if metric == "squad":  # an answer such as "the" is none in SQuAD 2.0
    texts = [text for text in texts if normalized(text)] or [""]
  if not texts:
    return dict.fromkeys(functions, float(not answer))
  return {name: max(score(answer, text) for text in texts) for name, score in functions.items()}


def is_chinese(texts: Sequence[str]) -> bool:
  """Whether a fifth of the characters are Chinese."""
  text = "".join(texts)
  return len(_CHINESE.findall(text)) > len(text) / 5
