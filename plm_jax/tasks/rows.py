"""Labelled examples as batches: for training a function of the step, for a test each row once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plm_jax.data.draws import permute
from plm_jax.data.segments import filler, frame
from plm_jax.data.tokenizers import Vocab
from plm_jax.errors import UserError
from plm_jax.tasks.labelled_text import Examples

_ORDER = 1  # as in data.pipeline: tells the key of an epoch's order from others


@dataclass(frozen=True)
class LabelledBatches:
  """`batches(step)`: this process's rows of the global batch of that step.

  input_ids, segment_ids int32 [B, T]: [CLS] text [SEP], padded; length, label int32 [B]; row_weight
  float32 [B] (0: the row only fills up). An epoch is one pass over the examples in an order of its
  own; a batch may reach over its end, so that no example is ever left out.
  """

  input_ids: np.ndarray  # int32 [N, T]
  lengths: np.ndarray  # int32 [N]
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
  def of(cls, examples: Examples, vocab: Vocab, length: int, **settings) -> LabelledBatches:
    """Errors: `UserError` if the tokenizer has no tokens for the begin and the end of a text."""
    first, last = frame(vocab, padding=False)  # GPT-2's and LLaMA's have none for padding
    ids = np.full((len(examples.ids), length), filler(vocab), np.int32)
    lengths = np.array([min(len(tokens), length - 2) + 2 for tokens in examples.ids], np.int32)
    ids[:, 0] = first
    for row, tokens in zip(ids, examples.ids):
      tokens = tokens[: length - 2]
      row[1 : 1 + len(tokens)] = tokens
      row[1 + len(tokens)] = last
    return cls(ids, lengths, examples.label, **settings)

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """The training batch of a step, arrays [B_local, ...]."""
    size = len(self.labels)
    position = int(step) * self.global_batch + self._slots()
    epochs, index = np.divmod(position, size)
    rows = np.empty_like(index)
    for epoch in np.unique(epochs):
      here = epochs == epoch
      rows[here] = permute(index[here], size, self.seed, _ORDER, int(epoch))
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
    ids = self.input_ids[rows]
    return {
      "input_ids": ids,
      "segment_ids": np.zeros_like(ids),
      "length": self.lengths[rows],
      "label": self.labels[rows],
      "row_weight": weight,
    }
