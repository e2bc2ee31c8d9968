"""Computed positions: rotary, sinusoidal, and positions within documents."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError


class Rotation(NamedTuple):
  """The angles of a row's positions, as float32 `[B or 1, T, H / 2]`."""

  cos: jax.Array
  sin: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Positions divided by `factor` (Chen et al. 2023, position interpolation)."""

  factor: float

  def __post_init__(self):
    if not 1 <= self.factor < math.inf:
      raise UserError(f"rope_scaling.factor={self.factor} must be at least 1, and finite")

  def scaled(self, frequencies: np.ndarray) -> np.ndarray:
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Low frequencies divided by `factor`, high ones kept, with a linear transition (Llama 3.1;
  transformers, modeling_rope_utils.py `_compute_llama3_parameters`)."""

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_positions: int = 8192

  def __post_init__(self):
    if not 1 <= self.factor < math.inf or self.original_positions < 1:
      raise UserError(
        f"rope_scaling.factor={self.factor} must be at least 1 and finite, and "
        f"rope_scaling.original_positions={self.original_positions} at least 1"
      )
    if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
      raise UserError(
        f"rope_scaling.low_freq_factor={self.low_freq_factor} must be above 0 and below "
        f"rope_scaling.high_freq_factor={self.high_freq_factor}"
      )

  def scaled(self, frequencies: np.ndarray) -> np.ndarray:
    turns = self.original_positions * frequencies / (2 * np.pi)  # within the original positions
    low, high = self.low_freq_factor, self.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / self.factor


RopeScaling = LinearScaling | Llama3Scaling


def rotation(
  position_ids: jax.Array, head_width: int, theta: float, scaling: RopeScaling | None = None
) -> Rotation:
  """Rotary embedding (Su et al. 2021): pair i of a head turns by `position * theta^(-2i / H)`.

  position_ids: int `[B or 1, T]`. Angles are always float32: bfloat16 cannot tell position 257 from
  256.
  """
  frequencies = theta ** (-np.arange(0, head_width, 2) / head_width)
  if scaling is not None:
    frequencies = scaling.scaled(frequencies)
  angles = position_ids[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x_BTNH: jax.Array, rotation: Rotation | None) -> jax.Array:
  """x turned by the angles. Element i is paired with i + H / 2, as in transformers; llama2.c and
  Meta's files pair 2i with 2i + 1, so import permutes their kernels."""
  if rotation is None:
    return x_BTNH
  cos, sin = (angle[..., None, :] for angle in rotation)
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BTNH.dtype)


def document_positions(document_ids_BT: jax.Array) -> jax.Array:
  """int `[B, T]`: the distance of a token from its document's first token in the row."""
  column = jnp.arange(document_ids_BT.shape[1])
  begins_BT = jnp.diff(document_ids_BT, axis=1, prepend=document_ids_BT[:, :1] - 1) != 0
  return column - jax.lax.cummax(jnp.where(begins_BT, column, 0), axis=1)


def sinusoids(position_ids: jax.Array, width: int) -> jax.Array:
  """float32 `[..., D]`: `sin(p / 10000^(2i / D))` for i below D / 2, then the cosines (Vaswani et
  al. 2017, section 3.5; in the order of tensor2tensor and Marian)."""
  half = -(-width // 2)
  frequencies = 10_000.0 ** (-2 * np.arange(half) / width)
  angles = position_ids[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)[..., : width - half]], axis=-1)
