"""Does the vector of a word in its sentence tell the word's senses apart?

Every example is compared with all others of its word. It counts as right if the nearest one (by
cosine) has its sense: a one-nearest-neighbour classifier, left one out. Where several are equally
near, as with static vectors, their share counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plm_jax.errors import UserError
from plm_jax.runs import Run
from plm_jax.tasks.word_states import states_of

EXAMPLES = "data/senses.tsv"  # in the package


class Use(NamedTuple):
  """A word in a sentence. start, end: its characters."""

  word: str
  sense: str
  text: str
  start: int
  end: int


class Senses(NamedTuple):
  """Results for the uses of words that a model reads. vectors: float32 [N, L, D]. accuracy: of each
  layer, float [L]. floor: of a vector that is the same in all sentences. context: of the mean of
  the embeddings of the sentence's other tokens. left_out: uses whose word the model cannot read.
  is_static: whether a vector is the same in all sentences."""

  uses: list[Use]
  vectors: np.ndarray
  accuracy: np.ndarray
  floor: float
  context: float
  left_out: int
  is_static: bool = False

  @property
  def best(self) -> int:
    """The layer that tells senses apart best."""
    return int(self.accuracy.argmax())


def read_uses(path: str | Path | None = None) -> list[Use]:
  """The uses in a file: a word, a tab, a sense, a tab, and a sentence with the word in brackets.

  path: None is `EXAMPLES`. Errors: `UserError` naming a line."""
  where = path or "the examples"
  try:
    source = Path(path) if path else files("plm_jax").joinpath(EXAMPLES)
    lines = source.read_text(encoding="utf-8").split("\n")
  except (OSError, ValueError) as error:
    raise UserError(f"{where} cannot be read as text: {error}.") from None
  uses = []
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.startswith("#"):
      continue
    cells = line.split("\t")
    if len(cells) != 3 or cells[2].count("[") != 1 or cells[2].count("]") != 1:
      raise UserError(
        f"{where} line {number} is no use of a word; expected a word, a tab, a sense, a tab and a "
        "sentence with the word in [brackets]."
      )
    before, _, rest = cells[2].partition("[")
    word, _, after = rest.partition("]")
    text = before + word + after
    uses.append(Use(cells[0], cells[1], text, len(before), len(before) + len(word)))
  if not uses:
    raise UserError(f"{where} has no uses of words.")
  return uses


def senses(run: Run, uses: list[Use]) -> Senses:
  """The result of a model. Errors: `UserError` if no word is left with two uses of each sense."""
  kept, vectors, contexts = [], [], []
  for use, (states, offsets) in zip(uses, states_of(run, [use.text for use in uses]), strict=True):
    inside = (offsets[:, 0] < use.end) & (offsets[:, 1] > use.start)
    if inside.any() and not inside.all():
      kept.append(use)
      vectors.append(states[inside].mean(axis=0))
      contexts.append(states[~inside, 0].mean(axis=0))
  if len(kept) < 2:
    raise UserError(
      f"the model reads the word of {len(kept)} of {len(uses)} sentences; give a file with words "
      "that it knows."
    )
  vectors_NLD = np.stack(vectors).astype(np.float32)
  accuracy = [
    nearest_accuracy(vectors_NLD[:, layer], kept) for layer in range(vectors_NLD.shape[1])
  ]
  same = nearest_accuracy(np.ones((len(kept), 1)), kept)
  context = nearest_accuracy(np.stack(contexts), kept)
  left_out, is_static = len(uses) - len(kept), hasattr(run.params.encoder(), "word_rows")
  return Senses(kept, vectors_NLD, np.array(accuracy), same, context, left_out, is_static)


def nearest_accuracy(vectors_ND: np.ndarray, uses: list[Use]) -> float:
  """The share of uses whose nearest other use of the same word has the same sense."""
  return float(np.mean([right for right, _ in nearest(vectors_ND, uses)]))


def nearest(vectors_ND: np.ndarray, uses: list[Use]) -> Iterable[tuple[float, int]]:
  """For every use, the share of its equally near neighbours that have its sense, and the first of
  them; of a word with one use (0, -1)."""
  lengths = np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
  cosines = (vectors_ND / lengths) @ (vectors_ND / lengths).T
  words, names = np.array([u.word for u in uses]), np.array([u.sense for u in uses])
  for i, row in enumerate(cosines):
    same_word = np.flatnonzero((words == words[i]) & (np.arange(len(uses)) != i))
    if not len(same_word):
      yield 0.0, -1
      continue
    near = same_word[row[same_word] >= row[same_word].max() - 1e-5]
    yield float((names[near] == names[i]).mean()), int(near[0])
