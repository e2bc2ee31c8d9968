"""Docstrings to prose: what is left of one when doctests, code, tables and markup are gone.

Two steps: `paragraphs` reads the layout of a docstring (reStructuredText, numpydoc, Google
style and Markdown occur side by side in one package) and keeps running text; `is_prose` judges each
sentence. The first may let code pass, since the second refuses it, and the second may be strict,
since there is more text than is needed.
"""

import re
import unicodedata
from collections.abc import Iterator

from plm_jax.data.sentences import split_sentences

# Directives whose body is prose; the body of any other (code-block, math, plot ...) is dropped.
_PROSE_DIRECTIVES = (
  "note warning tip hint important caution attention danger admonition topic rubric deprecated "
  "versionadded versionchanged"
)
_PROSE_DIRECTIVES = frozenset(_PROSE_DIRECTIVES.split())
_VERSIONED = frozenset(("deprecated", "versionadded", "versionchanged"))
_DROPPED_SECTIONS = frozenset(("references", "see also", "methods", "routines", "license"))
_ITEM_SECTIONS = (
  "args|arguments|parameters|params|keyword args|keyword arguments|other parameters|returns|return|"
  "yields|raises|warns|attributes|receives|example|examples|usage|note|notes|references|see also|"
  "todo|warning"
)
_ITEM_SECTIONS = frozenset(_ITEM_SECTIONS.split("|"))
_UNDERLINE = re.compile(r"([=\-~^*#+\"'`_.])\1{2,}$")
_TABLE = re.compile(r"[|+]|[=\-+|:\s]{4,}$|.*\S {3,}\S")
_DIRECTIVE = re.compile(r"\.\.(?:\s+|$)(?:([\w:-]+?)::(?:\s+|$))?(.*)")
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
_FIELD = re.compile(r"[:@][a-z]+(?: [^:]*)?:\s*")
_NUMPY_ITEM = re.compile(r"[\w*.,'`\"\[\]{}()| -]+ : ")
_GOOGLE_ITEM = re.compile(r"[`*]*[\w.]+[`*]*(?:,\s*[`*]*[\w.]+[`*]*)*(?:\s*\([^)]*\))?:(?:\s+|$)")


def paragraphs(doc: str) -> Iterator[str]:
  """The paragraphs of running text in a docstring, each one line, markup still in it."""
  reader = _Layout()
  lines = [(line.strip(), len(line) - len(line.lstrip())) for line in doc.expandtabs().splitlines()]
  # The first line stands behind the quotes, so that its own indentation says nothing.
  margin = min((indent for text, indent in lines[1:] if text), default=0)
  for text, indent in lines:
    done = reader.read(text, max(0, indent - margin))
    if done:
      yield done
  done = reader.flush()
  if done:
    yield done


class _Layout:
  """Reads a docstring line by line; `read` returns a paragraph when the line ended one."""

  def __init__(self):
    self.held: list[str] = []
    self.indent = 0
    self.skip: int | None = None  # drop what is indented deeper than this
    self.until_blank = self.fence = self.dropped_section = self.items = False

  def flush(self) -> str:
    text, self.held = "" if self.dropped_section else " ".join(self.held), []
    if text.endswith("::"):
      self.skip = self.indent
    return text

  def read(self, text: str, indent: int) -> str:
    if not text:
      self.until_blank = False
      return self.flush()
    if text.startswith(("```", "~~~")):
      self.fence = not self.fence
      return self.flush()
    if self.skip is not None and indent <= self.skip:
      self.skip = None
    if self.until_blank or self.fence or self.skip is not None:
      return ""
    if text.startswith((">>>", "In [", "$ ")):
      self.until_blank = True
      return self.flush()
    if _UNDERLINE.match(text):
      return self._underline()
    if self.dropped_section:
      self.held = [text]  # it may be the title of the next section
      return ""
    if text.startswith(".."):
      return self._directive(text, indent)
    if _TABLE.match(text):
      return self.flush()
    return self._line(text, indent)

  def _underline(self) -> str:
    title = self.held.pop().lower() if self.held else ""
    done = self.flush()
    self.dropped_section = title in _DROPPED_SECTIONS
    self.items = True
    return done

  def _directive(self, text: str, indent: int) -> str:
    name, rest = _DIRECTIVE.match(text).groups() if _DIRECTIVE.match(text) else (None, "")
    done = self.flush()
    if name in _PROSE_DIRECTIVES:
      self.held = [rest] if rest and name not in _VERSIONED else []
      self.indent = indent
    else:
      self.skip = indent
    return done

  def _line(self, text: str, indent: int) -> str:
    if text[-1] == ":" and text[:-1].lower() in _ITEM_SECTIONS:
      self.items = True
      return self.flush()
    start, header = 0, None
    if text[0] in "-*+•(0123456789abc" and (header := _BULLET.match(text)):
      start = header.end()
    elif text[0] in ":@" and (header := _FIELD.match(text)):
      start = len(text) if text.startswith((":type", ":rtype")) else header.end()
    elif self.items and (header := _NUMPY_ITEM.match(text)):
      start = len(text)
    elif self.items and (header := _GOOGLE_ITEM.match(text)):
      start = header.end()
    breaks = header is not None or (self.held and indent < self.indent)
    done = self.flush() if breaks else ""
    if self.skip is not None and indent <= self.skip:
      self.skip = None
    self.indent = indent
    if start < len(text):
      self.held.append(text[start:])
    return done


