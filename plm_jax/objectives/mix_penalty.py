"""The penalty of the weights of a mix of layers (Peters et al. 2018, section 3.3)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from plm_jax.objectives.baselines import Baseline
from plm_jax.objectives.objective import Terms


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixPenalty:
  """The sum of the squares of w, beside the objective of a task: the layers' weights softmax(w) are
  drawn to their average (allenai/bilm-tf, bilm/elmo.py: `l2_coef`).

  weight: lambda of the paper. 1 leaves the average, 0.001 lets the weights vary.
  """

  weight: float = 0.001
  name = "mix"
  heads: ClassVar[dict[str, int]] = {}

  def corrupt(self, batch, draws, vocab) -> dict:
    return batch

  def count(self, batch) -> jax.Array:
    return batch["row_weight"].sum()

  def loss(self, model, hidden, batch, noise) -> Terms:
    """Every row has the penalty, so that its mean is the penalty."""
    rows = batch["row_weight"].sum()
    return {"loss": (jnp.square(model.mix.bias[...]).sum() * rows, rows)}

  def baseline(self, counts, batches, scores) -> Baseline:
    return Baseline("average of the layers", {"loss": 0.0})
