"""Batches from stored tokens: rows, their order and their corruption. Host only, numpy only.

    batches = Batches(store, corpus, objectives, vocab, seed=0, global_batch=256)
    for batch in iterate(batches, start_step, stop_step, corpus.workers): ...

A batch is a pure function of its step, so the position of the data in a checkpoint is the step.
Position g = step * global_batch + slot belongs to epoch e and row r. An epoch is one pass over the
corpus, pass e % passes of the segmentation, in a separate order. Every objective's `corrupt` gets
the rows with the draws of (seed, e, r).

Ordered segments (`PackedDocuments(ordered=True)`) are read in lanes instead: the corpus is cut into
`global_batch` equal stretches, and slot b of every batch continues stretch b. So are the rows of an
evaluation.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
from absl import flags

from plm_jax.data.cooccurrences import Cooccurrences
from plm_jax.data.draws import Draws, permute
from plm_jax.data.kept_words import KeptWords
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.packing import DocSentences, FullSentences, SentencePair
from plm_jax.data.processes import cores
from plm_jax.data.running_text import RunningText
from plm_jax.data.segments import SegmentPair
from plm_jax.data.source_target import SourceTarget
from plm_jax.data.store import TokenStore
from plm_jax.data.tables import PassTables
from plm_jax.data.texts import check_shares, named_texts
from plm_jax.data.tokenizers import TokenizerConfig, WordPiece
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

_EVALUATION_SEED = 0  # fixed, so that runs with different seeds are evaluated on the same masks
_ORDER = 1  # salt for the order of an epoch
_EIGHTH = 8  # of a pass is read when the table of the next one is begun: short runs do not need it


Segments = (
  SegmentPair
  | SentencePair
  | FullSentences
  | DocSentences
  | RunningText
  | PackedDocuments
  | SourceTarget
  | KeptWords
  | Cooccurrences
)


@dataclass(frozen=True, kw_only=True)
class Corpus:
  """The text and its division into rows.

  source: "tfds:NAME", or a text file, `.jsonl`, `.gz` or `.zst` of either, `.parquet`, or a folder
    of them; or several texts with commas between them, "A,B" or "NAME=A,NAME=B".
  weights: the share of the rows of each of several texts; they need not sum to 1.
  alpha: without weights, a text of n tokens has a share in proportion to n^alpha; 1 is the natural
    share, 0.3 is XLM-R's, 0 makes all equal.
  length: tokens per row, special tokens included.
  held_out: share of the documents that is kept for evaluation.
  passes: number of different segmentations before they repeat (BERT's dupe_factor).
  workers: Grain worker processes; 0 is a prefetching thread in this process.
  lines: keep line breaks and indentation (code, verse); otherwise white space is single spaces, in
    training and in every later text.
  """

  source: str = "tfds:installed_text"
  weights: tuple[float, ...] = ()
  alpha: float = 1.0
  tokenizer: TokenizerConfig = WordPiece(vocab_size=4096)  # noqa: RUF009  frozen
  segments: Segments = SegmentPair()  # noqa: RUF009  frozen
  length: int = 128
  held_out: float = 0.02
  passes: int = 10
  workers: int = 0
  lines: bool = False

  def __post_init__(self):
    check_shares(len(self.texts), self.weights, self.alpha, self.source)
    if len(self.texts) > 1 and ordered(self.segments):
      raise UserError(
        f"data.source={self.source} has several texts, and data.segments.ordered reads one from "
        "beginning to end; set data.segments.ordered=false, or give one text"
      )
    kept = self.tokenizer.keeps_lines or (self.tokenizer.kind == "unigram" and self.tokenizer.path)
    if self.lines and not kept:
      raise UserError(
        f"data.lines=true has no effect with a {type(self.tokenizer).__name__} that is trained "
        "here, which reads all white space alike; set data.tokenizer to BytePairs."
      )
    if self.length < 8:
      raise UserError(f"data.length is {self.length}; a row needs at least 8 tokens.")
    if self.length >= 2**15:  # columns are counted in 16 bits
      raise UserError(f"data.length is {self.length}; a row has at most {2**15 - 1} tokens.")
    if not 0 < self.held_out <= 0.5:
      raise UserError(
        f"data.held_out is {self.held_out}; it is the share of documents kept for evaluation and "
        "must be above 0 and at most 0.5."
      )
    if self.passes < 1:
      raise UserError(f"data.passes is {self.passes}; at least 1 pass over the corpus is needed.")
    if self.workers < 0:
      raise UserError(f"data.workers is {self.workers}; it counts processes, and 0 is a thread.")

  @property
  def texts(self) -> dict[str, str]:
    """Name -> source; a single text has the name ""."""
    return named_texts(self.source)

  def alone(self, source: str, **fields) -> Self:
    """The corpus with one of its texts, and other values of further fields."""
    return replace(self, source=source, weights=(), alpha=1.0, **fields)


@dataclass
class Batches:
  """`batches(step)`: the rows of this process in the global batch of that step.

  Every batch has input_ids, segment_ids int32 [B, T], length, pair_label int32 [B],
  row_weight float32 [B] (0: the row only fills an evaluation batch), and the objectives' arrays.
  Ordered segments add `begins` bool [B]: the row does not continue the slot's previous row.
  Every process takes a contiguous slice: any number of processes makes the same global batch.
  Picklable; a copy in a worker process opens the same tables from disk.
  """

  store: TokenStore
  corpus: Corpus
  objectives: tuple
  vocab: Vocab
  seed: int
  global_batch: int
  process_index: int = 0
  process_count: int = 1
  _tables: PassTables = field(init=False, repr=False)

  def __post_init__(self):
    if self.global_batch < 1 or self.global_batch % self.process_count:
      raise UserError(
        f"global_batch is {self.global_batch}; it must be a positive multiple of the number of "
        f"processes, {self.process_count}."
      )
    self._tables = PassTables(self.store, self.corpus.segments, self.corpus.length)

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """The training batch of a step, arrays [B_local, ...]."""
    self.check()
    if ordered(self.corpus.segments):
      return self._lanes(int(step), self.positions(0))
    return self.at(self.positions(step))

  def positions(self, step: int) -> np.ndarray:
    """int [B_local]: the positions of this process's rows of a step."""
    count = self.global_batch // self.process_count
    return int(step) * self.global_batch + self.process_index * count + np.arange(count)

  def at(self, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The rows at ascending positions of the endless sequence of epochs."""
    parts = []
    while len(positions):
      epoch, first = self._epoch_at(int(positions[0]))
      table = self._tables.of(self.seed, epoch % self.corpus.passes)
      index = positions[positions < first + len(table)] - first
      rows = permute(index, len(table), self.seed, _ORDER, epoch)
      parts.append((table[rows], rows, np.full(len(rows), epoch)))
      positions = positions[len(rows) :]
      if len(index) and index[-1] >= len(table) // _EIGHTH and epoch + 1 < self.corpus.passes:
        self._tables.begin(self.seed, epoch + 1)
    spans, rows, epochs = (np.concatenate(part) for part in zip(*parts, strict=True))
    weight = np.ones(len(rows), np.float32)
    return self._batch(spans, Draws(self.seed, epochs, rows), weight)

  def _lanes(self, step: int, slots: np.ndarray) -> dict[str, np.ndarray]:
    """The next row of every slot's stretch. The last rows of the corpus, fewer than a batch, are
    left out (pytorch/examples word_language_model, `batchify`)."""
    table = self._tables.of(self.seed, 0)
    steps = len(table) // self.global_batch
    epoch, at = divmod(step, steps)
    rows = slots * steps + at
    draws = Draws(self.seed, np.full(len(rows), epoch), rows)
    batch = self._batch(table[rows], draws, np.ones(len(rows), np.float32))
    return batch | {"begins": batch["begins"] | (at == 0)}

  def check(self, least: int | None = None) -> None:
    """Errors: `UserError` if one pass over the corpus has fewer rows than `least` (None: than one
    batch), or an objective does not fit the vocabulary."""
    for objective in self.objectives:
      if hasattr(objective, "check"):
        objective.check(self.vocab)
    rows = len(self._tables.of(self.seed, 0))
    if rows < (self.global_batch if least is None else least):
      raise UserError(
        f"the corpus makes {rows} rows of up to {self.corpus.length} tokens, fewer than one global "
        f"batch of {self.global_batch}: give more text, a smaller global_batch or a shorter length."
      )

  def rows(self) -> int:
    """The number of rows of the first pass."""
    return len(self._tables.of(self.seed, 0))

  def fill(self) -> float:
    """The share of positions that are not padding, over the first pass."""
    table = self._tables.of(self.seed, 0)
    return float(self.corpus.segments.tokens(table).mean() / self.corpus.length)

  def evaluation(self, max_rows: int | None = None) -> list[dict[str, np.ndarray]]:
    """All rows in order with fixed masks, as batches of the training shape.

    With `max_rows`, at most that many rows are taken, at equal distances. The last batch is filled
    with rows of row_weight 0, so that every row counts exactly once. Ordered segments are read in
    lanes, as in training, and `max_rows` takes the first rows of every lane.
    """
    table = self._tables.of(_EVALUATION_SEED, 0)
    total = len(table) if max_rows is None else min(max_rows, len(table))
    if not total:
      raise UserError(
        f"the {len(self.store.document_starts) - 1} held-out documents make no row of "
        f"{self.corpus.length} tokens: give more text or a larger held_out."
      )
    count, batches = self.global_batch // self.process_count, []
    for first in range(0, total, self.global_batch):
      slot = first + self.process_index * count + np.arange(count)
      if is_ordered := ordered(self.corpus.segments):
        # Row k of the evaluation is row k // global_batch of lane k % global_batch.
        rows = slot % self.global_batch * -(-len(table) // self.global_batch)
        rows += slot // self.global_batch
        weight = (rows < len(table)) & ((slot < total) | (total == len(table)))
        rows = np.minimum(rows, len(table) - 1)
      else:
        weight = slot < total
        rows = np.minimum(slot, total - 1) * len(table) // total
      draws = Draws(_EVALUATION_SEED, 0, rows)
      batch = self._batch(table[rows], draws, weight.astype(np.float32))
      if is_ordered:
        batch["begins"] |= first == 0
      batches.append(batch)
    return batches

  def _batch(self, spans: np.ndarray, draws: Draws, weight: np.ndarray) -> dict[str, np.ndarray]:
    batch = self.corpus.segments.read(self.store, spans, self.corpus.length, self.vocab)
    batch["row_weight"] = weight
    for objective in self.objectives:
      batch = objective.corrupt(batch, draws, self.vocab)
    return batch

  def _epoch_at(self, position: int) -> tuple[int, int]:
    """The epoch of a position, and the position at which that epoch begins.

    Segmentations differ in their number of rows; they are made only when a position reaches them.
    """
    first = 0
    for epoch in range(self.corpus.passes):
      size = len(self._tables.of(self.seed, epoch))
      if position < first + size:
        return epoch, first
      first += size
    cycles, rest = divmod(position, first)
    epoch, begin = self._epoch_at(rest)
    return cycles * self.corpus.passes + epoch, cycles * first + begin

  def close(self) -> None:
    """Ends the table of the next pass, if it is being made; it is made again where it is needed."""
    self._tables.close()


def ordered(segments: Segments) -> bool:
  """Whether a slot's rows continue each other from batch to batch."""
  return getattr(segments, "ordered", False)


class PrefetchedBatches:
  """Batches in the order of their steps, prefetched. waited: seconds that the consumer waited."""

  def __init__(self, dataset, release: Callable[[], None] = lambda: None):
    """release: called by `close`."""
    self._iterator, self._release = iter(dataset), release
    self.waited = 0.0

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    start = time.perf_counter()
    try:
      return next(self._iterator)
    finally:
      self.waited += time.perf_counter() - start

  def close(self) -> None:
    """Stops the prefetching thread or processes; safe to call twice."""
    if hasattr(self._iterator, "close"):
      self._iterator.close()
    self._release()


class StepBatches(Protocol):
  """Batches by their step: `Batches`, or those of a mixture."""

  def __call__(self, step: int) -> dict[str, np.ndarray]: ...
  def check(self) -> None: ...


def iterate(
  batches: StepBatches, start_step: int, stop_step: int, workers: int = 0
) -> PrefetchedBatches:
  """The batches of steps start_step to stop_step - 1, prefetched by a thread or by processes."""
  import grain

  batches.check()
  most = max(16, 4 * cores())
  if workers > most:
    raise UserError(f"data.workers={workers} was given; this machine can run {most} at most")
  dataset = grain.MapDataset.range(start_step, stop_step).map(batches)
  ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  dataset = dataset.to_iter_dataset(ahead)
  if workers:
    # Grain reads absl's flags when it starts processes; a notebook has not parsed any.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
    )
  return PrefetchedBatches(dataset, getattr(batches, "close", lambda: None))
