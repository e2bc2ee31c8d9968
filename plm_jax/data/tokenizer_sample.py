"""The part of a text that a tokenizer is trained on.

A text of up to `READ` bytes, or of up to `POINTS` shards, is read whole. Of a larger one only some
shards are read (plm_jax/data/shards.py). k points lie at equal distances in the bytes of all
shards, one after the other, and a shard with a point is read. With h points and s bytes it gives
the share min(1, h SIZE / (k s)) of its training documents: all points give equally much, so
the sample has the mixture of the text, however unequal the shards are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from plm_jax.data.chunks import Chunk, Place, chunks_of, size_of
from plm_jax.data.corpora import Source
from plm_jax.data.documents import Document, share_of
from plm_jax.data.shards import Shard, shards_of

SIZE = 32 << 20  # characters; counting the words of so many takes 20 s of CPU
READ = 2 * SIZE  # bytes to read at least: sizes are estimates, and some documents are held out
POINTS = 32  # at least: then neighbours with a thirty-second of the bytes always have one


class RatedChunk(NamedTuple):
  """A chunk, and the share of its documents that is taken."""

  chunk: Chunk
  rate: float

  @property
  def after(self) -> Place:
    return self.chunk.after


@dataclass(frozen=True)
class Sample:
  """rates: the number of a shard that is read -> the share of its documents that is taken; empty
  where the whole text is read. points: k of the rule above. shards: all of the text."""

  source: Source
  shards: tuple[Shard, ...]
  rates: dict[int, float]
  points: int

  @property
  def size(self) -> int:
    """About the bytes of text that are read."""
    return sum(self.shards[number].size for number in self.rates) or self.source.size

  @property
  def most(self) -> float:
    """The characters after which the reading ends. With chosen shards there is no such end: it
    would leave out the last ones where the sizes were estimated too low."""
    return float("inf") if self.rates else SIZE

  def record(self) -> dict[str, Any]:
    """What was chosen, for the manifest; empty where the whole text is read."""
    if not self.rates:
      return {}
    numbers = {"shards": list(self.rates), "of": len(self.shards)}
    return {**numbers, "points": self.points, "characters": SIZE}

  def chunks(self, size: int) -> Iterator[RatedChunk]:
    """What is read, in chunks of about `size` bytes."""
    if not self.rates:
      rate = min(1.0, SIZE / max(1, self.source.size))
      for chunk in chunks_of(self.source, Place(), size):
        yield RatedChunk(chunk, rate)
    for number, rate in self.rates.items():
      for chunk in self.shards[number].chunks(size):
        yield RatedChunk(chunk, rate)


def sample_of(source: Source) -> Sample:
  """What is read of a text: a function of the sizes of its shards."""
  shards = tuple(shards_of(source))
  sizes = np.array([shard.size for shard in shards], np.int64)
  total = int(sizes.sum())
  if len(shards) <= POINTS or total <= READ:
    return Sample(source, shards, {}, 0)
  points = max(POINTS, -(-READ * len(shards) // total))
  places = (np.arange(points) + 0.5) * (total / points)
  hit = np.bincount(np.searchsorted(np.cumsum(sizes), places, side="right"), minlength=len(shards))
  rates = {
    int(number): min(1.0, float(hit[number] * SIZE / (points * sizes[number])))
    for number in np.flatnonzero(hit)
  }
  return Sample(source, shards, rates, points)


@dataclass(frozen=True)
class Sampling:
  """The job of a worker: from a chunk to the sentences that a tokenizer is trained on, those of a
  share of the documents that are not held out."""

  held_out: float

  def __call__(self, rated: RatedChunk) -> list[tuple[int, tuple[str, ...]]]:
    """The characters of each document, and its sentences; none where it is left out."""
    return [
      (size_of(d), d.sentences if self._takes(d, rated.rate) else ())
      for d in rated.chunk.documents()
    ]

  def _takes(self, document: Document, rate: float) -> bool:
    if share_of(document, b"split") < self.held_out:
      return False
    return rate >= 1 or share_of(document, b"sample") < rate
