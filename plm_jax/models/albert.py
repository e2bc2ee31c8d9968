"""ALBERT: A Lite BERT for Self-supervised Learning (Lan et al. 2020, arXiv:1909.11942).

Sources: the paper, section 3 and Table 1; google-research/albert (b772393) modeling.py and the
released configurations. A vocabulary of 30,000 gives the published counts.
Deviation: if E equals the width, the original code has no mapping between them (`embedding=None`
here) and transformers has one (`embedding=width`).
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.encoder import Encoder
from plm_jax.models.layer_loop import Sharing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Albert(Encoder):
  """An encoder with tables of width E = 128 and one layer's parameters for all layers.

  The defaults are ALBERT-base of the paper's tables. Version 2 of the released models was trained
  without dropout (README of google-research/albert).
  """

  embedding: int | None = 128
  sharing: Sharing = "all"


# Table 1. Heads are 64 wide, those of xlarge 128; the feed-forward width is 4 * width.
BASE = Albert()
LARGE = Albert(layers=24, width=1024, heads=16)
XLARGE = Albert(layers=24, width=2048, heads=16)
XXLARGE = Albert(layers=12, width=4096, heads=64)
