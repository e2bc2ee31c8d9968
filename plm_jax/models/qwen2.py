"""Qwen2 Technical Report (Yang et al. 2024, arXiv:2407.10671): LLaMA with grouped queries, and with
biases of queries, keys and values.

Sources: the paper, section 2.2 and Table 1; transformers, modeling_qwen2.py.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.llama import Llama


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2(Llama):
  """Qwen2; the defaults are its 7B. Its vocabulary has 151,646 tokens."""

  layers: int = 28
  width: int = 3584
  heads: int = 28
  kv_heads: int | None = 4
  hidden: int | None = 18944
  positions: int = 32768
  rope_theta: float = 1_000_000.0
  attention_bias: bool = True
  output_bias: bool | None = False


B7 = Qwen2()
B0_5 = Qwen2(layers=24, width=896, heads=14, kv_heads=2, hidden=4864, tied=True)
B1_5 = Qwen2(width=1536, heads=12, kv_heads=2, hidden=8960, tied=True)