_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`([^`]*)`|`{1,2}([^`]+)`{1,2}_{0,2}")
_MATH = re.compile(r":math:|:eq:|\$\$|\\[a-zA-Z(\[]")
_TARGET = re.compile(r"\s*<[^>]*>$")
_LINK = re.compile(r"!?\[([^\]]+)\]\([^)]*\)")
_CITATION = re.compile(r"\s*\[(?:\d+|[A-Z]\w*\d+)\](?:_|\b)?")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])")
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "\u00ad": None, "\u200b": None})


def strip_markup(text: str) -> str:
  """Inline markup to the text it shows: roles, literals, links, emphasis, citations."""
  if not text.isascii():
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
  if "[" in text:
    text = _CITATION.sub("", _LINK.sub(r"\1", text))
  if "`" in text:
    text = _ROLE.sub(_shown, text)
  if "*" in text:
    text = _EMPHASIS.sub(r"\1", text)
  return text.removesuffix(":").rstrip(":") if text.endswith("::") else text


def _shown(match: re.Match) -> str:
  text = _TARGET.sub("", match[1] or match[2])
  return text.removeprefix("!").rpartition(".")[2] if text.startswith("~") else text


_FORBIDDEN = re.compile(r"[{}<>\\|=^~$@#*`\x00-\x1f]|https?:|www\.|%\(|->|__|\.\.\s|::")
_WORD = re.compile(r"""(?<!\S)["'(]*[A-Za-z]+(?:['-][A-Za-z]+)*["').,:;!?-]*(?!\S)""")
_NO_LETTER = re.compile(r"[^\sa-zA-Z\u00c0-\uffff]")
_START = re.compile(r"[\"'(]?[A-Z0-9]")
_END = re.compile(r"[.!?][\"')]*$")
# An English sentence of five words without any of these is rare, a line of code with one too.
_FUNCTION_WORD = re.compile(
  r"\b(?:an?|the|of|to|in|is|are|be|and|or|for|if|it|this|that|with|as|on|by|from|at|not?|was|were|"
  r"has|have|will|can|may|must|should|when|which|you|we|they|its|all|any|but|into|than|so|do|does|"
  r"use|used|returns?)\b",
  re.IGNORECASE,
)
_SHORTEST, _LONGEST = 5, 120  # words
_LETTERS = 0.85  # share of the characters that are not white space
_WORDS = 0.75  # share of the words that are letters only


def is_prose(sentence: str) -> bool:
  """Whether a line reads like an English sentence and not like code, a title or a table row."""
  if not _START.match(sentence) or not _END.search(sentence) or _FORBIDDEN.search(sentence):
    return False
  words = sentence.split()
  if not _SHORTEST <= len(words) <= _LONGEST:
    return False
  if len(_NO_LETTER.findall(sentence)) > (1 - _LETTERS) * sum(map(len, words)):
    return False
  if len(_WORD.findall(sentence)) < _WORDS * len(words):
    return False
  return _FUNCTION_WORD.search(sentence) is not None


def sentences(doc: str) -> tuple[list[str], int]:
  """The prose sentences of a docstring in order, and how many candidates were refused."""
  kept, refused = [], 0
  for paragraph in paragraphs(doc):
    if _MATH.search(paragraph):
      refused += 1
      continue
    for sentence in split_sentences(strip_markup(paragraph)):
      if is_prose(sentence):
        kept.append(sentence)
      else:
        refused += 1
  return kept, refused
