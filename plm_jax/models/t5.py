"""T5: Exploring the Limits of Transfer Learning (Raffel et al. 2020, arXiv:1910.10683), and T5 1.1.

The layers of both sides are GPT-2's (gpt.py) with RMSNorm, relu and no biases; in the decoder
cross-attention is between the two lines. Scores have a bias by distance (relative.py); tokens have
no positions.

Sources: the paper, section 2.1; google-research/text-to-text-transfer-transformer (e081111)
t5/models/gin and released_checkpoints.md; google-research/mesh for layers and initial weights.
Attention scores are not divided by sqrt(H); the initial queries are, instead.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.activations import Activation
from plm_jax.models.config import Norm, NormAt, Position
from plm_jax.models.encoder_decoder import EncoderDecoder, Frame
from plm_jax.models.initializers import Initializer

UNLIMITED = 2**15 - 1  # there is no table of positions; row lengths are stored in 16 bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5(EncoderDecoder):
  """T5 1.0; the defaults are T5-small. Its vocabulary has 32,128 rows: 32,000 pieces, 100 sentinels
  and 28 unused rows."""

  hidden: int | None = 2048
  head_width: int | None = 64
  positions: int = UNLIMITED
  position: Position = "relative"
  norm: Norm = "rms"
  norm_at: NormAt = "pre"
  norm_eps: float = 1e-6
  attention_bias: bool = False
  feed_forward_bias: bool = False
  attention_scale: float | None = 1.0
  logit_scale: bool = True
  hidden_dropout: float = 0.1
  final_dropout: bool = True
  frame: Frame = "t5"
  initializer: Initializer = "t5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5v11(T5):
  """T5 1.1; the defaults are its small size. Gated GELU, a separate output table without scaling,
  and no dropout in pretraining."""

  layers: int = 8
  heads: int = 6
  hidden: int | None = 1024
  activation: Activation = "gelu_tanh"
  gated: bool = True
  tied: bool = False
  logit_scale: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  hidden_dropout: float = 0.0


SMALL = T5()  # 60,506,624 parameters
BASE = T5(layers=12, width=768, heads=12, hidden=3072)  # 222,903,552
LARGE = T5(layers=24, width=1024, heads=16, hidden=4096)  # 737,668,096
T5_3B = T5(layers=24, width=1024, heads=32, head_width=128, hidden=16384)  # 2,851,598,336
T5_11B = T5(layers=24, width=1024, heads=128, head_width=128, hidden=65536)  # 11,307,321,344

V11_SMALL = T5v11()  # 76,961,152 parameters
V11_BASE = T5v11(layers=12, width=768, heads=12, hidden=2048)  # 247,577,856
V11_LARGE = T5v11(layers=24, width=1024, heads=16, hidden=2816)  # 783,150,080
V11_XL = T5v11(layers=24, width=2048, heads=32, hidden=5120)  # 2,849,757,184
V11_XXL = T5v11(layers=24, width=4096, heads=64, hidden=10240)  # 11,135,332,352
