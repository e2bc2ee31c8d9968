"""LLaMA: Open and Efficient Foundation Language Models (Touvron et al. 2023, arXiv:2302.13971), and
the sizes of Llama 2 (arXiv:2307.09288) and Llama 3 (arXiv:2407.21783).

A layer is GPT-2's (gpt.py) with RMSNorm, rotary positions (positions.py, `rotate`), no biases, and
the feed-forward `down(silu(gate(x)) * up(x))`.

Sources: the paper, section 2.2 and Table 2; transformers, modeling_llama.py.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.activations import Activation
from plm_jax.models.config import Norm, Position
from plm_jax.models.decoder import Decoder


def feed_forward_width(width: int, multiple_of: int = 256) -> int:
  """2/3 of 4 * width, rounded up to a multiple: three such matrices are as large as two of 4 *
  width."""
  return -(-int(8 * width / 3) // multiple_of) * multiple_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama(Decoder):
  """LLaMA; the defaults are its 7B, which has 6,738,415,616 parameters with 32,000 tokens.

  hidden: None is `feed_forward_width(width)`.
  """

  layers: int = 32
  width: int = 4096
  heads: int = 32
  positions: int = 2048
  position: Position = "rotary"
  norm: Norm = "rms"
  norm_eps: float = 1e-6
  activation: Activation = "silu"
  gated: bool = True
  attention_bias: bool = False
  feed_forward_bias: bool = False
  tied: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0

  @property
  def width_of_feed_forward(self) -> int:
    return self.hidden or feed_forward_width(self.width)


B7 = Llama()
B13 = Llama(layers=40, width=5120, heads=40)
B30 = Llama(layers=60, width=6656, heads=52)  # the paper's 32.5B
B65 = Llama(layers=80, width=8192, heads=64)
LLAMA2_70B = Llama(
  layers=80, width=8192, heads=64, kv_heads=8, hidden=28672, positions=4096, norm_eps=1e-5
)
# 128,256 tokens.
LLAMA3_8B = Llama(kv_heads=8, hidden=14336, positions=8192, norm_eps=1e-5, rope_theta=500_000.0)
# karpathy/tinyllamas, stories260K: 512 tokens.
STORIES_260K = Llama(
  layers=5,
  width=64,
  heads=8,
  kv_heads=4,
  hidden=feed_forward_width(64, 4),
  positions=512,
  norm_eps=1e-5,
  tied=True,
)
