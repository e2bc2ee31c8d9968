"""What word vectors know: analogies, and how similar people find two words.

Analogies are those of Mikolov et al. 2013a, section 4 ("questions-words.txt"): "a : b, c : ?" is
answered by the word nearest to b - a + c (3CosAdd, vectors of length 1), and never by a, b or c
themselves. Similarity is Spearman's correlation of cosines with the means of human judgements.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plm_jax.data.vector_files import WordTable
from plm_jax.data.words import WordList
from plm_jax.decode.neighbours import Neighbour, bare, token_table, with_word_vectors
from plm_jax.errors import UserError
from plm_jax.files import open_file
from plm_jax.runs import Run

_AT_ONCE = 256  # questions whose cosines with all words are in memory together


class Section(NamedTuple):
  """Analogies of one kind. asked: questions whose four words are known."""

  name: str
  right: int
  asked: int
  total: int


class Similarity(NamedTuple):
  """Spearman's correlation over the pairs whose two words are known; None for fewer than three."""

  name: str
  spearman: float | None
  asked: int
  total: int


def words_of_run(run: Run) -> WordTable:
  """The whole words among a run's tokens and their rows in the token table; the vector of any other
  word is the mean of its tokens'. Errors: `UserError` for a model without such a table."""
  params, tokenizer = run.params.encoder(), run.tokenizer
  if token_table(params) is None:
    raise UserError(f"a {type(run.config).__name__} has no vectors of words; give another model.")
  table = np.asarray(token_table(with_word_vectors(params, tokenizer)), np.float32)
  vocab, backend = tokenizer.vocab, tokenizer.backend
  names = [bare(piece).removesuffix("</w>") for piece in tokenizer.pieces]
  starts = vocab.word_start
  if starts is None:
    starts = np.array([piece.endswith("</w>") for piece in tokenizer.pieces])
  ids = [i for i in range(vocab.size) if starts[i] and not vocab.special[i] and names[i]]
  words, vectors = [names[i] for i in ids], table[ids]
  if not isinstance(backend, WordList):

    def mean_of_tokens(word: str) -> np.ndarray | None:
      pieces = [i for i in tokenizer.encode(word) if i != vocab.unk]
      return table[pieces].mean(axis=0) if pieces else None

    return WordTable(words, vectors, compose=mean_of_tokens)
  result = WordTable(words, vectors, np.array(backend.counts))
  if hasattr(params, "output_rows"):
    result = dataclasses.replace(result, output=params.output_rows()[ids])
  rows, ngrams = params.word_rows() if hasattr(params, "word_rows") else (table, None)
  if ngrams is None:
    return result
  return dataclasses.replace(result, subwords=backend.subwords, rows=rows[ids], ngrams=ngrams)


def unit(vectors_ND: np.ndarray) -> np.ndarray:
  """The vectors with length 1."""
  return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=-1, keepdims=True), 1e-12)


def neighbours(table: WordTable, word: str, best: int = 8) -> list[Neighbour]:
  """The `best` nearest other words by cosine. Errors: `UserError` for a word without a vector."""
  (vector,) = vectors_of(table, [word])
  cosines = unit(table.vectors) @ unit(vector)
  if word in table.index:
    cosines[table.index[word]] = -np.inf
  order = np.argsort(-cosines, kind="stable")[:best]
  return [Neighbour(table.words[i], float(cosines[i])) for i in order]


def vectors_of(table: WordTable, words: Sequence[str]) -> np.ndarray:
  """float32 [N, D]. Errors: `UserError` for a word without a vector."""
  vectors = []
  for word in words:
    vector = table.vector(word)
    if vector is None:
      raise UserError(f"the word {word!r} is not among the {len(table.words):,} of the model.")
    vectors.append(vector)
  return np.stack(vectors)


def analogy(table: WordTable, a: str, b: str, c: str, best: int = 5) -> list[Neighbour]:
  """The words nearest to b - a + c, without these three."""
  va, vb, vc = unit(vectors_of(table, [a, b, c]))
  cosines = unit(table.vectors) @ unit(vb - va + vc)
  for word in (a, b, c):
    if word in table.index:
      cosines[table.index[word]] = -np.inf
  order = np.argsort(-cosines, kind="stable")[:best]
  return [Neighbour(table.words[i], float(cosines[i])) for i in order]


