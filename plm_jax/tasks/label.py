"""The task `label`: which document label does a sentence have?

In tfds:installed_text the label is the package that a text documents.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from plm_jax.tasks.labelled_text import LabelledText


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(LabelledText):
  """The label of the document that a sentence comes from."""

  name: ClassVar[str] = "label"

  @property
  def question(self) -> str:
    return f"which of {len(self.labels)} classes?"
