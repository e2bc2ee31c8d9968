"""The base of the tasks' objectives, whose targets are in the rows."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskObjective:
  """An `Objective` on labelled rows. Rows of row_weight 0 fill up a batch and do not count."""

  weight: float = 1.0

  def corrupt(self, batch, draws, vocab) -> dict:
    return batch

  def weights(self, batch) -> jax.Array:
    """float32 [B, ...]: the weight of each prediction."""
    return batch["row_weight"]

  def count(self, batch) -> jax.Array:
    return self.weights(batch).sum()

  @staticmethod
  def values(batches: list[dict], name: str) -> np.ndarray:
    """An array of all batches, in the rows that count."""
    return np.concatenate([b[name][b["row_weight"] > 0] for b in batches])
