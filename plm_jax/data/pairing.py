"""The pairs of segments of one pass: which sentences of a document become A and B of a row.

`create_instances_from_document` and `truncate_seq_pair` of BERT (google-research/bert eedf571),
with every document's draws from its own generator. `Pairing` is the loop over one document.
`PairsOfBlock` takes a step of this loop for thousands of documents at once, in numpy, with the same
draws and the same rows. Where few documents are left, it hands the rest of each to the loop.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal

import numpy as np

from plm_jax.data.draws import Sequence, Sequences
from plm_jax.data.store import TokenStore

SPANS = np.dtype(
  [
    ("a_start", np.int64),  # offset into the stored tokens
    ("b_start", np.int64),
    ("a_length", np.int32),
    ("b_length", np.int32),
    ("label", np.int32),  # 1: B is random, or A and B are swapped
  ]
)
_FIELDS = ("a_start", "b_start", "a_length", "b_length", "label")
_BLOCK = 1 << 21  # sentences whose pairs are made at once: some 100 MB
_LANES = 1 << 13  # documents in step: their arrays fit in the processor's cache
_FEW = 32  # documents in step; below it the loop is as fast
_TRIES = 10  # attempts to draw another document for B
_HALF = 1 << 63  # of 64 bits


class Pairing:
  """The rules, and their loop over one document. next, short: as in `SegmentPair`. room: tokens of
  a row without special tokens. All lengths are in tokens."""

  def __init__(
    self, next: Literal["random", "swapped", "none"], short: float, store: TokenStore, room: int
  ):
    self.next, self.short, self.room = next, short, room
    self.sentence_starts = np.asarray(store.sentence_starts)  # a memmap is slow to index
    self.document_starts = np.asarray(store.document_starts)
    self.readable = np.flatnonzero(np.diff(self.document_starts))

  def blocks(self, seed: int, pass_: int) -> Iterator[np.ndarray]:
    """SPANS [N] of consecutive documents, of some `_BLOCK` sentences each. The first is empty."""
    yield np.empty(0, SPANS)
    bounds, first = self.document_starts, 0
    while first < len(bounds) - 1:
      last = int(np.searchsorted(bounds, bounds[first] + _BLOCK, side="right")) - 1
      last = min(max(last, first + 1), len(bounds) - 1)
      yield PairsOfBlock(self, first, last, seed, pass_).rows()
      first = last

  def document(self, document: int, draw: Sequence) -> list[tuple[int, int, int, int, int]]:
    """The rows of a document."""
    target = self.room
    if draw.chance(self.short):
      target = 2 + draw.below(self.room - 1)
    first, last = self.document_starts[document : document + 2].tolist()
    return self.rest(document, first, last, target, draw)

  def rest(self, document: int, first: int, last: int, target: int, draw: Sequence):
    """The rows of a document from sentence `first` on, before sentence `last`, its end."""
    starts = self.sentence_starts[first : last + 1].tolist()
    sentences = last - first
    rows, begin = [], 0
    while begin < sentences:
      # Sentences until the target is reached, or else until the end of the document.
      end = bisect_left(starts, starts[begin] + target, begin + 1, sentences)
      a_end = begin + 1
      if end - begin > 1:
        a_end = begin + 1 + draw.below(end - begin - 1)
      a_start, b_start, b_stop, label = starts[begin], starts[a_end], starts[end], 0
      a_stop, kind = starts[a_end], self.next
      is_single = end - begin == 1 and kind != "none"
      if is_single or (kind == "random" and draw.chance(0.5)):
        b_start, b_stop = self._elsewhere(document, target - (a_stop - a_start), draw)
        label, end = 1, a_end  # the unused sentences are put back
      elif kind == "swapped" and draw.chance(0.5):
        a_start, a_stop, b_start, b_stop, label = b_start, b_stop, a_start, a_stop, 1
      row = self.truncated(a_start, a_stop, b_start, b_stop, label, draw)
      # Sentences without tokens make no pair.
      if row[2] and (row[3] or kind == "none"):
        rows.append(row)
      begin = end
    return rows

  def _elsewhere(self, document: int, target: int, draw: Sequence) -> tuple[int, int]:
    """A span of another document, from a random sentence on, until `target` is reached."""
    source = document
    for _ in range(_TRIES):
      if source != document:
        break
      source = int(self.readable[draw.below(len(self.readable))])
    first, last = self.document_starts[source : source + 2].tolist()
    begin = first + draw.below(last - first)
    start = int(self.sentence_starts[begin])
    end = bisect_left(self.sentence_starts, start + target, begin + 1, last)
    return start, int(self.sentence_starts[end])

  def truncated(self, a_start, a_stop, b_start, b_stop, label, draw: Sequence):
    """Shortens the longer of A and B (B when equal) token by token, each from a random end."""
    a_length, b_length = a_stop - a_start, b_stop - b_start
    excess = a_length + b_length - self.room
    if excess > 0:
      longer = min(excess, abs(a_length - b_length))
      rest = excess - longer
      from_a = rest // 2 + (longer if a_length > b_length else 0)
      from_b = excess - from_a
      a_start += _heads(from_a, draw)
      b_start += _heads(from_b, draw)
      a_length -= from_a
      b_length -= from_b
    return a_start, b_start, a_length, b_length, label


def _heads(tosses: int, draw: Sequence) -> int:
  """The number of heads in `tosses` fair tosses: the tokens to cut from the front."""
  heads = 0
  while tosses > 0:
    heads += (draw.bits() & ((1 << min(tosses, 64)) - 1)).bit_count()
    tosses -= 64
  return heads


class PairsOfBlock:
  """The rows of documents first to last - 1. A lane holds a document that is being read; all lanes
  make a row in each step. The longest documents come first, so that few lanes are idle at the end.
  """

  def __init__(self, rules: Pairing, first: int, last: int, seed: int, pass_: int):
    self.rules, self.first = rules, first
    bounds = rules.document_starts[first : last + 1]
    self.begins, self.ends = bounds[:-1], bounds[1:]
    self.draws = Sequences(np.arange(first, last), seed, pass_)
    everyone = np.arange(last - first)
    self.targets = np.full(last - first, rules.room)
    short = np.flatnonzero(self.draws.chance(everyone, rules.short))
    self.targets[short] = 2 + self.draws.below(short, rules.room - 1)
    # The sentence after the chunk that begins at each sentence of the block. Most documents have
    # one target: then the wanted places ascend, which is twice as fast.
    starts = rules.sentence_starts[bounds[0] : bounds[-1] + 1]
    after = np.searchsorted(starts, starts[:-1] + rules.room)
    sizes = np.diff(bounds)
    short = np.flatnonzero(self.targets < rules.room)
    of_short = np.flatnonzero(np.repeat(self.targets < rules.room, sizes))
    reach = starts[of_short] + np.repeat(self.targets[short], sizes[short])
    after[of_short] = np.searchsorted(starts, reach)
    after = np.maximum(after, np.arange(len(after)) + 1) + bounds[0]
    self.chunk_ends = np.minimum(after, np.repeat(self.ends, sizes))
    self.made: list[tuple[np.ndarray, ...]] = []

  def rows(self) -> np.ndarray:
    """SPANS [N], in the order of the documents."""
    queue = np.argsort(self.begins - self.ends, kind="stable")
    queue = queue[: np.count_nonzero(self.ends > self.begins)]
    lanes, queue = queue[:_LANES].copy(), queue[_LANES:]  # documents of the block
    at = self.begins[lanes]  # the next sentence of each lane
    count = np.zeros(len(self.begins), np.int64)  # rows of each document
    while len(lanes) >= _FEW:
      at = self._step(lanes, at, count)
      idle = np.flatnonzero(at == self.ends[lanes])
      fresh, queue = queue[: len(idle)], queue[len(idle) :]
      lanes[idle[: len(fresh)]], at[idle[: len(fresh)]] = fresh, self.begins[fresh]
      if len(idle) > len(fresh):
        busy = at < self.ends[lanes]
        lanes, at = lanes[busy], at[busy]
    for lane, begin in zip([*lanes, *queue], [*at, *self.begins[queue]], strict=True):
      self._alone(int(lane), int(begin), count)
    return self._in_order(count)

  def _alone(self, lane: int, begin: int, count: np.ndarray) -> None:
    """The rest of one document, by the loop."""
    draw = Sequence.at(int(self.draws.state[lane]))
    end, target = int(self.ends[lane]), int(self.targets[lane])
    rows = np.array(self.rules.rest(self.first + lane, begin, end, target, draw), SPANS)
    ranks = count[lane] + np.arange(len(rows))
    self.made.append((np.full(len(rows), lane), ranks, *(rows[name] for name in _FIELDS)))
    count[lane] += len(rows)

  def _in_order(self, count: np.ndarray) -> np.ndarray:
    rows = np.empty(count.sum(), SPANS)
    places = np.cumsum(count) - count
    for lane, rank, *fields in self.made:
      place = places[lane] + rank
      for name, values in zip(_FIELDS, fields, strict=True):
        rows[name][place] = values
    return rows

  def _step(self, lanes: np.ndarray, at: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Makes the next row of each lane. lanes, at int [L]. Returns the sentences after them [L]."""
    rules, draws, kind = self.rules, self.draws, self.rules.next
    end = self.chunk_ends[at - self.begins[0]]
    more = end - at - 1  # sentences after the first one
    several = np.flatnonzero(more)
    a_end = at + 1
    a_end[several] += draws.below(lanes[several], more[several])
    starts = rules.sentence_starts
    a_start, b_start, b_stop = starts[at], starts[a_end], starts[end]
    a_length, b_length = b_start - a_start, b_stop - b_start
    label = np.zeros(len(lanes), np.int32)
    if kind != "none":
      label[:] = more == 0
      label[several] = draws.bits(lanes[several]) < np.uint64(_HALF)
      drawn = np.flatnonzero(label if kind == "random" else more == 0)
      if kind == "swapped":
        swap = several[label[several] > 0]
        a_start[swap], b_start[swap] = b_start[swap], a_start[swap]
        a_length[swap], b_length[swap] = b_length[swap], a_length[swap]
      end[drawn] = a_end[drawn]  # the unused sentences are put back
      b_start[drawn], b_length[drawn] = self._elsewhere(
        lanes[drawn], self.targets[lanes[drawn]] - a_length[drawn]
      )
    self._truncate(lanes, a_start, b_start, a_length, b_length)
    kept = (a_length > 0) & ((b_length > 0) | (kind == "none"))
    fields = (a_start, b_start, a_length.astype(np.int32), b_length.astype(np.int32), label)
    rows = (lanes.astype(np.int32), count[lanes].astype(np.int32), *fields)
    self.made.append(rows if kept.all() else tuple(x[kept] for x in rows))
    count[lanes] += kept
    return end

  def _elsewhere(self, lanes: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts and lengths int64 [L] of spans of other documents, until `targets` are reached."""
    rules, draws = self.rules, self.draws
    readable = rules.readable
    source = readable[draws.below(lanes, len(readable))]
    for _ in range(_TRIES - 1):
      own = np.flatnonzero(source == lanes + self.first)
      if not len(own):
        break
      source[own] = readable[draws.below(lanes[own], len(readable))]
    first, last = rules.document_starts[source], rules.document_starts[source + 1]
    begin = first + draws.below(lanes, last - first)
    start = rules.sentence_starts[begin]
    end = _first_reaching(rules.sentence_starts, start + targets, begin + 1, last)
    return start, rules.sentence_starts[end] - start

  def _truncate(self, lanes, a_start, b_start, a_length, b_length) -> None:
    """As `Pairing.truncated`, in place; int64 [L] each."""
    excess = a_length + b_length - self.rules.room
    long = np.flatnonzero(excess > 0)
    excess, difference = excess[long], a_length[long] - b_length[long]
    longer = np.minimum(excess, np.abs(difference))
    from_a = (excess - longer) // 2 + longer * (difference > 0)
    for start, length, cut in (
      (a_start, a_length, from_a),
      (b_start, b_length, excess - from_a),
    ):
      length[long] -= cut
      start[long] += self._heads(lanes[long], cut)

  def _heads(self, lanes: np.ndarray, tosses: np.ndarray) -> np.ndarray:
    """int64 [L]: as `_heads`, in each lane."""
    heads, tossing = np.zeros(len(lanes), np.int64), np.flatnonzero(tosses)
    while len(tossing):
      unused = np.maximum(64 - tosses[tossing], 0).astype(np.uint64)
      bits = self.draws.bits(lanes[tossing]) << unused
      heads[tossing] += np.bitwise_count(bits)
      tosses = tosses - 64
      tossing = tossing[tosses[tossing] > 0]
    return heads


def _first_reaching(
  starts: np.ndarray, wanted: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
  """int64 [L]: the first index in [low, high) with starts[index] >= wanted, else `high`. Steps
  double from `low` on, because it is near."""
  step = np.ones_like(low)
  far, going = low.copy(), np.arange(len(low))  # all before `low` are below `wanted`
  while len(going):
    far[going] = np.minimum(low[going] + step[going] - 1, high[going])
    going = going[(far[going] < high[going]) & (starts[far[going]] < wanted[going])]
    low[going] = far[going] + 1
    step[going] *= 2
  while (low < far).any():
    middle = (low + far) >> 1
    below = (starts[middle] < wanted) & (low < far)
    low, far = np.where(below, middle + 1, low), np.where(below, far, middle)
  return far
