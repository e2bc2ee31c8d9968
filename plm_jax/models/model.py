"""What the rest of the project knows of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax

if TYPE_CHECKING:
  from plm_jax.models.compute import Compute
  from plm_jax.models.dropout import Noise


class Model(Protocol):
  """The configuration of a model: a frozen dataclass, one per paper."""

  vocab_size: int | None  # None until the tokenizer is known
  positions: int  # longest row

  def init(self, key: jax.Array, heads: dict[str, int]) -> Parameters:
    """Random parameters, with the named heads."""


class Parameters(Protocol):
  """The parameters of a model and its forward pass: an `nnx.Module` used as a plain pytree."""

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """One forward pass; its result is what every objective's loss is given."""
