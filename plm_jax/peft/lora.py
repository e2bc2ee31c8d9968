"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

`y = x W + s x A B`, with W frozen, A `[inputs, r]` random and B `[r, outputs]` zero, so training
begins at the base. s is `alpha / r`; rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) has
`alpha / sqrt(r)`. DoRA (Liu et al. 2024, arXiv:2402.09353) also trains the length m of every column
of the sum: `y = x (m (W + s A B) / |W + s A B|)`. The divisor has no gradient (section 4.3).

Sources: the papers; microsoft/LoRA loralib/layers.py (a uniform A); huggingface/peft lora/layer.py.
Deviation: layers that share their parameters (ALBERT) share the mask of the dropout before A too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.dropout import Noise, dropout
from plm_jax.models.layers import Linear
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Added, Peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(Peft):
  """LoRA (Hu et al. 2021), rsLoRA and DoRA.

  rank: r. alpha: the update is multiplied by alpha / rank. rslora: multiply by alpha / sqrt(rank)
  instead. dropout: of the input of A. targets: path patterns of linear maps, or of the ends of
  their paths. dora: also train the length of every column of the kernels.
  """

  rank: int = 8
  alpha: float = 16.0
  rslora: bool = False
  dropout: float = 0.0
  targets: tuple[str, ...] = ("query", "value")
  dora: bool = False
  merges: ClassVar[bool] = True

  def __post_init__(self):
    if self.rank < 1:
      raise UserError(f"peft.rank={self.rank} must be at least 1")
    if not 0 <= self.dropout < 1 or not math.isfinite(self.alpha):
      raise UserError(
        f"peft.dropout={self.dropout} must be at least 0 and below 1, and peft.alpha={self.alpha} "
        "finite"
      )

  def scale(self, rank: int) -> float:
    """s of a module of this rank."""
    return self.alpha / (math.sqrt(rank) if self.rslora else rank)

  def init(self, key: jax.Array, base: Parameters) -> Added:
    added, targets = {}, adapted.targets(base, self.targets)
    largest = max(min(sizes.inputs, sizes.outputs) for sizes in targets.values())
    if self.rank > largest:
      raise UserError(
        f"peft.rank={self.rank} is more than {largest}, the highest rank of any kernel that "
        "peft.targets names"
      )
    for path, sizes in targets.items():
      bound = sizes.inputs**-0.5
      shape = (*sizes.layers, sizes.inputs, self.rank)
      of_path = jax.random.fold_in(key, adapted.number_of(path))
      added[path] = {
        "lora_a": jax.random.uniform(of_path, shape, minval=-bound, maxval=bound),
        "lora_b": jnp.zeros((*sizes.layers, self.rank, sizes.outputs)),
      }
    return added

  def fitted(self, base: Parameters, added: Added) -> Added:
    if not self.dora:
      return added
    linears = adapted.linears(base)
    return {
      path: {**arrays, "lora_magnitude": lengths(adapted.matrix(*linears[path]))}
      for path, arrays in added.items()
    }

  def apply(self, base: Parameters, added: Added, noise: Noise | None = None) -> Parameters:
    linears, masks = adapted.linears(base), noise if self.dropout else None

    def make(path: str, linear: Linear) -> nnx.Module:
      if path not in added:
        return linear
      seeds = None if masks is None else seeds_of(masks, path, linears[path][1].layers)
      return LoraLinear(self, linear, added[path], seeds)

    return adapted.replaced(base, Linear, make)

  def merged(self, base: Parameters, added: Added) -> Parameters:
    """A model of the base's structure that computes the same."""
    return self._with_update(base, added, 1.0)

  def unmerged(self, model: Parameters, added: Added) -> Parameters:
    """The base of a merged model, up to rounding. Errors: `UserError` for DoRA, whose kernels lose
    their length."""
    if self.dora:
      raise UserError("a merged DoRA cannot be taken apart; load its base")
    return self._with_update(model, added, -1.0)

  def _with_update(self, base: Parameters, added: Added, sign: float) -> Parameters:
    linears = adapted.linears(base)

    def make(path: str, linear: Linear) -> Linear:
      if path not in added:
        return linear
      arrays, kernel = added[path], adapted.matrix(*linears[path])
      a, b = arrays["lora_a"], arrays["lora_b"]
      kernel += sign * self.scale(a.shape[-1]) * (a @ b)
      if "lora_magnitude" in arrays:
        kernel *= (arrays["lora_magnitude"] / lengths(kernel))[..., None, :]
      return adapted.with_kernel(linear, kernel)

    return adapted.replaced(base, Linear, make)


def lengths(kernel: jax.Array) -> jax.Array:
  """`[..., inputs, outputs] -> [..., outputs]`: the norm of every column."""
  return jnp.linalg.norm(kernel, axis=-2)


class LoraLinear(nnx.Module):
  """A frozen linear map with its low-rank update.

  lora_seed: uint32 per layer, of the dropout mask; None without dropout.
  """

  ROLES: ClassVar[dict[str, Role]] = adapted.ROLES
  frozen = Linear.__call__  # reads kernel, bias and axes

  def __init__(self, lora: Lora, linear: Linear, arrays, seeds: jax.Array | None):
    self.kernel, self.bias, self.axes = linear.kernel, linear.bias, linear.axes
    self.lora_a, self.lora_b = nnx.Param(arrays["lora_a"]), nnx.Param(arrays["lora_b"])
    magnitude = arrays.get("lora_magnitude")
    self.lora_magnitude = None if magnitude is None else nnx.Param(magnitude)
    self.lora_seed = None if seeds is None else nnx.Param(seeds)
    self.scale, self.dropout = lora.scale(arrays["lora_a"].shape[-1]), lora.dropout

  def __call__(self, x: jax.Array) -> jax.Array:
    y, x = self.frozen(x), adapted.flat(x, self.axes)
    if self.lora_seed is not None:
      x = dropout(x, self.dropout, Noise(self.lora_seed[...]))
    a, b = (kernel[...].astype(x.dtype) for kernel in (self.lora_a, self.lora_b))
    update = self.scale * ((x @ a) @ b)
    if self.lora_magnitude is None:
      return y + adapted.as_outputs(update, y)
    kernel = self.kernel[...].reshape(x.shape[-1], -1)
    summed = kernel + self.scale * (self.lora_a[...] @ self.lora_b[...])
    share = self.lora_magnitude[...] / jax.lax.stop_gradient(lengths(summed))
    of_base = x @ kernel.astype(x.dtype)
    return y + adapted.as_outputs(share * (of_base + update) - of_base, y)


def seeds_of(noise: Noise, path: str, layers: tuple[int, ...]) -> jax.Array:
  """uint32 `layers`: a different seed for every module and layer, whatever the generator."""
  own = noise.fold(adapted.number_of(path)).seed
  if jax.dtypes.issubdtype(own.dtype, jax.dtypes.prng_key):
    own = jax.random.bits(own)
  return Noise(own).fold(jnp.arange(math.prod(layers)).reshape(layers)).seed
