"""ModernBERT: Smarter, Better, Faster, Longer (Warner et al. 2024, arXiv:2412.13663).

An encoder with rotary positions and no segments. It has LLaMA's places of the norms (norms without
bias; the first layer reads the normalised embeddings as they are) and GEGLU. Every third layer sees
the whole row, the others 64 tokens to each side, with angles of another base.

Sources: the paper, section 2.1 and Table 4; transformers, modeling_modernbert.py.
Deviations: all initial kernels have one standard deviation; the paper's are smaller where a layer
writes to the residual stream. There is no unpadding.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.activations import Activation
from plm_jax.models.config import Norm, NormAt, Position
from plm_jax.models.encoder import Classifier, Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBert(Encoder):
  """ModernBERT; the defaults are its base size. Its vocabulary has 50,368 tokens."""

  layers: int = 22
  hidden: int | None = 1152
  positions: int = 8192
  position: Position = "rotary"
  rope_theta: float = 160_000.0
  local_rope_theta: float | None = 10_000.0
  window: int | None = 64
  global_every: int = 3
  segments: int = 0
  norm: Norm = "unbiased"
  norm_at: NormAt = "pre"
  norm_eps: float = 1e-5
  first_norm: bool = False
  activation: Activation = "gelu_erf"
  gated: bool = True
  attention_bias: bool = False
  feed_forward_bias: bool = False
  head_bias: bool = False
  dropout: float = 0.0
  attention_dropout: float = 0.0
  classifier: Classifier = "mean"


BASE = ModernBert()
LARGE = ModernBert(layers=28, width=1024, heads=16, hidden=2624)
