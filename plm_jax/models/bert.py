"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al. 2019, arXiv:1810.04805).

The forward pass without dropout, and the file of each line. The first three lines are
`EncoderModel.__call__` (encoder.py), in which layer_loop.py repeats the second and the third; the
objectives call the two heads.

    x = norm(token + position + segment)                 embeddings.py, Embeddings
    x = norm(x + attention(x))                           transformer.py, PostNormBlock; attention.py
    x = norm(x + down(gelu(up(x))))                      transformer.py, PostNormBlock
    mlm = norm(gelu(dense(x))) @ token_table.T + bias    heads.py, MaskedLMHead
    nsp = linear(tanh(dense(x[CLS])))                    heads.py, Pooler and PairHead

Sources: the paper, section 3 and appendix A; google-research/bert modeling.py.
No deviation in the mathematics; the GELU variant is a setting because the original code and
transformers differ.
"""

from __future__ import annotations

import dataclasses

from plm_jax.models.encoder import Encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bert(Encoder):
  """BERT; the defaults are BERT-base."""
