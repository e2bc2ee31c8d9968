"""Splits running text into sentences by rules: no model, no download, the same result everywhere.

A sentence ends at `.`, `!`, `?` or `…` (and closing quotes or brackets) followed by white space and
something that can begin a sentence: a capital, a digit, an opening quote or bracket. A full
stop after an abbreviation or an initial ends none. Chinese and Japanese `。！？` always end one.
"""

import re

# It begins with a character class, so that the engine skips to the next mark.
_LATIN = r"""(?P<mark>[.!?…][.!?…]*)["')\]”’»]*\s+(?=["'(\[“‘«]*[A-Z0-9À-ÖØ-ÞΑ-ΩА-Я])"""
_LATIN_END = re.compile(_LATIN)
_END = re.compile(_LATIN + r"|[。！？]+[」』）”’]*\s*(?=\S)")
# Abbreviations that a capital or a number may follow. "etc." is left out: before a capital it
# mostly ends a sentence.
_ABBREVIATIONS = (
  "e.g i.e cf vs viz al ca mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt messrs mme mlle "
  "no nos fig figs eq eqs sec ch chap vol vols pp p art ref refs app ed eds tab thm resp approx "
  "jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k inc ltd co corp dept"
)
_ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_OPENING = "\"'([{“‘«"


def split_sentences(text: str) -> list[str]:
  """The non-empty sentences of one paragraph, with white space collapsed."""
  text = " ".join(text.split())
  sentences, start = [], 0
  for match in (_LATIN_END if text.isascii() else _END).finditer(text):
    if match["mark"] == "." and _is_abbreviation(text, match.start()):
      continue
    sentences.append(text[start : match.end()].rstrip())
    start = match.end()
  if start < len(text):
    sentences.append(text[start:])
  return sentences


def _is_abbreviation(text: str, stop: int) -> bool:
  """Whether the full stop at `stop` belongs to an abbreviation or an initial ("J.")."""
  word = text[text.rfind(" ", 0, stop) + 1 : stop].lstrip(_OPENING)
  if len(word) == 1:
    return word.isalpha() and word not in "Ii"
  return word.lower() in _ABBREVIATIONS