def read_questions(path: str | Path) -> dict[str, list[tuple[str, str, str, str]]]:
  """The questions of each section ": name". Errors: `UserError` naming a line."""
  sections: dict[str, list] = {}
  name = "questions"
  for number, line in enumerate(_lines(path), 1):
    words = line.split()
    if line.startswith(":"):
      name = line[1:].strip()
    elif len(words) == 4:
      sections.setdefault(name, []).append(tuple(words))
    elif words:
      raise UserError(f'{path} line {number} is no analogy; expected four words, or ": section".')
  if not sections:
    raise UserError(f"{path} has no analogies; expected four words in a line.")
  return sections


def analogies(
  table: WordTable, questions: dict[str, list], most: int | None = None
) -> list[Section]:
  """The score of every section. most: only the first words of the table take part, 30,000 in the
  published evaluation. Words are compared without case, as there. Errors: `UserError` if no
  question has only known words."""
  words = table.words[:most]
  index: dict[str, int] = {}
  for i, word in enumerate(words):
    index.setdefault(word.lower(), i)
  rows = unit(table.vectors[:most])
  sections = []
  for name, section in questions.items():
    ids = [[index.get(word.lower(), -1) for word in question] for question in section]
    known = np.array([row for row in ids if min(row) >= 0], int).reshape(-1, 4)
    right = 0
    for first in range(0, len(known), _AT_ONCE):
      part = known[first : first + _AT_ONCE]
      a, b, c, answer = part.T
      cosines = (rows[b] - rows[a] + rows[c]) @ rows.T
      np.put_along_axis(cosines, part[:, :3], -np.inf, axis=1)
      right += int((cosines.argmax(axis=1) == answer).sum())
    sections.append(Section(name, right, len(known), len(section)))
  if not any(section.asked for section in sections):
    raise UserError(
      f"none of the {sum(s.total for s in sections)} analogies has only words that the model knows."
    )
  return sections


def totals(sections: list[Section]) -> list[Section]:
  """The sums over semantic sections, over syntactic ones ("gram..."), and over all."""
  kinds = {
    "semantic": [s for s in sections if not s.name.startswith("gram")],
    "syntactic": [s for s in sections if s.name.startswith("gram")],
    "all": sections,
  }
  return [
    Section(name, *(sum(column) for column in zip(*(s[1:] for s in part))))
    for name, part in kinds.items()
    if part
  ]


def read_pairs(path: str | Path) -> list[tuple[str, str, float]]:
  """Two words and a number in every line. Errors: `UserError` naming a line."""
  pairs = []
  for number, line in enumerate(_lines(path), 1):
    if not line.strip() or line.startswith("#"):
      continue
    try:
      first, second, score, *_ = line.split()
      if "_" in score or not math.isfinite(float(score)):  # Python reads "1_0" as 10
        raise ValueError
      pairs.append((first, second, float(score)))
    except ValueError:
      raise UserError(
        f"{path} line {number} is no pair; expected two words and a number."
      ) from None
  if not pairs:
    raise UserError(f"{path} has no pairs of words.")
  return pairs


def similarity(table: WordTable, pairs: list[tuple[str, str, float]], name: str) -> Similarity:
  """Spearman's correlation on the pairs that the model knows."""
  from scipy.stats import spearmanr

  lower: dict[str, str] = {}
  for word in table.words:
    lower.setdefault(word.lower(), word)
  cosines, scores = [], []
  for first, second, score in pairs:
    a, b = (table.vector(lower.get(word.lower(), word)) for word in (first, second))
    if a is not None and b is not None:
      cosines.append(float(unit(a) @ unit(b)))
      scores.append(score)
  enough = len(scores) > 2 and len(set(scores)) > 1 and len(set(cosines)) > 1
  spearman = float(spearmanr(cosines, scores).statistic) if enough else None
  return Similarity(name, spearman, len(scores), len(pairs))


def _lines(path: str | Path) -> list[str]:
  try:
    with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
      return file.read().split("\n")
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read as text: {error}.") from None
