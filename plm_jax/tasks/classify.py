"""The task `classify`: one text, one label."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar, Self

from plm_jax.errors import UserError
from plm_jax.tasks.classification import LabelTask
from plm_jax.tasks.examples import Example
from plm_jax.tasks.file_task import TableTask
from plm_jax.tasks.table_files import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(TableTask, LabelTask):
  """One text, one label."""

  name: ClassVar[str] = "classify"

  @property
  def question(self) -> str:
    return f"which of {len(self.labels)} classes?"

  def stratum(self, item: Example) -> str:
    return item.target

  def fitted(self, items: list[Example]) -> Self:
    counts = Counter(item.target for item in items)
    if len(counts) < 2:
      raise UserError(
        f"{self.source!r} has {len(counts)} class ({', '.join(counts) or 'no examples'}); two are "
        "needed to learn."
      )
    numbers = [number(label) for label in counts]
    if all(n is not None for n in numbers) and not all(n.is_integer() for n in numbers):
      raise UserError(
        f"The labels of {self.source!r} are numbers such as {next(iter(counts))}, not classes; "
        "--task=regress predicts numbers."
      )
    return dataclasses.replace(self, labels=tuple(sorted(counts)))
