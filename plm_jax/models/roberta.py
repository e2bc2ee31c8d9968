"""RoBERTa: A Robustly Optimized BERT Pretraining Approach (Liu et al. 2019, arXiv:1907.11692).

Sources: the paper; fairseq (3d262bb) models/roberta/model.py and, for the initial weights,
modules/transformer_sentence_encoder.py. The architecture is BERT's with the exact GELU, eps 1e-5, a
byte-level vocabulary, and positions counted from 2 on: fairseq counts them from the id after that
its positions begin after the id of padding.
Deviations: one segment row is added to every token, as in transformers' checkpoints; fairseq has
none (`segments=0`). The embedding rows of padding start at random instead of at zero; no real
position reads them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from plm_jax.models.activations import Activation
from plm_jax.models.encoder import Classifier, Encoder
from plm_jax.models.initializers import Initializer

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roberta(Encoder):
  """RoBERTa; the defaults are RoBERTa-base. Its vocabulary has 50,265 tokens as published."""

  first_position: int = 2
  segments: int = 1
  activation: Activation = "gelu_erf"
  norm_eps: float = 1e-5
  classifier: Classifier = "dropout_pooler"
  initializer: Initializer = "normal"

  def separator(self, vocab: Vocab) -> list[int]:
    """Two: "<s> a </s></s> b </s>"."""
    return 2 * vocab.end
