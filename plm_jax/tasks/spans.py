"""Spans of a text: their loss, the best ones, and the threshold below which there is none."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.offsets import tokens_in
from plm_jax.models.model import Model
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.squad import TrueAnswer
from plm_jax.tasks.task_objective import TaskObjective

NBEST = 20  # starts, ends and answers that are kept
NONE, MISPLACED = -1, -2  # instead of a span's tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanLoss(TaskObjective):
  """Mean of `-(log p(start) + log p(end)) / 2` over the positions of a row without its padding.

  Rows of span_weight 0, whose answer is not at its offset, do not count.
  """

  name = "span"
  heads = {"span": 0}  # noqa: RUF012  read only

  def weights(self, batch) -> jax.Array:
    return batch["row_weight"] * batch["span_weight"]

  def loss(self, model, hidden, batch, noise) -> Terms:
    weight_B = self.weights(batch)
    loss_B, correct_B = 0.0, 1.0
    for logits_BT, target_B in zip(
      span_logits(model, hidden, batch), (batch["start"], batch["end"]), strict=True
    ):
      log_p_BT = jax.nn.log_softmax(logits_BT)
      loss_B -= jnp.take_along_axis(log_p_BT, target_B[:, None], axis=1)[:, 0] / 2
      correct_B *= logits_BT.argmax(axis=1) == target_B
    terms = {"loss": loss_B, "accuracy": correct_B}
    return {name: ((x_B * weight_B).sum(), weight_B.sum()) for name, x_B in terms.items()}

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("uniform", {"loss": float(np.log(self.values(batches, "length")).mean())})


def span_logits(model, hidden, batch) -> tuple[jax.Array, jax.Array]:
  """float32 [B, T] each: of starts and ends; padding is never one."""
  real_BT = jnp.arange(batch["input_ids"].shape[1]) < batch["length"][:, None]
  start_BT, end_BT = model.span_logits(hidden, batch)
  return jnp.where(real_BT, start_BT, -1e9), jnp.where(real_BT, end_BT, -1e9)


class Span(NamedTuple):
  """A candidate: its score, and its characters in the context."""

  score: float
  start: int
  end: int


def best_spans(
  start_S: np.ndarray, end_S: np.ndarray, offsets_S2: np.ndarray, longest: int
) -> list[Span]:
  """The best spans of a window's tokens, at most `longest` of them in each."""
  firsts, lasts = (np.argsort(-x, kind="stable")[:NBEST] for x in (start_S, end_S))
  size = lasts[None] - firsts[:, None]
  score = start_S[firsts][:, None] + end_S[lasts][None]
  score = np.where((size >= 0) & (size < longest), score, -np.inf)
  made = []
  for place in np.argsort(-score, axis=None, kind="stable")[:NBEST]:
    a, b = np.unravel_index(place, score.shape)
    if np.isfinite(score[a, b]):
      start = offsets_S2[firsts[a], 0]
      end = offsets_S2[lasts[b], 1]
      made.append(Span(float(score[a, b]), int(start), int(end)))
  return made


def answer_tokens(answers: list[TrueAnswer], offsets: np.ndarray) -> tuple[int, int]:
  """The tokens, (first, last + 1), of the first answer that is at its offset."""
  for answer in answers:
    if answer.start >= 0:
      first, end = tokens_in(offsets, answer.start, answer.start + len(answer.text))
      if first < end:
        return first, end
  return (MISPLACED, MISPLACED) if answers else (NONE, NONE)


def null_positions(rows: EncodedRows, config: Model) -> np.ndarray:
  """int32 [N]: the position that means "no answer here"."""
  length = rows.values["length"]
  leftward = getattr(config, "attention", "causal") == "causal"
  if leftward and not getattr(config, "has_decoder", False):
    return (length - 1).astype(np.int32)
  return np.zeros_like(length)


def best_threshold(null_above: np.ndarray, gains: np.ndarray) -> float:
  """The threshold that keeps the answers with the largest sum of gains: what an answer's score is
  above that of no answer (evaluate-v2.0.py, `find_best_thresh`)."""
  order = np.argsort(null_above, kind="stable")
  kept = np.cumsum(gains[order])
  best = int(kept.argmax())
  if kept[best] <= 0:
    return float(null_above[order[0]]) - 1
  return float(null_above[order[best]])
