"""The Transformer: Attention Is All You Need (Vaswani et al. 2017, arXiv:1706.03762).

Sources: the paper; tensorflow/tensor2tensor, models/transformer.py, for the initial weights.
Deviation: all sines are before all cosines, as in tensor2tensor and Marian; the paper alternates
them. This only reorders the dimensions.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.encoder_decoder import EncoderDecoder
from plm_jax.models.initializers import Initializer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer(EncoderDecoder):
  """The Transformer; the defaults are the base model. One vocabulary for both sides (about 37,000
  byte pairs for English and German), and one table for both inputs and the output."""

  embedding_scale: bool = True
  attention_dropout: float = 0.0
  norm_eps: float = 1e-6
  initializer: Initializer = "xavier"


BASE = Transformer()  # 63,082,496 parameters with 37,000 tokens
BIG = Transformer(width=1024, heads=16, dropout=0.3)
