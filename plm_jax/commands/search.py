"""Finds the texts of a file that are nearest to a query, by the cosine of their vectors.

  python -m plm_jax.search --model=runs/minilm --file=texts.txt --query="how do I read a file?"
  python -m plm_jax.encode --model=runs/minilm --file=texts.txt --out=vectors.npy
  python -m plm_jax.search --model=runs/minilm --file=texts.txt --vectors=vectors.npy < queries.txt

Every text is compared with every query. With --vectors the texts are not encoded again. Without
--query each line of standard input is one. Models trained with --task=similar, and Sentence-BERTs,
search best; any model has vectors.

From Python: `from plm_jax.search import search; search("runs/minilm", texts, ["a query"])`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.commands.encode import all_vectors, encoder_of, read
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.evaluation.word_vectors import unit
from plm_jax.runs import Run
from plm_jax.tasks.vectors import POOLINGS
from plm_jax.train.process import keep_compilations

FLAGS = flags.FLAGS
_AT_ONCE = 256  # queries that are compared together


class Match(NamedTuple):
  """place: of the text, from 0. score: the cosine."""

  place: int
  text: str
  score: float


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a run, or of a published model.")
  flags.DEFINE_string("file", None, "The texts: a .csv, .tsv or .jsonl file, or lines.")
  flags.DEFINE_string("column", None, "The column of the texts in a table (default: guessed).")
  flags.DEFINE_string("vectors", None, "Their vectors, from `python -m plm_jax.encode --out`.")
  flags.DEFINE_multi_string("query", [], "A text to look for. Repeatable.")
  flags.DEFINE_integer("best", 5, "The number of texts for each query.", lower_bound=1)
  flags.DEFINE_enum("pooling", None, list(POOLINGS), "As for `python -m plm_jax.encode`.")
  flags.DEFINE_integer("layer", -1, "As for `python -m plm_jax.encode`.")
  flags.DEFINE_bool("json", False, "Prints a line of JSON for each query.")


def search(
  model: str | Path | Run,
  texts: Sequence[str],
  queries: Sequence[str],
  best: int = 5,
  vectors: np.ndarray | None = None,
  pooling: str | None = None,
  layer: int = -1,
) -> list[list[Match]]:
  """For each query the `best` texts, the nearest first; of equal ones the first. vectors: float32
  [texts, D], those of the texts; None encodes them. Errors: `UserError` for vectors of another
  number or width."""
  if best < 1:
    raise UserError(f"best={best} was given; expected at least 1.")
  encoder = encoder_of(model, pooling, layer)
  if not queries:
    return []
  if vectors is None:
    vectors = all_vectors(encoder, texts)
  wanted_QD = all_vectors(encoder, queries)
  texts_ND = _checked(vectors, len(texts), wanted_QD.shape[1])
  found = []
  for first in range(0, len(queries), _AT_ONCE):
    cosines_QN = unit(wanted_QD[first : first + _AT_ONCE]) @ texts_ND.T
    cosines_QN = np.round(cosines_QN, 6)  # equal texts have equal scores
    order_QN = np.argsort(-cosines_QN, axis=1, kind="stable")[:, :best]
    found += [
      [Match(int(n), texts[n], float(cosines_N[n])) for n in order_N]
      for cosines_N, order_N in zip(cosines_QN, order_QN)
    ]
  return found


def _checked(vectors: np.ndarray, count: int, width: int) -> np.ndarray:
  """float64 [count, width], of length 1. Errors: `UserError` for vectors of other texts or of
  another model."""
  if vectors.shape != (count, width) or not np.issubdtype(vectors.dtype, np.floating):
    raise UserError(
      f"the vectors are {vectors.dtype} {list(vectors.shape)}, and {count:,} texts of this model "
      f"have [{count}, {width}]; encode these texts with this model."
    )
  unit_ND = unit(np.asarray(vectors, np.float64))  # squares of float16 and float32 may overflow
  if not np.isfinite(unit_ND).all():
    raise UserError("the vectors have values that are no finite numbers; encode the texts again.")
  return unit_ND


def main() -> None:
  if not FLAGS.model or not FLAGS.file:
    raise UserError("--model=DIR and --file=FILE with the texts are needed.")
  texts = read(FLAGS.file, FLAGS.column)
  if not texts:
    raise UserError(f"{FLAGS.file} has no text; give a file with at least one.")
  stored = _stored(FLAGS.vectors) if FLAGS.vectors else None
  queries = FLAGS.query or [line.strip() for line in sys.stdin if line.strip()]
  if not queries:
    raise UserError("give the queries by --query or on standard input, one in a line.")
  keep_compilations(default_cache())
  for line in _lines(queries, search(FLAGS.model, texts, queries, FLAGS.best, stored,
                                     FLAGS.pooling, FLAGS.layer)):  # fmt: skip
    print(line)


def _lines(queries: Sequence[str], found: list[list[Match]]) -> Iterator[str]:
  for query, matches in zip(queries, found, strict=True):
    if FLAGS.json:
      yield json.dumps({"query": query, "matches": [match._asdict() for match in matches]})
      continue
    yield query
    yield from (f"  {match.score:.3f}  {match.place + 1:>6}  {match.text}" for match in matches)


def _stored(path: str) -> np.ndarray:
  try:
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"{path} cannot be read as vectors (.npy): {error}.") from None
  if not isinstance(stored, np.ndarray):
    raise UserError(f"{path} is no array (.npy), as `python -m plm_jax.encode --out` writes it.")
  return stored


if __name__ == "__main__":
  cli.run(main)
