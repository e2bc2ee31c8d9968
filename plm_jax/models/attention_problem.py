"""What fused kernels of attention know when they are compiled: sizes, the mask and dropout. The
kernels of GPUs (fused_attention.py) and of TPUs (tpu_attention.py) share it, so that they hide the
same sources and drop the same weights."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from plm_jax.models.dropout import row_keys

LOG2E = math.log2(math.e)  # the kernels use powers of 2
MASKED = -1e30  # as in `plm_jax.models.attention`


@dataclasses.dataclass(frozen=True)
class Problem:
  """heads: of queries, on all devices; targets, sources: positions without the padding to whole
  blocks."""

  scale: float
  causal: bool
  window: int | None
  rate: float
  heads: int
  targets: int
  sources: int
  interpret: bool

  def masked(self, products, rows, columns, row_groups, column_groups, bias=None) -> jax.Array:
    """float32 scores, scaled by `scale * log2(e)`, with `MASKED` where a target may not see a
    source. products: of queries and keys. The others broadcast to it: int32, targets and sources,
    and their groups or None. bias: float32, times `log2(e)`, added to the scores; or None."""
    scores = products * jnp.float32(self.scale * LOG2E)
    if bias is not None:
      scores += bias
    allowed = None
    if row_groups is not None:
      allowed = row_groups == column_groups
    if self.causal:
      allowed = _both(allowed, columns <= rows)
    if self.window is not None:
      allowed = _both(allowed, jnp.abs(columns - rows) <= self.window)
    if row_groups is None and not self.causal:  # padding to whole blocks has no group otherwise
      allowed = _both(allowed, columns < self.sources)
    return scores if allowed is None else jnp.where(allowed, scores, MASKED)

  def row_keys(self, place, rows) -> jax.Array:
    """uint32 keys of targets for dropout. place: seed, and number of the head's first row."""
    seed, first = place
    return row_keys(seed, first + rows.astype(jnp.uint32))

  def place(self, place_ref, head):
    """Seed, and number of a head's first row in the whole array, modulo 2**32. head: number among
    this call's heads of all rows."""
    return place_ref[0], place_ref[1] + head.astype(jnp.uint32) * jnp.uint32(self.targets)


def _both(a, b):
  return b if a is None else a & b
