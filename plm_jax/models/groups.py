"""Masks of attention as numbers of groups, for kernels that read no array `[B, N, T, S]`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Groups(NamedTuple):
  """A mask as numbers: a target sees the sources of its group, if causality and window allow it.

  targets_BT, sources_BS: int32; a source at padding has the group -1. None: all are in one group.
  """

  targets_BT: jax.Array | None = None
  sources_BS: jax.Array | None = None

  def hiding(self, real_BS: jax.Array) -> Groups:
    """These without the sources at padding. real_BS: bool, False at padding."""
    targets_BT, sources_BS = self
    if targets_BT is None:
      targets_BT = jnp.zeros(real_BS.shape, jnp.int32)
    if sources_BS is None:
      sources_BS = jnp.zeros(real_BS.shape, jnp.int32)
    return Groups(targets_BT, jnp.where(real_BS, sources_BS, -1))


def real_sources(targets: int, real_BS: jax.Array) -> Groups:
  """The mask of `[B, T, S]` in which every target sees the real sources."""
  return Groups(jnp.zeros((real_BS.shape[0], targets), jnp.int32)).hiding(real_BS)
