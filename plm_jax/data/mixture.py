"""Batches of rows of several texts, in exact shares.

Position g = step * global_batch + slot belongs to one text. Every `BLOCK` positions have exactly
the rows that plm_jax/data/texts.py gives each text, in a random order, so that a batch stays a
function of (seed, step). Within a text, rows follow each other as in a corpus of this text alone:
epochs of its own, passes of its own, the same masks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from plm_jax.data.beam import Beam
from plm_jax.data.corpora import default_cache, open_source
from plm_jax.data.draws import permute
from plm_jax.data.pipeline import Batches, Corpus
from plm_jax.data.preparation import Prepared, prepare, train_tokenizer
from plm_jax.data.texts import BLOCK

_MIXED = 7  # salt for the order of the texts in a block


def prepare_each(
  corpus,
  cache_dir: str | os.PathLike | None = None,
  progress: bool = True,
  beam: Beam | None = None,
) -> dict[str, Prepared]:
  """Name -> the tokenised text, of every text of `corpus`; each is prepared once and kept alone.

  A tokenizer that is trained here is trained on all of them together. beam, errors: those of
  `prepare`.
  """
  texts = corpus.texts
  if len(texts) == 1:
    return {"": prepare(corpus, cache_dir, progress, beam)}
  if corpus.tokenizer.path is None:
    cache = Path(cache_dir or default_cache())
    sources = [open_source(text, cache, corpus.lines) for text in texts.values()]
    folder = train_tokenizer(corpus, sources, cache, progress)
    corpus = replace(corpus, tokenizer=replace(corpus.tokenizer, path=str(folder)))
  return {
    name: prepare(corpus.alone(text), cache_dir, progress, beam) for name, text in texts.items()
  }


@dataclass
class MixedBatches:
  """`batches(step)`: the rows of this process, as those of `Batches`, which they are for one text.

  parts: name -> the batches of a text. rows_of_block: int [texts], the rows of each in `BLOCK`.
  Picklable.
  """

  parts: Mapping[str, Batches]
  rows_of_block: np.ndarray

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    self.check()
    first, *others = self.parts.values()
    if not others:
      return first(step)
    text, place = self._order(first.positions(step), first.seed)
    made, slots = [], []
    for number, part in enumerate(self.parts.values()):
      if len(chosen := np.flatnonzero(text == number)):
        made.append(part.at(place[chosen]))
        slots.append(chosen)
    back = np.argsort(np.concatenate(slots))
    return {name: np.concatenate([batch[name] for batch in made])[back] for name in made[0]}

  def _order(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The text at each position, and how many rows of this text come before it."""
    ends = np.cumsum(self.rows_of_block)
    blocks, slots = np.divmod(positions, BLOCK)
    text, place = np.empty_like(positions), np.empty_like(positions)
    for block in np.unique(blocks):
      order = permute(np.arange(BLOCK), BLOCK, seed, _MIXED, int(block))
      texts = np.searchsorted(ends, order, side="right")
      ranks = np.empty(BLOCK, np.int64)
      for number, rows in enumerate(self.rows_of_block):
        ranks[texts == number] = block * rows + np.arange(rows)
      chosen = blocks == block
      text[chosen], place[chosen] = texts[slots[chosen]], ranks[slots[chosen]]
    return text, place

  def check(self) -> None:
    """Errors: `UserError` if a text makes no row, or the only one less than a batch; and if an
    objective does not fit the vocabulary."""
    for part in self.parts.values():
      part.check(least=1 if len(self.parts) > 1 else None)

  def close(self) -> None:
    """Ends what is being made in the background."""
    for part in self.parts.values():
      part.close()

  def evaluation(self, max_rows: int | None = None) -> list[dict[str, np.ndarray]]:
    """The held-out rows of all texts."""
    return [batch for batches in self.evaluations(max_rows).values() for batch in batches]

  def evaluations(self, max_rows: int | None = None) -> dict[str, list[dict[str, np.ndarray]]]:
    """Name -> the held-out rows of a text; the texts share `max_rows` equally."""
    rows = None if max_rows is None else max(1, max_rows // len(self.parts))
    return {name: part.evaluation(rows) for name, part in self.parts.items()}

  def of_all_processes(self) -> Self:
    """The rows of all processes together."""
    parts = {n: replace(p, process_index=0, process_count=1) for n, p in self.parts.items()}
    return replace(self, parts=parts)

  def rows(self) -> int:
    """The number of rows of the first pass over every text."""
    return sum(part.rows() for part in self.parts.values())

  def fill(self) -> float:
    """The share of positions that are not padding."""
    fills = np.array([part.fill() for part in self.parts.values()])
    return float(fills @ self.rows_of_block / BLOCK)

  @property
  def most_read(self) -> str:
    """The name of the text with the largest share."""
    return list(self.parts)[int(np.argmax(self.rows_of_block))]

  @property
  def corpus(self) -> Corpus:
    return self.parts[self.most_read].corpus

  @property
  def global_batch(self) -> int:
    return self.parts[self.most_read].global_batch

  @property
  def counts(self) -> np.ndarray:
    """int64 [V]: of `mixed_counts`."""
    return self.parts[self.most_read].vocab.counts


def mixed_counts(texts: Mapping[str, Prepared], rows: np.ndarray) -> np.ndarray:
  """int64 [V]: the frequency of each token in as many tokens as all texts have, in their shares."""
  counts = [np.asarray(text.train.counts) for text in texts.values()]
  total = sum(int(c.sum()) for c in counts)
  mean = sum(r / BLOCK * c / c.sum() for r, c in zip(rows, counts, strict=True))
  return np.rint(total * mean).astype(np.int64)
