"""BART (Lewis et al. 2020, arXiv:1910.13461) and mBART (Liu et al. 2020, arXiv:2001.08210).

Sources: fairseq (3d262bb) models/bart/model.py, examples/bart and examples/mbart. Unlike Vaswani's
Transformer BART does not scale its embeddings; mBART does, and has its norms before the sublayers.
Deviation: there are no output biases; in transformers they are a buffer, zero in every checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from plm_jax.errors import UserError
from plm_jax.models.activations import Activation
from plm_jax.models.config import NormAt, Position
from plm_jax.models.encoder_decoder import EncoderDecoder, Frame

if TYPE_CHECKING:
  from plm_jax.data.vocab import Vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bart(EncoderDecoder):
  """BART; the defaults are BART-base, of 50,265 tokens."""

  width: int = 768
  heads: int = 12
  position: Position = "learned"
  first_position: int = 2
  embedding_norm: bool = True
  activation: Activation = "gelu_erf"
  frame: Frame = "bart"
  attention_dropout: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBart(Bart):
  """mBART; the defaults are mBART-large, of 250,027 tokens (25 languages). mBART-50, of 250,054, is
  the same network, but its texts begin with their language.

  language: the first token of the decoder. source_language: the last token of sources; None is
    `language`.
  """

  layers: int = 12
  width: int = 1024
  heads: int = 16
  norm_at: NormAt = "pre"
  embedding_scale: bool = True
  language: str = "en_XX"
  source_language: str | None = None

  def source_ids(self, ids: list[int], vocab: Vocab) -> list[int]:
    name = "language" if self.source_language is None else "source_language"
    return [*ids, *vocab.end, self._code(name, vocab)]

  def decoder_start(self, vocab: Vocab) -> list[int]:
    return [self._code("language", vocab)]

  def _code(self, name: str, vocab: Vocab) -> int:
    language = getattr(self, name)
    if language not in vocab.languages:
      raise UserError(
        f"the tokenizer has no language code {language!r}, which model.{name} names; it has "
        f"{', '.join(vocab.languages) or 'none'}"
      )
    return vocab.languages[language]


BASE = Bart()  # 139,420,416 parameters
LARGE = Bart(layers=12, width=1024, heads=16)  # 406,291,456
MBART_LARGE = MBart()  # 610,851,840 with 250,027 tokens
