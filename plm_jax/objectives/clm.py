"""Causal (left-to-right) language modelling: predict every token from those before it."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from plm_jax.objectives.baselines import Baseline, unigram
from plm_jax.objectives.objective import Terms, token_terms
from plm_jax.objectives.sampled_softmax import refuse_negative, sampled, sampled_terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLM:
  """Mean of `-log p(x_t | x_<t)` over all tokens but the first of each row. In rows with
  `document_ids`, the first token of each document is left out too. Padding does not count.

  sampled: tokens that each row draws for a softmax over the draws of all rows of a step; 0 is the
  softmax over the vocabulary, which evaluations always have (sampled_softmax.py).
  """

  weight: float = 1.0
  sampled: int = 0
  name = "clm"
  heads: ClassVar[dict[str, int]] = {"lm": 0}

  def __post_init__(self):
    refuse_negative(self)

  def corrupt(self, batch, draws, vocab) -> dict:
    """Adds `clm_targets` int32 `[B, T]` (the next token) and `clm_weights` float32 `[B, T]`. Rows
    that the next batch continues have a target at their last token too, from `next_ids`."""
    ids = batch["input_ids"]
    targets = np.zeros_like(ids)
    targets[:, :-1] = ids[:, 1:]
    weights = np.arange(ids.shape[1])[None] < batch["length"][:, None] - 1
    if "document_ids" in batch:
      weights[:, :-1] &= np.diff(batch["document_ids"], axis=1) == 0
    if "next_ids" in batch:
      row, last = np.arange(len(ids)), batch["length"] - 1
      targets[row, last] = np.maximum(batch["next_ids"], 0)
      weights[row, last] = batch["next_ids"] >= 0
    weights = weights * batch["row_weight"][:, None]
    batch = batch | {"clm_targets": targets, "clm_weights": weights.astype(np.float32)}
    return batch | (sampled(targets, draws, vocab, self.sampled) if self.sampled else {})

  def count(self, batch) -> jax.Array:
    return batch["clm_weights"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    targets, weights = batch["clm_targets"], batch["clm_weights"]
    if self.sampled and noise is not None:
      return sampled_terms(model, hidden, targets, weights, batch, batch["target_p"])
    return token_terms(model, hidden, targets, weights)

  def baseline(self, counts, batches, scores) -> Baseline:
    return unigram(counts, batches, self.name)
