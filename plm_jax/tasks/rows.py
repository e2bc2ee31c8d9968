"""Rows of examples with special tokens, and their batches: a function of the step in training, each
row once in an evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.data.tokenizers import Tokenizer
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.tasks.packed_rows import packed, placed

_ORDER = 1  # salt for the order of an epoch, as in data.pipeline
_BATCHES = 4  # salt for the order of the batches of a pool
_POOL = 32  # batches whose rows are sorted by length together
_SHORTEST = 16  # tokens of the shortest rows in a batch by length
_MANY = 32  # batches that are worth the compilation of more shapes


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedRows:
  """The rows of all examples.

  tokens: name -> int32 [N, T], padded, cut in batches of shorter rows: input_ids, segment_ids, and
  decoder_input_ids (the decoder's start token, then the source) if the model has a decoder. values:
  name -> [N, ...]: length, the targets, and decoder_length, the position after the source's end
  token, where classes are read (transformers' T5 and BART). example: int32 [N], the example of a
  row; an example may have several rows. text, piece: int32 [N, T], the text of the example and the
  token of that text at each position; -1 at special tokens. together: this many consecutive rows
  are always in the same batch. further: makes further arrays of a batch.
  """

  tokens: dict[str, np.ndarray]
  values: dict[str, np.ndarray]
  example: np.ndarray
  text: np.ndarray
  piece: np.ndarray
  together: int = 1
  further: Callable[[dict], dict] | None = None

  def __len__(self) -> int:
    return len(self.example)

  def batch(self, rows: np.ndarray, weight: np.ndarray, width: int | None = None) -> dict:
    """The rows numbered `rows`, at most `width` tokens of each. weight: float32, 0 for rows that
    only fill up the batch."""
    tokens = {name: values[rows, :width] for name, values in self.tokens.items()}
    values = {name: values[rows] for name, values in self.values.items()}
    batch = tokens | values | {"row_weight": weight}
    return batch if self.further is None else batch | self.further(batch)

  def by_length(self, size: int, fits: bool = False) -> Iterator[tuple[np.ndarray, dict]]:
    """(rows, batch) of `size` rows: all rows by length in few shapes, for predictions. `rows` are
    those that count, the first of the batch. Many batches have more shapes and less padding.
    fits: as in `Trained`."""
    length = self.longest
    finer = len(self) >= _MANY * size and not fits
    if fits:
      groups = len(self) // self.together
      size = min(size, self.together << (groups - 1).bit_length())
    order = np.argsort(length.reshape(-1, self.together).max(axis=1), kind="stable")
    order = (order[:, None] * self.together + np.arange(self.together)).reshape(-1)
    for first in range(0, len(order), size):
      rows = order[first : first + size]
      width = width_of(length[rows].max(), self.width, finer)
      filled = np.append(rows, np.full(size - len(rows), rows[-1]))
      weight = (np.arange(size) < len(rows)).astype(np.float32)
      yield rows, self.batch(filled, weight, width)

  @property
  def width(self) -> int:
    """Tokens of a row, padding included, in the encoder or the decoder."""
    return max(array.shape[1] for array in self.tokens.values())

  @property
  def longest(self) -> np.ndarray:
    """int [N]: the real tokens of each row, in the encoder or the decoder."""
    return np.maximum(self.values["length"], self.values.get("decoder_length", 0))


def width_of(length: int, longest: int, finer: bool = False) -> int:
  """The shape for rows of up to `length` tokens, at most `longest`: 16, 32, 48, 64, 96, 128, 192,
  ...; finer: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ..."""
  width = _SHORTEST
  while width < length:
    width *= 2
  step = width // 8 if finer else max(width // 4, _SHORTEST)
  return min(max(-(-length // step) * step, _SHORTEST), longest)


@dataclasses.dataclass(frozen=True)
class LabelledBatches:
  """`batches(step)`: this process's rows of the global batch of that step.

  `EncodedRows` describes the arrays, [B, ...]; row_weight float32 [B] is 0 for rows that only fill
  up the batch. Every epoch is one pass over the rows in a new order. A batch may span two epochs,
  so that no row is skipped.

  by_length: a training batch has rows of similar length, in few shapes: the rows of up to `_POOL`
    batches are sorted by length, and these batches shuffled.
  packed: a training batch has rows of all lengths, which share rows of the model
    (packed_rows.py). The rows of a pool are sorted by length, and of each `_POOL` neighbours every
    batch gets one. So nearly all batches need the same number of packed rows, and have one shape.
  devices: of a process. Packed rows are divided between them.
  """

  rows: EncodedRows
  seed: int
  global_batch: int
  process_index: int = 0
  process_count: int = 1
  by_length: bool = False
  packed: bool = False
  devices: int = 1

  def __post_init__(self):
    if self.global_batch < 1 or self.global_batch % self.process_count:
      raise UserError(
        f"global_batch is {self.global_batch}; it must be a positive multiple of the number of "
        f"processes, {self.process_count}."
      )
    if self._slots_count() % self.rows.together:
      raise UserError(
        f"global_batch={self.global_batch} must be a multiple of the {self.rows.together} rows of "
        "an example in every process."
      )

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """The training batch of a step, arrays [B_local, ...]."""
    slots = self._slots()
    if self.packed:
      epochs, rows = self._alike(int(step))
      batch = self._batch(epochs[slots], rows[slots], None)
      count = max(self._packed_rows, self._needed(rows))
      return packed(batch, self._packed_width, count, self.process_index * count)
    if self.by_length:
      all_epochs, all_rows = self._sorted(int(step))
      epochs, rows = all_epochs[slots], all_rows[slots]
      width = width_of(self.rows.longest[all_rows].max(), self.rows.width)
    else:
      epochs, rows = self._order(int(step) * self.global_batch + slots)
      width = None
    return self._batch(epochs, rows, width)

  def _batch(self, epochs: np.ndarray, rows: np.ndarray, width: int | None) -> dict:
    """The batch of these rows. epochs: of each row, for subclasses that change them."""
    del epochs
    return self.rows.batch(rows, np.ones(len(rows), np.float32), width)

  def _order(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The epoch and the row at each position of the training."""
    together = self.rows.together
    size = len(self.rows) // together
    position, inside = np.divmod(positions, together)
    epochs, index = np.divmod(position, size)
    groups = np.empty_like(index)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      groups[chosen] = permute(index[chosen], size, self.seed, _ORDER, int(epoch))
    return epochs, groups * together + inside

  def _sorted(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_order`, of the whole global batch of a step, with rows of similar length."""
    pool, place, epochs, rows, order = self._pool(step)
    batches = order.reshape(self._batches, -1)
    chosen = batches[permute(np.array([place]), self._batches, self.seed, _BATCHES, pool)[0]]
    return self._of_groups(epochs, rows, chosen)

  def _alike(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_order`, of the whole global batch of a step, with rows of all lengths in every batch."""
    pool, place, epochs, rows, order = self._pool(step)
    layers = order.reshape(-1, self._batches)
    column = [
      permute(np.array([place]), self._batches, self.seed, _BATCHES, pool, layer)[0]
      for layer in range(len(layers))
    ]
    chosen = layers[np.arange(len(layers)), column]
    mixed = permute(np.arange(len(chosen)), len(chosen), self.seed, _BATCHES, step)
    return self._of_groups(epochs, rows, chosen[mixed])

  def _pool(self, step: int):
    """The pool of a step, the place of the step in it, the epochs and rows of the pool, and the
    order of its groups by length."""
    pool, place = divmod(step, self._batches)
    size = self._batches * self.global_batch
    epochs, rows = self._order(pool * size + np.arange(size))
    length = self.rows.longest[rows].reshape(-1, self.rows.together).max(axis=1)
    return pool, place, epochs, rows, np.argsort(length, kind="stable")

  def _of_groups(self, epochs: np.ndarray, rows: np.ndarray, groups: np.ndarray):
    at = (groups[:, None] * self.rows.together + np.arange(self.rows.together)).reshape(-1)
    return epochs[at], rows[at]

  @property
  def _batches(self) -> int:
    """Of a pool."""
    return min(max(len(self.rows) // self.global_batch, 1), _POOL)

  def _needed(self, rows: np.ndarray) -> int:
    """The packed rows of a process for these rows of all processes, as many for each device."""
    lengths = self.rows.values["length"][rows].reshape(self.process_count, -1)
    most = max(placed(part, self._packed_width)[2] for part in lengths)
    return -(-most // self.devices) * self.devices

  @functools.cached_property
  def _packed_width(self) -> int:
    """Tokens of a packed row: the longest example fits."""
    return width_of(self.rows.longest.max(), self.rows.width)

  @functools.cached_property
  def _packed_rows(self) -> int:
    """The packed rows that are enough for the first batches, and nearly always."""
    return max(self._needed(self._alike(step)[1]) for step in range(self._batches))

  def check(self) -> None:
    """A `UserError` if there is nothing to train on."""
    if not len(self.rows):
      raise UserError("there is no labelled example to train on.")

  def evaluation(self) -> list[dict[str, np.ndarray]]:
    """Every row in order, the last batch filled up with rows of row_weight 0."""
    size = len(self.rows)
    batches = []
    for first in range(0, size, self.global_batch):
      slots = first + self._slots()
      weight = (slots < size).astype(np.float32)
      batches.append(self.rows.batch(np.minimum(slots, size - 1), weight))
    return batches

  def _slots_count(self) -> int:
    return self.global_batch // self.process_count

  def _slots(self) -> np.ndarray:
    return self.process_index * self._slots_count() + np.arange(self._slots_count())


# --- special tokens -------------------------------------------------------------------------------


def frame_of(config: Model, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
  """The special tokens before, between and after the texts of a row. Errors: `UserError` if the
  model has no frame, or the tokenizer lacks one of the tokens."""
  if not hasattr(config, "text_frame"):
    raise UserError(
      f"a model of type {type(config).__name__} cannot be fine-tuned: its configuration has no "
      "text_frame (plm_jax/models/model.py lists what fine-tuning needs)"
    )
  before, after = config.text_frame(tokenizer.vocab)
  # GPT-1 has no special tokens; its paper's delimiter is $ (Radford et al. 2018, section 3.3).
  between = config.separator(tokenizer.vocab) or tokenizer.encode("$").tolist()
  return before, between, after


def framed_rows(
  ids: Sequence[tuple[np.ndarray, ...]], config: Model, tokenizer: Tokenizer, length: int
) -> EncodedRows:
  """One row for each example, cut to fit, the longest text first: "[CLS] a [SEP] b [SEP]" (BERT),
  "<s> a </s></s> b </s>" (RoBERTa), "a </s> b </s>" (T5). Segment ids are 0 up to the separator,
  and 1 after it."""
  frame = frame_of(config, tokenizer)
  rows = [_framed(texts, frame, length) for texts in ids]
  arrays = {"input_ids": tokenizer.vocab.filler, "segment_ids": 0, "text": -1, "piece": -1}
  arrays = {name: np.full((len(rows), length), fill, np.int32) for name, fill in arrays.items()}
  for number, row in enumerate(rows):
    for array, column in zip(arrays.values(), row, strict=True):
      array[number, : len(column)] = column
  tokens = {name: arrays[name] for name in ("input_ids", "segment_ids")}
  lengths = np.array([len(row[0]) for row in rows], np.int32)
  values = {"length": lengths}
  if getattr(config, "has_decoder", False):
    vocab, ids_NT = tokenizer.vocab, tokens["input_ids"]
    tokens["decoder_input_ids"] = _shifted(ids_NT, lengths, config, vocab)
    values["decoder_length"] = _after_the_end(ids_NT, lengths, vocab)
  example = np.arange(len(rows), dtype=np.int32)
  return EncodedRows(tokens, values, example, arrays["text"], arrays["piece"])


def _framed(texts: tuple[np.ndarray, ...], frame, length: int) -> list[np.ndarray]:
  """ids, segment ids, texts and pieces, int32 [tokens] each."""
  before, between, after = frame
  room = length - len(before) - len(after) - len(between) * (len(texts) - 1)
  last = min(len(texts) - 1, 1)
  parts = [(before, 0, -1)]
  for number, size in enumerate(cut_sizes([len(text) for text in texts], room)):
    parts += [(between, min(number - 1, 1), -1)] if number else []
    parts += [(texts[number][:size], min(number, 1), number)]
  parts += [(after, last, -1)]
  sizes = [len(ids) for ids, _, _ in parts]
  pieces = [
    np.arange(size) if text >= 0 else np.full(size, -1) for size, (_, _, text) in zip(sizes, parts)
  ]
  ids = np.concatenate([np.asarray(ids, np.int32) for ids, _, _ in parts])
  segment, text = (np.repeat([part[place] for part in parts], sizes) for place in (1, 2))
  return [ids, segment, text, np.concatenate(pieces)]


def cut_sizes(sizes: list[int], room: int) -> list[int]:
  """The tokens that are kept of each text, `room` together: the longest lose theirs first."""
  kept = list(sizes)
  shortest_first = sorted(range(len(sizes)), key=lambda i: (sizes[i], -i))
  for rank, i in enumerate(shortest_first):
    kept[i] = min(sizes[i], max(room, 0) // (len(sizes) - rank))
    room -= kept[i]
  return kept


def _shifted(ids_NT: np.ndarray, lengths: np.ndarray, config: Model, vocab: Vocab) -> np.ndarray:
  """The decoder's start token, then the source without its last token."""
  shifted = np.full_like(ids_NT, vocab.filler)
  shifted[:, 0] = config.decoder_start(vocab)[0]
  inside = np.arange(1, ids_NT.shape[1]) < lengths[:, None]
  shifted[:, 1:] = np.where(inside, ids_NT[:, :-1], vocab.filler)
  return shifted


def _after_the_end(ids_NT: np.ndarray, lengths: np.ndarray, vocab: Vocab) -> np.ndarray:
  """The position after the last end token of each row."""
  real = np.arange(ids_NT.shape[1]) < lengths[:, None]
  is_end = (ids_NT == vocab.end[0]) & real
  last = ids_NT.shape[1] - 1 - is_end[:, ::-1].argmax(axis=1)
  return (last + 1).astype(np.int32)
