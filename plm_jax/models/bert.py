"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al. 2019, arXiv:1810.04805).

Sources: the paper, section 3 and appendix A; google-research/bert modeling.py.
Deviation: none in the mathematics; the GELU variant is a setting because the original code and
transformers differ.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.encoder import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bert(Encoder):
  """BERT; the defaults are BERT-base."""
