"""GloVe's objective (Pennington et al. 2014, section 3): weighted least squares on log counts.

    sum over entries of f(X) (w . w~ + b + b~ - log X)^2        f(X) = min(1, (X / x_max)^alpha)

As in the published code (stanfordnlp/GloVe 52f7dbc, glove.c) it is one half of that.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogCounts:
  """One half of GloVe's loss, as a mean over entries."""

  x_max: float = 100.0
  alpha: float = 0.75
  weight: float = 1.0
  name = "glove"
  heads: ClassVar[dict[str, int]] = {}

  def __post_init__(self):
    if self.x_max <= 0 or self.alpha < 0:
      raise UserError("objectives.glove.x_max must be above 0, and .alpha at least 0")

  def corrupt(self, batch, draws, vocab) -> dict:
    """Nothing is corrupted."""
    del draws, vocab
    return batch

  def count(self, batch) -> jax.Array:
    return self._real(batch).sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    del noise
    real_BT = self._real(batch)
    counts_BT = jnp.maximum(batch["cooccurrences"], 1e-10)
    f_BT = jnp.minimum(1.0, (counts_BT / self.x_max) ** self.alpha) * real_BT
    error_BT = model.log_counts(hidden, batch) - jnp.log(counts_BT)
    return {"loss": (0.5 * (f_BT * error_BT**2).sum(), real_BT.sum())}

  def _real(self, batch) -> jax.Array:
    return (batch["cooccurrences"] > 0) * batch["row_weight"][:, None]

  def baseline(self, counts, batches, scores) -> Baseline:
    """The same number for all entries: the weighted mean of log X."""
    del counts, scores
    x = np.concatenate([b["cooccurrences"][b["row_weight"] > 0].ravel() for b in batches])
    x = x[x > 0].astype(np.float64)
    f = np.minimum(1.0, (x / self.x_max) ** self.alpha)
    mean = (f * np.log(x)).sum() / f.sum()
    return Baseline("constant", {"loss": float(0.5 * (f * (np.log(x) - mean) ** 2).mean())}, "")
