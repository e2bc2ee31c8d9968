"""GPT-1, GPT-2 and the sizes of GPT-3.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"; Radford et al.
2019, "Language Models are Unsupervised Multitask Learners"; Brown et al. 2020, arXiv:2005.14165.

The forward pass of GPT-2 (decoder.py, DecoderModel; GPT-1 has BERT's layers, and no last norm):

    x = token + position
    x = x + attention(norm(x))                             transformer.py, PreNormBlock,
    x = x + down(gelu(up(norm(x))))                          both lines in each of `layers`
    logits = norm(x) @ token_table.T

Sources: the papers; openai/finetune-transformer-lm train.py; openai/gpt-2 src/model.py.
Deviations: GPT-1's code keeps positions as further rows of the token table, here they have a
separate table. GPT-3 alternates dense and locally banded sparse attention (window=W,
global_every=2); the paper prints no W, so the sizes below have dense attention only.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.config import NormAt
from plm_jax.models.decoder import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpt1(Decoder):
  """GPT-1: norms after the residual sums, none at the end. With its vocabulary of 40,478 tokens it
  has 116,534,784 parameters."""

  positions: int = 512
  norm_at: NormAt = "post"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpt2(Decoder):
  """GPT-2; the defaults are its smallest size. With 50,257 tokens the sizes have the released
  counts of parameters, not the paper's (117M, 345M, 762M, 1,542M)."""

  residual_init: bool = True


SMALL = Gpt2()  # 124,439,808 parameters
MEDIUM = Gpt2(layers=24, width=1024, heads=16)  # 354,823,168
LARGE = Gpt2(layers=36, width=1280, heads=20)  # 774,030,080
XL = Gpt2(layers=48, width=1600, heads=25)  # 1,557,611,200

# GPT-3, Table 2.1, as printed: name -> size. In two rows heads and width disagree: XL has 24 heads
# of 128, which is 3,072, and a width of 2,048; 13B has 40 heads of 128, which is 5,120, and a width
# of 5,140. Both can be computed: attention is as wide as its heads, and is projected back.
GPT3 = {
  "125M": Gpt2(layers=12, width=768, heads=12, head_width=64, positions=2048),
  "350M": Gpt2(layers=24, width=1024, heads=16, head_width=64, positions=2048),
  "760M": Gpt2(layers=24, width=1536, heads=16, head_width=96, positions=2048),
  "1.3B": Gpt2(layers=24, width=2048, heads=24, head_width=128, positions=2048),
  "2.7B": Gpt2(layers=32, width=2560, heads=32, head_width=80, positions=2048),
  "6.7B": Gpt2(layers=32, width=4096, heads=32, head_width=128, positions=2048),
  "13B": Gpt2(layers=40, width=5140, heads=40, head_width=128, positions=2048),
  "175B": Gpt2(layers=96, width=12288, heads=96, head_width=128, positions=2048),
}
