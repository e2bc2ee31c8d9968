"""BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al. 2019, arXiv:1810.04805).

The forward pass, in order, and the file of each line (dropout left out):

    x = norm(token + position + segment)                   embeddings.py, Embeddings
    x = norm(x + attention(x))                             transformer.py, PostNormBlock,
    x = norm(x + down(gelu(up(x))))                          both lines in each of `layers`
    mlm = norm(gelu(dense(x))) @ token_table.T + bias      heads.py, MaskedLMHead
    nsp = linear(tanh(dense(x[CLS])))                      encoder.py, EncoderModel.pool; PairHead

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
