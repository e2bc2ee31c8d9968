"""ARPA files of n-gram models, as SRILM, KenLM and lmplz write and read them.

    \\data\\
    ngram 1=5135
    \\1-grams:
    -1.1352365	cat	-0.19629467       log10 p, the tokens, log10 backoff (absent: 0)
    \\end\\

Tokens are the pieces of a vocabulary; those that begin and end a text are <s> and </s>, the unknown
one is <unk>.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from plm_jax.errors import UserError
from plm_jax.files import open_file

if TYPE_CHECKING:
  from plm_jax.data.tokenizers import Tokenizer

NEVER = -99.0  # log10 of the probability of a token that is never predicted
_LINES = 1 << 16  # written at once
_LN10 = math.log(10)
_LINE_BYTES = 1 << 20
_ROUNDING = 1e-6  # of log10 p, by which it may be above 0
_LARGEST = 1e30  # of a number; parameters are float32
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_COUNT = re.compile("0*[1-9][0-9]{0,17}")


class Table(NamedTuple):
  """The n-grams of one order, sorted. contexts int64 [N]: the numbers of their first tokens in the
  order below. words int32 [N]: the last token. p, backoff float64 [N]: natural logarithms."""

  contexts: np.ndarray
  words: np.ndarray
  p: np.ndarray
  backoff: np.ndarray


class Section(NamedTuple):
  """The n-grams of one order in a file. lines int64 [N]: their numbers. tokens int64 [N, order]. p,
  backoff float64 [N]: natural logarithms."""

  lines: np.ndarray
  tokens: np.ndarray
  p: np.ndarray
  backoff: np.ndarray


def names_of(tokenizer: Tokenizer) -> list[str]:
  """The names of all tokens in a file."""
  names, vocab = list(tokenizer.pieces), tokenizer.vocab
  for ids, name in ((vocab.begin, "<s>"), (vocab.end, "</s>"), ([vocab.unk], "<unk>")):
    if ids and ids[0] is not None:
      names[ids[0]] = name
  return names


def write(path: str | Path, tables: list[Table], tokenizer: Tokenizer) -> None:
  """Writes a model; a file cut off is never at `path`. Tokens that the tokenizer does not have are
  left out if they are never predicted. Errors: `UserError`, before anything is written, for tokens
  with white space, for other tokens that the tokenizer does not have, and for a tokenizer with more
  tokens than the model."""
  names, path = names_of(tokenizer), Path(path)
  if odd := next((name for name in names if not name or name.split() != [name]), None):
    raise UserError(f"an ARPA file cannot hold the token {odd!r}; take another tokenizer")
  tables = _of_tokenizer(tables, len(names))
  partial = path.with_name(path.name + ".partial")
  try:
    with open(partial, "w", encoding="utf-8") as file:
      _write(file, tables, names)
    partial.replace(path)
  except OSError as error:
    raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
  finally:
    partial.unlink(missing_ok=True)


def padded(table: Table, size: int | None) -> Table:
  """Order 1 with further tokens, never predicted, up to the size of a padded vocabulary."""
  before = len(table.p)
  missing = max(0, (size or 0) - before)
  p, backoff = np.full(missing, NEVER * _LN10), np.zeros(missing)
  further = Table(np.zeros(missing, int), before + np.arange(missing), p, backoff)
  return Table(*map(np.concatenate, zip(table, further, strict=True))) if missing else table


def _of_tokenizer(tables: list[Table], size: int) -> list[Table]:
  """The tables without the unigrams from `size` on, which a padded vocabulary has."""
  words = [table.words for table in tables[1:]] + [table.contexts for table in tables[1:2]]
  largest = max((int(each.max(initial=-1)) for each in words), default=-1)
  if len(tables[0].p) < size or largest >= size:
    raise UserError(
      f"the tokenizer has {size:,} tokens, and the model of {len(tables[0].p):,} has n-grams "
      "of others; give the tokenizer that the model was counted with"
    )
  if (np.asarray(tables[0].p[size:]) > (NEVER + 1) * _LN10).any():
    raise UserError(
      f"the tokenizer has {size:,} tokens, and the model predicts {len(tables[0].p):,}; an ARPA "
      "file cannot hold the others: count the model with model.vocab_size=none"
    )
  return [Table(*(column[:size] for column in tables[0])), *tables[1:]]


def _write(file: TextIO, tables: list[Table], names: list[str]) -> None:
  file.write("\\data\\\n")
  file.writelines(f"ngram {k}={len(table.p)}\n" for k, table in enumerate(tables, 1))
  texts: list[str] = []
  for k, table in enumerate(tables, 1):
    file.write(f"\n\\{k}-grams:\n")
    before = [f"{texts[c]} " for c in table.contexts.tolist()] if k > 1 else [""] * len(names)
    texts = [b + names[w] for b, w in zip(before, table.words.tolist(), strict=True)]
    for first in range(0, len(texts), _LINES):
      rows = slice(first, first + _LINES)
      p, backoff = (np.round(x[rows] / _LN10, 7).tolist() for x in (table.p, table.backoff))
      last = k == len(tables)
      file.writelines(
        f"{a:.7g}\t{text}\n" if last or not b else f"{a:.7g}\t{text}\t{b:.7g}\n"
        for a, text, b in zip(p, texts[rows], backoff, strict=True)
      )
  file.write("\n\\end\\\n")


def read(path: str | Path, tokenizer: Tokenizer) -> list[Table]:
  """The orders of a file. Tokens that it lacks share the probability of <unk>.

  Errors: `UserError` naming file and line, for numbers of n-grams that are not those announced, for
  tokens that the vocabulary lacks, for n-grams listed twice, and for lines that are none.
  """
  ids = {name: i for i, name in enumerate(names_of(tokenizer))}
  lines = _numbered(path)
  announced = _header(path, lines)
  tables: list[Table] = []
  for order, size in enumerate(announced, 1):
    section = _section(path, lines, order, size, ids)
    if order == 1:
      tables.append(_tokens(path, section, len(ids), ids.get("<unk>")))
    else:
      tables.append(_sorted(path, section, tables))
  for number, line in lines:
    if line == "\\end\\":
      return tables
    raise _fault(path, number, line, "\\end\\ after the announced number of n-grams")
  raise UserError(f"{path} has no line \\end\\: it was cut off; give a whole ARPA file")


def _numbered(path: str | Path) -> Iterator[tuple[int, str]]:
  try:
    with open_file(path) as file:
      for number, data in enumerate(iter(lambda: file.readline(_LINE_BYTES), b""), 1):
        if len(data) == _LINE_BYTES:
          raise UserError(f"{path}, line {number}: expected fewer than {_LINE_BYTES:,} bytes")
        if line := data.decode().rstrip("\r\n").strip(" "):
          yield number, line
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read as an ARPA file: {error}") from None


def _fault(path, number: int, line: str, expected: str) -> UserError:
  return UserError(f"{path}, line {number}: expected {expected}, and it is {line[:60]!r}")


def _header(path, lines: Iterator[tuple[int, str]]) -> list[int]:
  for number, line in lines:
    if line != "\\data\\":
      raise _fault(path, number, line, "\\data\\")
    break
  sizes: list[int] = []
  for number, line in lines:
    if line == "\\1-grams:" and sizes:
      return sizes
    name, _, size = line.partition("=")
    if name.split() != ["ngram", str(len(sizes) + 1)] or not _COUNT.fullmatch(size.strip()):
      raise _fault(path, number, line, f"ngram {len(sizes) + 1}=COUNT with a count of at least 1")
    sizes.append(int(size))
  raise UserError(f"{path} has no n-grams; give a whole ARPA file")


def _section(path, lines, order: int, size: int, ids: dict[str, int]) -> Section:
  """The n-grams of one order, as the file lists them."""
  numbers, rows, p, backoff = [], [], [], []
  if order > 1:
    number, line = next(lines, (0, ""))
    if line != f"\\{order}-grams:":
      raise _fault(path, number, line, f"\\{order}-grams: after the announced number of n-grams")
  for count in range(size):
    number, line = next(lines, (0, "\\"))
    if line.startswith("\\"):
      raise UserError(
        f"{path} announces {size:,} n-grams of order {order} and has {count:,}; give a whole file"
      )
    parts = line.split()
    if len(parts) not in (order + 1, order + 2):
      raise _fault(path, number, line, f"log10 p, {order} tokens and a backoff")
    p.append(_value(parts[0]))
    backoff.append(_value(parts[order + 1]) if len(parts) == order + 2 else 0.0)
    if not (p[-1] <= _ROUNDING and math.isfinite(backoff[-1])):
      expected = f"log10 p of at most 0, {order} tokens and a backoff, all numbers finite"
      raise _fault(path, number, line, expected)
    numbers.append(number)
    try:
      rows.append([ids[word] for word in parts[1 : order + 1]])
    except KeyError as error:
      raise UserError(
        f"{path}, line {number}: the vocabulary has no token {error.args[0]!r}; give the tokenizer "
        "of the run that the file was written from"
      ) from None
  tokens = np.array(rows, np.int64).reshape(len(rows), order)
  p = np.maximum(np.array(p), NEVER)
  return Section(np.array(numbers), tokens, p * _LN10, np.array(backoff) * _LN10)


def _value(text: str) -> float:
  """A decimal number; NaN for all else that Python takes, and for those beyond a float32."""
  value = float(text) if _DECIMAL.fullmatch(text) else math.nan
  return value if abs(value) < _LARGEST else math.nan


def _check_once(path, order: int, keys: np.ndarray, lines: np.ndarray) -> None:
  """A `UserError` if two n-grams are the same. keys: sorted, stably; lines: theirs."""
  if (repeated := np.flatnonzero(np.diff(keys) == 0)).size:
    first, again = lines[repeated[0]], lines[repeated[0] + 1]
    raise UserError(
      f"{path}, line {again}: expected every n-gram of order {order} once, and line {first} has it"
    )


def _tokens(path, section: Section, vocabulary: int, unknown: int | None) -> Table:
  """Order 1, of all tokens of the vocabulary."""
  tokens, p, backoff = section.tokens[:, 0], section.p, section.backoff
  at = np.argsort(tokens, kind="stable")
  _check_once(path, 1, tokens[at], section.lines[at])
  all_p, all_backoff = np.full(vocabulary, NEVER * _LN10), np.zeros(vocabulary)
  # lmplz writes 0 for <s>, which no text predicts.
  p = np.where(p == 0, NEVER * _LN10, p)
  all_p[tokens], all_backoff[tokens] = p, backoff
  missing = np.ones(vocabulary, bool)
  missing[tokens] = False
  if unknown is not None and not missing[unknown]:
    missing[unknown] = True
    all_p[missing] = all_p[unknown] - np.log(missing.sum())
  return Table(np.zeros(vocabulary, np.int64), np.arange(vocabulary), all_p, all_backoff)


def _sorted(path, section: Section, below: list[Table]) -> Table:
  """An order from 2 on, its contexts numbered by those below."""
  lines, rows, p, backoff = section
  order = rows.shape[1]
  context = rows[:, 0]
  for k in range(1, order - 1):
    keys = (below[k].contexts << 32) | below[k].words
    wanted = (context << 32) | rows[:, k]
    context = np.searchsorted(keys, wanted)
    if len(keys) == 0 or (keys[np.minimum(context, len(keys) - 1)] != wanted).any():
      raise UserError(f"{path} has an n-gram of order {order} without its first {k + 1} tokens")
  keys = (context << 32) | rows[:, -1]
  at = np.argsort(keys, kind="stable")
  _check_once(path, order, keys[at], lines[at])
  return Table(context[at], rows[at, -1], p[at], backoff[at])
