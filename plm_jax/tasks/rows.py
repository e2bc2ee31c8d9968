"""Batches of labelled examples: a function of the step in training, each row once in a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.models.model import Model
from plm_jax.tasks.labelled_text import Examples

_ORDER = 1  # salt for the order of an epoch, as in data.pipeline


class EncodedRows(NamedTuple):
  """The input of all examples, and of the decoder if the model has one.

  input_ids: int32 [N, T]. lengths: int32 [N]. decoder_input_ids: int32 [N, T], the decoder's
  start token, then the source. decoder_lengths: int32 [N], the position after the source's end
  token, where the classes are read (transformers' T5 and BART).
  """

  input_ids: np.ndarray
  lengths: np.ndarray
  decoder_input_ids: np.ndarray | None = None
  decoder_lengths: np.ndarray | None = None


@dataclass(frozen=True)
class LabelledBatches:
  """`batches(step)`: this process's rows of the global batch of that step.

  input_ids, segment_ids int32 [B, T]: texts with special tokens, padded; length, label int32 [B];
  row_weight float32 [B] (0: the row only fills up the batch). If the model has a decoder, also
  decoder_input_ids int32 [B, T] and decoder_length int32 [B]. Every epoch is one pass over the
  examples in a new order. A batch may span two epochs, so that no example is skipped.
  """

  rows: EncodedRows
  labels: np.ndarray  # int32 [N]
  seed: int
  global_batch: int
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if self.global_batch < 1 or self.global_batch % self.process_count:
      raise UserError(
        f"global_batch is {self.global_batch}; it must be a positive multiple of the number of "
        f"processes, {self.process_count}."
      )

  @classmethod
  def of(
    cls, examples: Examples, vocab: Vocab, length: int, model: Model, **settings
  ) -> LabelledBatches:
    """model: adds its special tokens. Errors: `UserError` if the tokenizer lacks one of them, for
    the begin or the end of a text."""
    return cls(framed_rows(examples, vocab, length, model), examples.label, **settings)

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """The training batch of a step, arrays [B_local, ...]."""
    size = len(self.labels)
    position = int(step) * self.global_batch + self._slots()
    epochs, index = np.divmod(position, size)
    rows = np.empty_like(index)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      rows[chosen] = permute(index[chosen], size, self.seed, _ORDER, int(epoch))
    return self._batch(rows, np.ones(len(rows), np.float32))

  def check(self) -> None:
    """A `UserError` if there is nothing to train on."""
    if not len(self.labels):
      raise UserError("there is no labelled example to train on.")

  def evaluation(self) -> list[dict[str, np.ndarray]]:
    """Every example in order, the last batch filled up with rows of row_weight 0."""
    size = len(self.labels)
    batches = []
    for first in range(0, size, self.global_batch):
      slots = first + self._slots()
      batches.append(self._batch(np.minimum(slots, size - 1), (slots < size).astype(np.float32)))
    return batches

  def _slots(self) -> np.ndarray:
    count = self.global_batch // self.process_count
    return self.process_index * count + np.arange(count)

  def _batch(self, rows: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    ids = self.rows.input_ids[rows]
    batch = {
      "input_ids": ids,
      "segment_ids": np.zeros_like(ids),
      "length": self.rows.lengths[rows],
      "label": self.labels[rows],
      "row_weight": weight,
    }
    if self.rows.decoder_input_ids is None:
      return batch
    return batch | {
      "decoder_input_ids": self.rows.decoder_input_ids[rows],
      "decoder_length": self.rows.decoder_lengths[rows],
    }


def framed_rows(examples: Examples, vocab: Vocab, length: int, model: Model) -> EncodedRows:
  """The texts with special tokens: "[CLS] text [SEP]" (BERT), "text </s>" (T5), cut to fit."""
  if not hasattr(model, "text_frame"):
    raise UserError(
      f"a model of type {type(model).__name__} cannot be fine-tuned: its configuration has no "
      "text_frame (plm_jax/models/model.py lists what fine-tuning needs)"
    )
  before, after = model.text_frame(vocab)
  room, pad = length - len(before) - len(after), vocab.filler
  sources = [[*before, *tokens[:room], *after] for tokens in examples.ids]
  if not getattr(model, "has_decoder", False):
    return EncodedRows(*_padded(sources, pad, length))
  start, end = model.decoder_start(vocab)[0], vocab.end[0]
  decoder, _ = _padded([[start, *source[:-1]] for source in sources], pad, length)
  ends = [len(source) - source[::-1].index(end) for source in sources]
  return EncodedRows(*_padded(sources, pad, length), decoder, np.array(ends, np.int32))


def _padded(rows: list[list[int]], pad: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """int32 [N, T] and the lengths int32 [N]."""
  ids = np.full((len(rows), length), pad, np.int32)
  for row, tokens in zip(ids, rows):
    row[: len(tokens)] = tokens
  return ids, np.array([len(tokens) for tokens in rows], np.int32)
