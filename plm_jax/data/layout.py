"""Divides the lines of a text into sentences and documents.

A line of up to `LONG_LINE` characters is a sentence; a longer one is a paragraph and is split by
the rules of `plm_jax.data.sentences`. Text whose lines were wrapped at a fixed width (books of
Project Gutenberg) is recognised by its beginning: many lines continue in lower case on the next
line, and sentences end inside lines. Then the lines of a paragraph are joined before they are
split. If the beginning has runs of blank lines, only such a run ends a document, and a single blank
line ends a paragraph. In WikiText, where lines like ` = Title = ` begin articles, a document is an
article, and blank lines end paragraphs.
"""

import re
from itertools import pairwise
from typing import NamedTuple

from plm_jax.data.sentences import split_sentences

LONG_LINE = 256  # characters; a longer line is a paragraph
TITLE = re.compile(r"= (?!=).*(?<!=) =")  # of an article; a section's is "= = Title = ="


class Layout(NamedTuple):
  """The rules that divide the lines of one text."""

  wrapped: bool = False  # line breaks inside a paragraph are white space
  run: int = 1  # number of blank lines that end a document
  titles: bool = False  # only lines "= Title =" begin documents


def layout_of(lines: list[str]) -> Layout:
  """The layout of a text, recognised from its first lines by the rules above."""
  if sum(not a and TITLE.fullmatch(b) is not None for a, b in pairwise(lines)) > 1:
    return Layout(titles=True)
  pairs = [(a, b) for a, b in pairwise(lines) if a and b]
  if len(pairs) < 2 or max(map(len, lines)) > 120:
    return Layout()
  continued = sum(a[-1].isalnum() + a.endswith((",", ";")) > 0 and b[0].islower() for a, b in pairs)
  inside = sum(len(split_sentences(line)) > 1 for line in lines)
  if continued < 0.3 * len(pairs) or inside < 0.05 * len(pairs):
    return Layout()
  triples = zip(lines, lines[1:], lines[2:], strict=False)
  runs = sum(not a and not b and c != "" for a, b, c in triples)
  return Layout(wrapped=True, run=2 if runs > 1 else 1)


def sentences_of(paragraph: list[str], wrapped: bool) -> list[str]:
  """The sentences of a paragraph."""
  if wrapped:
    return split_sentences(" ".join(paragraph))
  sentences = []
  for line in paragraph:
    sentences += split_sentences(line) if len(line) > LONG_LINE else [line]
  return sentences


def text_sentences(text: str) -> tuple[str, ...]:
  """The sentences of a document in one string, by the same rules as for a file."""
  lines = [" ".join(line.split()) for line in text.splitlines()]
  wrapped = layout_of(lines).wrapped
  sentences: list[str] = []
  paragraph: list[str] = []
  for line in [*lines, ""]:
    if line:
      paragraph.append(line)
    elif paragraph:
      sentences += sentences_of(paragraph, wrapped)
      paragraph = []
  return tuple(sentences)
