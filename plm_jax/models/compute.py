"""Settings of the computation (precision, loops, memory), which do not change the experiment."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.models.dropout import MaskGenerator

AttentionKind = Literal["auto", "plain", "blocks", "pallas", "cudnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
  """Precision, dropout generator, layer loop, rematerialisation and accumulation.

  dtype: of activations; parameters, norms, softmax and losses stay float32. `auto` is bfloat16 on
    accelerators and float32 on a CPU, where bfloat16 is emulated.
  layers: `scan` compiles one layer (fast to compile), `unroll` compiles all of them (faster steps);
    `auto` unrolls up to 12 layers on a CPU and up to 24 on a GPU, else scans. On a TPU a scan keeps
    the results of products for the backward pass, and computes the rest again.
  attention: how attention is computed, with the same numbers up to rounding. `plain` writes the
    weights `[B, N, T, S]` to memory, `blocks` the same in blocks of causal queries (CPUs), `pallas`
    is one kernel for NVIDIA GPUs (models/fused_attention.py) or for TPUs (models/tpu_attention.py;
    rows of more than 2,048 positions are read by JAX's, models/long_rows.py), `cudnn` is NVIDIA's,
    for causal rows without documents, padding and dropout; `auto` takes the fastest that fits.
  dropout: the mask generator, see `plm_jax.models.dropout`.
  remat: recompute each layer's activations in the backward pass: less memory, a third more work.
  micro_batches: number of parts in which a global batch is computed, gradients summed; 0 means as
    few as fit in the device's memory (1 if the device does not report its memory). A loss that
    compares the rows of a batch reads all of it; only the states are computed in parts, twice.
  """

  dtype: Literal["auto", "float32", "bfloat16"] = "auto"
  layers: Literal["auto", "scan", "unroll"] = "auto"
  attention: AttentionKind = "auto"
  dropout: MaskGenerator = "hash"
  remat: bool = False
  micro_batches: int = 0

  def __post_init__(self):
    if self.micro_batches < 0:
      raise UserError(f"compute.micro_batches is {self.micro_batches}; expected 0 (auto) or more")

  @property
  def activation_dtype(self) -> jnp.dtype:
    if self.dtype == "auto":
      return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(self.dtype)

  def unrolls(self, layers: int) -> bool:
    """Whether a stack of `layers` layers is unrolled rather than scanned."""
    if self.layers == "auto":
      return layers <= {"cpu": 12, "gpu": 24}.get(jax.default_backend(), 0)
    return self.layers == "unroll"
