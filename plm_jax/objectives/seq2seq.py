"""Sequence to sequence: predict a target from a source and the target's own past.

Sources: Vaswani et al. 2017, section 5.4 (label smoothing); google-research/mesh, mesh_tensorflow
layers.py `softmax_cross_entropy_with_logits` (z-loss, which T5 trains with).

In `corrupt` each makes a source and a target of a row. All are named "seq2seq" and share the loss.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.objective import Terms, token_terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq:
  """Mean of `-log p(y_t | y_<t, source)` over the target's tokens.

  label_smoothing: the share of a target's probability that is spread evenly over the vocabulary.
    `loss` is then the smoothed loss, and `nll` the plain one, whose exponential is the perplexity.
  z_loss: the factor of the mean square of log Z, which keeps the softmax's normaliser near 1.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  weight: float = 1.0
  name = "seq2seq"
  heads: ClassVar[dict[str, int]] = {"lm": 0}

  def __post_init__(self):
    if not (0 <= self.label_smoothing < 1 and 0 <= self.z_loss < 1):
      raise UserError(
        f"seq2seq.label_smoothing={self.label_smoothing} and seq2seq.z_loss={self.z_loss} must be "
        "at least 0 and below 1"
      )

  def count(self, batch) -> jax.Array:
    return batch["seq2seq_weights"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    targets, weights = batch["seq2seq_targets"], batch["seq2seq_weights"]
    return token_terms(model, hidden, targets, weights, self.label_smoothing, self.z_loss)

  def baseline(self, counts, batches, scores) -> Baseline:
    """The unigram model of the targets themselves: sentinels are in no training text."""
    targets = np.concatenate([b["seq2seq_targets"].ravel() for b in batches])
    weights = np.concatenate([b["seq2seq_weights"].ravel() for b in batches])
    return unigram(np.bincount(targets, weights, len(counts)), batches, self.name)


def sides(
  batch: dict,
  source: np.ndarray,
  source_length: np.ndarray,
  target: np.ndarray,
  target_length: np.ndarray,
  start: int | np.ndarray,
) -> dict[str, np.ndarray]:
  """The batch of an encoder-decoder. source, target: int32 `[B, S]`, `[B, T]`; lengths: int `[B]`.

  `input_ids`, `length` are the source, `decoder_input_ids` the target moved right, after `start`.
  `decoder_length` int32 `[B]`; `seq2seq_targets` int32 and `seq2seq_weights` float32 `[B, T]`.
  Errors: `UserError` for rows with `document_ids`.
  """
  if "document_ids" in batch:
    raise UserError(
      "an encoder-decoder reads a row as one text (data.segments.separate=true keeps its documents "
      "apart); set data.segments.separate=false"
    )
  shifted = np.empty_like(target)
  shifted[:, 0] = start
  shifted[:, 1:] = target[:, :-1]
  real = np.arange(target.shape[1]) < target_length[:, None]
  kept = {k: v for k, v in batch.items() if k not in ("segment_ids", "pair_label")}
  return kept | {
    "input_ids": source,
    "length": source_length.astype(np.int32),
    "decoder_input_ids": np.where(real, shifted, target),
    "decoder_length": target_length.astype(np.int32),
    "seq2seq_targets": target,
    "seq2seq_weights": (real * batch["row_weight"][:, None]).astype(np.float32),
  }


def compact(
  values: np.ndarray, keep: np.ndarray, width: int, pad: int, end: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The kept values of each row moved to its left, int32 `[B, width]`, and their number `[B]`.

  They are followed by `end`, if given, and then by `pad`. Values beyond the width are cut off.
  """
  room = width - (end is not None)
  rank = np.cumsum(keep, axis=1, dtype=np.int32)
  length = np.minimum(rank[:, -1], room)
  if (rank[:, -1] > room).any():
    keep = keep & (rank <= room)
  column = np.arange(width, dtype=np.int32)
  rows = np.full((len(values), width), pad, np.int32)
  rows[column < length[:, None]] = values[keep]
  if end is not None:
    rows[np.arange(len(rows)), length] = end
    length = length + 1
  return rows, length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(Seq2Seq):
  """Predict the second text of a pair from the first: translation, or any task written as text.

  Rows are "[CLS] source [SEP] target [SEP]" (`data.segments=SourceTarget`). framed: the source is
  "[CLS] source [SEP]" and the decoder begins with [CLS]. Otherwise, as in T5, the source is
  "source [SEP]" and the decoder begins with the padding token.
  """

  framed: bool = True

  def corrupt(self, batch, draws, vocab) -> dict:
    del draws
    ids, length = batch["input_ids"], batch["length"]
    target_length = batch["segment_ids"].sum(axis=1)
    half, skipped = ids.shape[1] // 2, int(not self.framed)
    source_length = length - target_length - skipped
    source = part(ids, np.full_like(length, skipped), source_length, half, vocab.pad)
    target = part(ids, length - target_length, target_length, half, vocab.pad)
    start = ids[:, 0] if self.framed else vocab.pad
    return sides(batch, source, source_length, target, target_length, start)


def part(ids, begin, length, width: int, pad: int) -> np.ndarray:
  """int32 `[B, width]`: `length` [B] tokens of every row from column `begin` [B] on."""
  column = np.arange(width)
  at = np.minimum(begin[:, None] + column, ids.shape[1] - 1)
  taken = np.take_along_axis(ids, at, axis=1)
  return np.where(column < length[:, None], taken, pad).astype(np.int32)
