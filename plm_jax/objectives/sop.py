"""Sentence-order prediction (Lan et al. 2020, section 3.1).

The pairs are made where segments are (`SegmentPair(next="swapped")`): two consecutive segments in
their order or swapped, so that the topic says nothing and only coherence does.
"""

import dataclasses
from typing import ClassVar

from plm_jax.objectives.nsp import SegmentOrder
from plm_jax.objectives.objective import Terms, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOP(SegmentOrder):
  """Mean cross-entropy of "are A and B swapped?" over pairs; label 0 = B follows A, 1 = swapped.

  Chunks of one sentence, which have nothing to swap, get a random B and label 1, as in the original
  (google-research/albert, create_pretraining_data.py): 52-53% of its labels are 1, not half.
  """

  weight: float = 1.0
  name = "sop"
  heads: ClassVar[dict[str, int]] = {"sop": 0}
  pairs = "swapped"

  def loss(self, model, hidden, batch, noise) -> Terms:
    logits_B2 = model.sentence_order_logits(hidden, batch)
    return cross_entropy(logits_B2, batch["pair_label"], batch["row_weight"])
