"""The task `pairs`: two texts, one label (inference, paraphrase, question and answer)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from plm_jax.tasks.classify import Classify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Classify):
  """Two texts, one label, in a row with the special tokens that the model's family has."""

  name: ClassVar[str] = "pairs"

  @property
  def texts(self) -> int:
    return 2

  @property
  def question(self) -> str:
    return f"which of {len(self.labels)} classes do two texts have?"
