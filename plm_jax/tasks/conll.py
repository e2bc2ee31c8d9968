"""Sentences with a tag for each word: CoNLL and CoNLL-U files, and the words of plain text.

CoNLL: a word and its columns per line, blank lines between sentences, `-DOCSTART-` lines between
documents. CoNLL-U: ten columns with tabs, comments, ranges such as "3-4" for words that are written
as one, and empty nodes such as "3.1", which are left out (universaldependencies.org/format.html).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from plm_jax.errors import UserError
from plm_jax.tasks.examples import Example
from plm_jax.tasks.marks import marks
from plm_jax.tasks.table_files import text_of

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".tsv")
FEW = 20  # documents; files with fewer are split by sentence
_UPOS = 4  # the column of CoNLL-U, from 1
# Languages that are written without spaces: Chinese and Japanese.
_CJK = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_CJK += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_UNSPACED = re.compile(rf"[{_CJK}\u3000-\u303f\uff00-\uffef]")  # with their punctuation
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


@functools.cache
def _outer() -> re.Pattern[str]:
  """A word between punctuation."""
  other = rf"[^\w{marks()}"
  return re.compile(rf"(?P<before>{other}@#$&]*)(?P<word>.*?)(?P<after>{other}]*)", re.DOTALL)


class _Line(NamedTuple):
  """A word: its line, its columns, and whether a space follows it."""

  number: int
  cells: list[str]
  space: bool = True


def read_conll(path: str | Path, column: int | None, labelled: bool) -> list[Example]:
  """The sentences of a file; targets are lists of tags. column: of the tags, from 1; None is the
  last one, in CoNLL-U that of UPOS. Errors: `UserError`, naming the line, for a word without tag.
  """
  path = Path(os.path.expanduser(path))
  if not path.is_file():
    raise UserError(f"The file {str(path)!r} does not exist: give a file with a word per line.")
  universal = path.suffix == ".conllu"
  sentences = list(_sentences(path, universal))
  if not sentences:
    raise UserError(f"The file {str(path)!r} is empty: expected a word and its tag in every line.")
  column = column or (_UPOS if universal else None)
  width = len(sentences[0][1][0].cells)
  items, documents = [], {document for document, _ in sentences}
  for document, lines in sentences:
    tags = [_tag(path, line, column, width) for line in lines] if labelled else None
    words = [line.cells[1 if universal else 0] for line in lines]
    text, spans = joined(words, [line.space for line in lines])
    name = f"{path.name}:{lines[0].number}"
    document = document if len(documents) >= FEW else name
    items.append(Example((text,), tags, name, document, spans))
  return items


def _sentences(path: Path, universal: bool) -> Iterator[tuple[str, list[_Line]]]:
  """(document, words) of every sentence."""
  document, lines, documents = "", [], 0
  for number, line in enumerate([*text_of(path).split("\n"), ""], 1):
    line = line.rstrip("\r")
    starts = line.startswith("# newdoc" if universal else "-DOCSTART-")
    if not line.strip() or starts:
      if lines:
        yield document, _with_spaces(lines) if universal else lines
      lines = []
      if starts:
        documents += 1
        document = f"{path.name}#{documents}"
    elif not (universal and line.startswith("#")):
      cells = line.split("\t") if "\t" in line else re.split(r"[ \t]+", line.strip(" "))
      if universal and len(cells) != 10:
        raise UserError(
          f"The file {str(path)!r}, line {number}, has {len(cells)} columns; CoNLL-U has 10, with "
          "tabs between them."
        )
      lines.append(_Line(number, cells))


def _with_spaces(lines: list[_Line]) -> list[_Line]:
  """The words without ranges and empty nodes. A range whose words are its letters, "didn't" of
  "did" and "n't", has no spaces inside."""
  kept: list[_Line] = []
  last, inside, space = 0, False, True  # of the range that is open
  for line in lines:
    number, form = line.cells[0], line.cells[1]
    own_space = "SpaceAfter=No" not in line.cells[9].split("|")
    if "-" in number:
      first, last = (int(n) if n.isdecimal() else 0 for n in number.split("-")[:2])
      words = [x.cells[1] for x in lines if x.cells[0] in map(str, range(first, last + 1))]
      inside, space = "".join(words) != form, own_space
    elif number.isdecimal():
      if int(number) < last:
        own_space = inside
      elif int(number) == last:
        own_space = space
      kept.append(line._replace(space=own_space))
  return kept


def _tag(path: Path, line: _Line, column: int | None, width: int) -> str:
  """The tag of a word; every line must have the columns of the first."""
  cells, where = line.cells, f"The file {str(path)!r}, line {line.number},"
  if len(cells) == 1:
    raise UserError(f"{where} has the word {cells[0]!r} and no tag; every word needs one.")
  if len(cells) != width:
    raise UserError(
      f"{where} has {len(cells)} columns where the first word has {width}, so words and tags do "
      "not match; correct it or leave the sentence out."
    )
  if column is not None and not 1 < column <= width:
    raise UserError(
      f"task.column is {column}, and {path.name} has the columns 1 to {width}, the first for words."
    )
  tag = cells[(column or width) - 1].strip()
  if not tag or not cells[0]:
    raise UserError(f"{where} has a word without a tag, or a tag without a word; correct it.")
  return tag


def joined(words: Sequence[str], spaces: Sequence[bool]) -> tuple[str, tuple]:
  """A text of words, and the characters (start, end) of each: with a space after a word, except
  between Chinese or Japanese ones."""
  text, spans = "", []
  for place, word in enumerate(words):
    spans.append((len(text), len(text) + len(word)))
    text += word
    if place + 1 < len(words) and spaces[place] and not _without_space(word, words[place + 1]):
      text += " "
  return text, tuple(spans)


def _without_space(word: str, following: str) -> bool:
  return bool(_UNSPACED.match(word[-1:]) and _UNSPACED.match(following[:1]))


def words_of(text: str) -> tuple[tuple[int, int], ...]:
  """The characters (start, end) of each word of a plain text: what is between spaces, without the
  marks around it, each of which is a word; every Chinese or Japanese character is one."""
  spans = []
  for chunk in _WORD.finditer(text):
    match = _outer().fullmatch(chunk.group())
    start, first, last = chunk.start(), *match.span("word")
    spans += [(start + i, start + i + 1) for i in range(first)]
    if last > first:
      spans.append((start + first, start + last))
    spans += [(start + i, start + i + 1) for i in range(last, len(chunk.group()))]
  return tuple(spans)
