"""Plain gradient descent and AdaGrad, which update only the rows of a table that a batch read.

A model says which rows these are (`touched`, plm_jax/train/touched.py). There is no gradient of a
whole table, and no new moment of any other row. Rows that were read more than once are added. The
learning rate is then that of one prediction, as in word2vec.c: gradients are sums, not means.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
  """w = w - lr g.

  peak: highest learning rate. warmup: steps of linear increase from 0. end: the share of the peak
  to which the rate falls linearly at the last step; 1 is constant. clip: of every component of the
  gradient of a row; 0 is off. updates: each step's rows are read in this many equal parts, one
  after the other.
  """

  peak: float = 0.025
  warmup: int = 0
  end: float = 1e-4
  clip: float = 0.0
  updates: int = 1

  def __post_init__(self):
    if not (0 < self.peak < math.inf and 0 <= self.end <= 1):
      raise UserError(
        f"optim.peak={self.peak} must be above 0 and finite, and optim.end={self.end} a share "
        "of at least 0 and at most 1"
      )
    if self.warmup < 0 or self.clip < 0 or self.updates < 1:
      raise UserError(
        "optim.warmup and optim.clip must be at least 0, and optim.updates at least 1"
      )

  def constants(self, steps: int) -> dict[str, np.float32]:
    """As `AdamW.constants`."""
    numbers = {
      "peak": self.peak,
      "warmup": self.warmup,
      "per_warmup": 1 / np.float32(max(self.warmup, 1)),
      "per_falling": 1 / np.float32(max(steps - self.warmup, 1)),
    }
    return {name: np.float32(number) for name, number in numbers.items()}

  def learning_rate(self, steps: int) -> optax.Schedule:
    """Update number (0 for the first) -> learning rate, for a run of `steps` updates."""
    return self.schedule_of(self.constants(steps))

  def schedule_of(self, constants: Mapping[str, Any]) -> optax.Schedule:
    """As `learning_rate`, from a run's `constants`."""
    peak, warmup = constants["peak"], constants["warmup"]

    def schedule(update):
      update = jnp.asarray(update, jnp.float32)
      done = jnp.clip((update - warmup) * constants["per_falling"], 0, 1)
      rising = (update + 1) * constants["per_warmup"]
      return peak * jnp.where(update < warmup, rising, jnp.maximum(self.end, 1 - done))

    return schedule

  def transform(self, steps: int) -> optax.GradientTransformation:
    return self.transform_at(self.learning_rate(steps))

  def transform_at(self, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """learning_rate: by the run's steps, each of which counts `updates` here."""
    return optax.chain(
      optax.clip(self.clip) if self.clip else optax.identity(),
      self.scaling(),
      optax.scale_by_learning_rate(lambda count: learning_rate(count / self.updates)),
    )

  def scaling(self) -> optax.GradientTransformation:
    """The transformation between the clipped gradient and the learning rate."""
    return optax.identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adagrad(SGD):
  """w = w - lr g / sqrt(G), then G = G + g^2 (Duchi et al. 2011; stanfordnlp/GloVe 52f7dbc,
  glove.c, which starts with G = 1 and clips each component at 100).

  initial: the first G. before: scale by G before g^2 is added, as glove.c; else after it, as the
  paper and most libraries do.
  """

  peak: float = 0.05
  end: float = 1.0
  clip: float = 100.0
  initial: float = 1.0
  before: bool = True

  def __post_init__(self):
    super().__post_init__()
    if self.initial < 0 or (self.before and not self.initial):
      raise UserError(
        f"optim.initial={self.initial} must be at least 0, and above 0 with optim.before=true"
      )

  def scaling(self) -> optax.GradientTransformation:
    def init(params):
      return optax.ScaleByRssState(jax.tree.map(lambda x: jnp.full_like(x, self.initial), params))

    def update(grads, state, params=None):
      del params
      squares = jax.tree.map(lambda G, g: G + g * g, state.sum_of_squares, grads)
      divisor = state.sum_of_squares if self.before else squares
      scaled = jax.tree.map(lambda g, G: g / jnp.sqrt(jnp.maximum(G, 1e-30)), grads, divisor)
      return scaled, optax.ScaleByRssState(squares)

    return optax.GradientTransformation(init, update)
