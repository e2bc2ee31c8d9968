"""Next-sentence prediction (Devlin et al. 2019, section 3.1, task 2).

The pairs are made where segments are (`SegmentPair`): B follows A or comes from another document.
"""

import dataclasses
from typing import ClassVar

import jax

from plm_jax.objectives.baselines import Baseline, majority
from plm_jax.objectives.objective import Terms, cross_entropy


class SegmentOrder:
  """The shared part of objectives on pairs of segments, whose labels `SegmentPair` made."""

  def corrupt(self, batch, draws, vocab) -> dict:
    return batch

  def count(self, batch) -> jax.Array:
    return batch["row_weight"].sum()

  def baseline(self, counts, batches, scores) -> Baseline:
    return majority(batches, "pair_label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NSP(SegmentOrder):
  """Mean cross-entropy of "is B random?" over pairs; label 0 = B follows A, 1 = B is random.

  "All" pairs count, the single-sentence ones too, which are always random: with the original data
  code 54-58% of the labels are 1, not half (google-research/bert, create_pretraining_data.py).
  """

  weight: float = 1.0
  name = "nsp"
  heads: ClassVar[dict[str, int]] = {"nsp": 0}
  pairs = "random"

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_B2 = model.next_sentence_logits(hidden, batch)
    return cross_entropy(logits_B2, batch["pair_label"], batch["row_weight"])
