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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.data.tokenizers import Tokenizer

NEVER = -99.0  # log10 of the probability of a token that is never predicted
_LINES = 1 << 16  # written at once
_LN10 = math.log(10)


class Table(NamedTuple):
  """The n-grams of one order, sorted. contexts int64 [N]: the numbers of their first tokens in the
  order below. words int32 [N]: the last token. p, backoff float64 [N]: natural logarithms."""

  contexts: np.ndarray
  words: np.ndarray
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
  """Writes a model. Errors: `UserError` for tokens with white space, which a file cannot hold."""
  names = names_of(tokenizer)
  if odd := next((name for name in names if not name or name.split() != [name]), None):
    raise UserError(f"an ARPA file cannot hold the token {odd!r}; take another tokenizer")
  with open(path, "w", encoding="utf-8") as file:
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
  tokens that the vocabulary lacks, and for lines that are none.
  """
  ids = {name: i for i, name in enumerate(names_of(tokenizer))}
  lines = _numbered(path)
  announced = _header(path, lines)
  tables: list[Table] = []
  for order, size in enumerate(announced, 1):
    rows, p, backoff = _section(path, lines, order, size, ids)
    if order == 1:
      tables.append(_tokens(rows[:, 0], p, backoff, len(ids), ids.get("<unk>")))
    else:
      tables.append(_sorted(path, rows, p, backoff, tables))
  for number, line in lines:
    if line == "\\end\\":
      return tables
    raise _fault(path, number, line, "\\end\\ after the announced number of n-grams")
  raise UserError(f"{path} has no line \\end\\: it was cut off; give a whole ARPA file")


def _numbered(path: str | Path) -> Iterator[tuple[int, str]]:
  try:
    with open(path, encoding="utf-8") as file:
      for number, line in enumerate(file, 1):
        if line := line.rstrip("\r\n").strip(" "):
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
    if name.split() != ["ngram", str(len(sizes) + 1)] or not size.strip().isdecimal():
      raise _fault(path, number, line, f"ngram {len(sizes) + 1}=COUNT")
    sizes.append(int(size))
  raise UserError(f"{path} has no n-grams; give a whole ARPA file")


def _section(path, lines, order: int, size: int, ids: dict[str, int]):
  """The tokens int64 [N, order], log p and log backoff float64 [N] of one order."""
  rows, p, backoff = [], [], []
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
    try:
      if len(parts) not in (order + 1, order + 2):
        raise ValueError
      p.append(float(parts[0]))
      backoff.append(float(parts[order + 1]) if len(parts) == order + 2 else 0.0)
    except ValueError:
      raise _fault(path, number, line, f"log10 p, {order} tokens and a backoff") from None
    try:
      rows.append([ids[word] for word in parts[1 : order + 1]])
    except KeyError as error:
      raise UserError(
        f"{path}, line {number}: the vocabulary has no token {error.args[0]!r}; give the tokenizer "
        "of the run that the file was written from"
      ) from None
  tokens = np.array(rows, np.int64).reshape(len(rows), order)
  return tokens, np.array(p) * _LN10, np.array(backoff) * _LN10


def _tokens(tokens, p, backoff, vocabulary: int, unknown: int | None) -> Table:
  """Order 1, of all tokens of the vocabulary."""
  all_p, all_backoff = np.full(vocabulary, NEVER * _LN10), np.zeros(vocabulary)
  # lmplz writes 0 for <s>, which no text predicts.
  p = np.where(p == 0, NEVER * _LN10, np.maximum(p, NEVER * _LN10))
  all_p[tokens], all_backoff[tokens] = p, backoff
  missing = np.ones(vocabulary, bool)
  missing[tokens] = False
  if unknown is not None and not missing[unknown]:
    missing[unknown] = True
    all_p[missing] = all_p[unknown] - np.log(missing.sum())
  return Table(np.zeros(vocabulary, np.int64), np.arange(vocabulary), all_p, all_backoff)


def _sorted(path, rows, p, backoff, below: list[Table]) -> Table:
  """An order from 2 on, its contexts numbered by those below."""
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
  if (np.diff(keys[at]) == 0).any():
    raise UserError(f"{path} has an n-gram of order {order} twice")
  return Table(context[at], rows[at, -1], p[at], backoff[at])
