"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): LLaMA with grouped queries and a window.

Sources: the paper, section 2 and Table 1; transformers, modeling_mistral.py.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.llama import Llama


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistral(Llama):
  """Mistral; the defaults are its 7B. A token sees itself and the `window` tokens before it: the
  paper's W of 4,096 counts the token too."""

  kv_heads: int | None = 8
  hidden: int | None = 14336
  positions: int = 32768
  norm_eps: float = 1e-5
  window: int | None = 4095


B7 = Mistral()
