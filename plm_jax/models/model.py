"""What the rest of the project knows of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import jax

from plm_jax.errors import UserError

if TYPE_CHECKING:
  from plm_jax.models.compute import Compute
  from plm_jax.models.dropout import Noise


def refuse_below(config: object, least: int, *names: str) -> None:
  """A `UserError` for a field of a model's configuration that is given, and less than `least`."""
  for name in names:
    size = getattr(config, name)
    if size is not None and size < least:
      raise UserError(f"model.{name}={size} must be at least {least}")


class Model(Protocol):
  """The configuration of a model: a frozen dataclass, one per paper."""

  vocab_size: int | None  # None until the tokenizer is known
  positions: int  # longest row

  @property
  def encoder(self) -> Model:
    """The model that fine-tuning and evaluation use; what is no composite returns itself."""

  @property
  def encoder_path(self) -> str:
    """Where that model's parameters are among these: "" or a path such as "discriminator/"."""

  @property
  def frozen(self) -> tuple[str, ...]:
    """Path patterns of parameters that get no gradient, no update and no moments ("teacher/*")."""

  def init(self, key: jax.Array, heads: dict[str, int]) -> Parameters:
    """Random parameters, with the named heads."""


class Parameters(Protocol):
  """The parameters of a model and its forward pass: an `nnx.Module` used as a plain pytree."""

  def __call__(self, batch: dict, compute: Compute, noise: Noise | None = None) -> jax.Array:
    """One forward pass; its result is what every objective's loss is given."""

  def encoder(self) -> Parameters:
    """The parameters of the config's `encoder`."""

  def masked_lm(self) -> Parameters | None:
    """The parameters that predict a masked token by `token_logits`; None where nothing does."""

  # Optional, for models that carry a state from batch to batch (a recurrent network):
  # carry(rows: int) -> pytree of arrays [rows, ...], the state before any token;
  # continued(batch, compute, noise, carry) -> (what __call__ returns, the carry after the batch).

  # generator(compute) -> Generator (plm_jax/decode/generator.py): where the model writes text.
