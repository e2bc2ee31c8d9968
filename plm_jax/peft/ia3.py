"""(IA)3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
(Liu et al. 2022, arXiv:2205.05638).

`softmax(Q (l_k K)^T) (l_v V)` and `(l_ff activation(x W_up)) W_down`: vectors that begin at one
multiply keys, values and the input of the last feed-forward map (section 3.3).

Sources: the paper; huggingface/peft tuners/ia3/layer.py, which multiplies the output with its bias.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.models.layers import Linear
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Added, Peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ia3(Peft):
  """(IA)3: gains of keys, values and feed-forward inputs (Liu et al. 2022).

  outputs: path patterns of linear maps whose outputs are multiplied. inputs: path patterns of those
  whose inputs are multiplied.
  """

  outputs: tuple[str, ...] = ("key", "value")
  inputs: tuple[str, ...] = ("feed_forward/down",)
  merges: ClassVar[bool] = True

  def init(self, key: jax.Array, base: Parameters) -> Added:
    if not self.outputs and not self.inputs:
      raise UserError("peft.outputs and peft.inputs are both empty; name linear maps for one")
    outputs, inputs = (
      adapted.targets(base, names) if names else {} for names in (self.outputs, self.inputs)
    )
    if both := outputs.keys() & inputs.keys():
      raise UserError(
        f"peft.outputs and peft.inputs both fit {min(both)}; one gain for each map is enough"
      )
    gains = {p: {"output_gain": jnp.ones((*s.layers, s.outputs))} for p, s in outputs.items()}
    return gains | {p: {"input_gain": jnp.ones((*s.layers, s.inputs))} for p, s in inputs.items()}

  def apply(self, base: Parameters, added: Added, noise=None) -> Parameters:
    def make(path: str, linear: Linear) -> nnx.Module:
      return ScaledLinear(linear, **added[path]) if path in added else linear

    return adapted.replaced(base, Linear, make)

  def merged(self, base: Parameters, added: Added) -> Parameters:
    """A model of the base's structure that computes the same."""
    linears = adapted.linears(base)

    def make(path: str, linear: Linear) -> Linear:
      if path not in added:
        return linear
      kernel, (name, gain) = adapted.matrix(*linears[path]), *added[path].items()
      if name == "input_gain":
        return adapted.with_kernel(linear, kernel * gain[..., :, None])
      bias = None if linear.bias is None else linear.bias[...].reshape(gain.shape) * gain
      return adapted.with_kernel(linear, kernel * gain[..., None, :], bias)

    return adapted.replaced(base, Linear, make)


class ScaledLinear(nnx.Module):
  """A frozen linear map whose inputs or outputs are multiplied by trained gains."""

  ROLES: ClassVar[dict[str, Role]] = adapted.ROLES
  frozen = Linear.__call__  # reads kernel, bias and axes

  def __init__(self, linear: Linear, input_gain=None, output_gain=None):
    self.kernel, self.bias, self.axes = linear.kernel, linear.bias, linear.axes
    self.input_gain = None if input_gain is None else nnx.Param(input_gain)
    self.output_gain = None if output_gain is None else nnx.Param(output_gain)

  def __call__(self, x: jax.Array) -> jax.Array:
    if self.input_gain is not None:
      x = x * self.input_gain[...].reshape(x.shape[x.ndim - self.axes :]).astype(x.dtype)
    y = self.frozen(x)
    if self.output_gain is None:
      return y
    return y * self.output_gain[...].reshape(y.shape[x.ndim - self.axes :]).astype(y.dtype)
