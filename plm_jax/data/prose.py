"""Prose of docstrings, without doctests, code, tables and markup.

`paragraphs` reads the layout of a docstring (reStructuredText, numpydoc, Google style and Markdown
occur in one package) and keeps running text; `is_prose` then tests each sentence. `paragraphs` may
let code pass, since `is_prose` refuses it, which may be strict, since there is text enough.
"""

import functools
import re
import string
import unicodedata
from collections.abc import Iterator

from plm_jax.data.sentences import split_sentences

# Directives whose body is prose; the body of any other (code-block, math, plot ...) is dropped.
_PROSE = (
  "note warning tip hint important caution attention danger admonition topic rubric deprecated "
  "versionadded versionchanged"
)
_PROSE_DIRECTIVES = frozenset(_PROSE.split())
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
  """The paragraphs of running text in a docstring, each on one line, with markup."""
  reader = _Layout()
  lines = [(line.strip(), len(line) - len(line.lstrip())) for line in doc.expandtabs().splitlines()]
  # The first line follows the quotes, so its indentation means nothing.
  margin = min((indent for text, indent in lines[1:] if text), default=0)
  for text, indent in lines:
    done = reader.read(text, max(0, indent - margin))
    if done:
      yield done
  done = reader.flush()
  if done:
    yield done


class _Layout:
  """Reads a docstring line by line; `read` returns the paragraph that the line ends, else ""."""

  def __init__(self):
    self.lines: list[str] = []
    self.indent = 0
    self.skip: int | None = None  # drop lines indented deeper than this
    self.until_blank = self.fence = self.dropped_section = self.items = False

  def flush(self) -> str:
    text, self.lines = "" if self.dropped_section else " ".join(self.lines), []
    if text.endswith("::"):
      self.skip = self.indent
    return text

  def read(self, text: str, indent: int) -> str:
    if not text:
      self.until_blank = False
      return self.flush()
    first = text[0]
    if first in "`~" and text.startswith(("```", "~~~")):
      self.fence = not self.fence
      return self.flush()
    if self.skip is not None and indent <= self.skip:
      self.skip = None
    if self.until_blank or self.fence or self.skip is not None:
      return ""
    if first in ">I$" and text.startswith((">>>", "In [", "$ ")):
      self.until_blank = True
      return self.flush()
    if first == text[-1] and not first.isalnum() and _UNDERLINE.match(text):
      return self._underline()
    if self.dropped_section:
      self.lines = [text]  # it may be the title of the next section
      return ""
    if text.startswith(".."):
      return self._directive(text, indent)
    if (first in "|+=-:" or "   " in text) and _TABLE.match(text):
      return self.flush()
    return self._line(text, indent)

  def _underline(self) -> str:
    title = self.lines.pop().lower() if self.lines else ""
    done = self.flush()
    self.dropped_section = title in _DROPPED_SECTIONS
    self.items = True
    return done

  def _directive(self, text: str, indent: int) -> str:
    match = _DIRECTIVE.match(text)
    name, rest = match.groups() if match else (None, "")
    done = self.flush()
    if name in _PROSE_DIRECTIVES:
      self.lines = [rest] if rest and name not in _VERSIONED else []
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
    breaks = header is not None or (self.lines and indent < self.indent)
    done = self.flush() if breaks else ""
    if self.skip is not None and indent <= self.skip:
      self.skip = None
    self.indent = indent
    if start < len(text):
      self.lines.append(text[start:])
    return done


_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`([^`]*)`|`{1,2}([^`]+)`{1,2}_{0,2}")
_MATH = re.compile(r":math:|:eq:|\$\$|\\[a-zA-Z(\[]")
_TARGET = re.compile(r"\s*<[^>]*>$")
_LINK = re.compile(r"!?\[([^\]]+)\]\([^)]*\)")
_CITATION = re.compile(r"\s*\[(?:\d+|[A-Z]\w*\d+)\](?:_|\b)?")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])")
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "\u00ad": None, "\u200b": None})


def strip_markup(text: str) -> str:
  """Replaces inline markup by its visible text: roles, literals, links, emphasis, citations."""
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


_FORBIDDEN = re.compile(r"[{}<>\\|=^~$@#*`\x00-\x1f]")
_FORBIDDEN_RUNS = ("http:", "https:", "www.", "%(", "__", ".. ", "::")
_WORD = re.compile(r"""(?<!\S)["'(]*[A-Za-z]+(?:['-][A-Za-z]+)*["').,:;!?-]*(?!\S)""")
_NO_LETTER = re.compile(r"[^\sa-zA-Z\u00c0-\uffff]")
_ASCII_LETTERS = (string.ascii_letters + string.whitespace).encode()
_START = re.compile(r"[\"'(]?[A-Z0-9]")
# English sentences of five words rarely lack all of these; lines of code rarely have one.
_FUNCTION_WORD = re.compile(
  r"\b(?:an?|the|of|to|in|is|are|be|and|or|for|if|it|this|that|with|as|on|by|from|at|not?|was|were|"
  r"has|have|will|can|may|must|should|when|which|you|we|they|its|all|any|but|into|than|so|do|does|"
  r"use|used|returns?)\b",
  re.IGNORECASE,
)
_COMMON_WORDS = frozenset(("a", "an", "the", "of", "to", "in", "is", "are", "be", "and", "or"))
_SHORTEST, _LONGEST = 5, 120  # words
_LETTERS = 0.85  # share of the characters that are not white space
_WORDS = 0.75  # share of the words that are letters only


def is_prose(sentence: str) -> bool:
  """Whether a line reads like an English sentence and not like code, a title or a table row."""
  # This function and the splitting before it took three quarters of the time to read the installed
  # text: cheap tests come first, and regular expressions decide the rest.
  if not _START.match(sentence) or not sentence.rstrip("\"')").endswith((".", "!", "?")):
    return False
  if _FORBIDDEN.search(sentence) or any(run in sentence for run in _FORBIDDEN_RUNS):
    return False
  words = sentence.split()
  if not _SHORTEST <= len(words) <= _LONGEST:
    return False
  if _no_letters(sentence) > (1 - _LETTERS) * sum(map(len, words)):
    return False
  enough = _WORDS * len(words)
  plain = sum(map(str.isalpha, words)) if sentence.isascii() else 0
  if plain < enough and len(_WORD.findall(sentence)) < enough:
    return False
  return not _COMMON_WORDS.isdisjoint(words) or _FUNCTION_WORD.search(sentence) is not None


def _no_letters(sentence: str) -> int:
  """The number of characters that are neither letters nor white space."""
  if sentence.isascii():
    return len(sentence.encode().translate(None, _ASCII_LETTERS))
  return len(_NO_LETTER.findall(sentence))


def sentences(doc: str) -> tuple[list[str], int]:
  """The prose sentences of a docstring in order, and the number of refused candidates."""
  kept, refused = [], 0
  for paragraph in paragraphs(doc):
    prose, dropped = _paragraph_sentences(paragraph)
    kept += prose
    refused += dropped
  return kept, refused


@functools.lru_cache(maxsize=1 << 15)  # a quarter of the paragraphs repeat: shared parameters
def _paragraph_sentences(paragraph: str) -> tuple[list[str], int]:
  if _MATH.search(paragraph):
    return [], 1
  candidates = split_sentences(strip_markup(paragraph))
  kept = [sentence for sentence in candidates if is_prose(sentence)]
  return kept, len(candidates) - len(kept)
