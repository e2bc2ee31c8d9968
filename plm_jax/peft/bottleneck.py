"""Adapters: small bottleneck layers after the sublayers of a frozen Transformer.

`h + W_up activation(h W_down + b_down) + b_up`, where h is the output of a sublayer before it is
added to the residual stream. Houlsby et al. 2019 (arXiv:1902.00751) put one after attention and one
after feed-forward, and train the norms (section 2.1); Pfeiffer et al. 2021 (arXiv:2005.00247) put
one after feed-forward only.

Sources: the papers; google-research/adapter-bert modeling.py `feedforward_adapter` (64 wide, GELU,
kernels of standard deviation 1e-3).
Deviations: the adapter comes before the sublayer's dropout, where theirs comes after it; Pfeiffer's
reads the sublayer's output, where theirs reads the norm of the sum.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from plm_jax.models.activations import Activation, activate
from plm_jax.models.layers import Linear, truncated_normal
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role
from plm_jax.peft import adapted
from plm_jax.peft.adapted import Added, Peft

STDDEV = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(Peft):
  """Adapters after sublayers (Houlsby et al. 2019); Pfeiffer et al. 2021 have one for each layer.

  width: of the bottleneck. activation: within it. targets: path patterns of the linear maps that
  end the sublayers. norms: also train the norms.
  """

  width: int = 64
  activation: Activation = "gelu_tanh"
  targets: tuple[str, ...] = ("output", "feed_forward/down")
  norms: bool = True

  def __post_init__(self):
    adapted.check_sizes(1, width=self.width)

  def init(self, key: jax.Array, base: Parameters) -> Added:
    added = {}
    for path, sizes in adapted.targets(base, self.targets).items():
      down, up = jax.random.split(jax.random.fold_in(key, adapted.number_of(path)))
      inwards = (*sizes.layers, sizes.outputs, self.width)
      outwards = (*sizes.layers, self.width, sizes.outputs)
      added[path] = {
        "adapter_down": truncated_normal(down, inwards, STDDEV),
        "adapter_down_bias": jnp.zeros((*sizes.layers, self.width)),
        "adapter_up": truncated_normal(up, outwards, STDDEV),
        "adapter_up_bias": jnp.zeros((*sizes.layers, sizes.outputs)),
      }
    return added

  def apply(self, base: Parameters, added: Added, noise=None) -> Parameters:
    def make(path: str, linear: Linear) -> nnx.Module:
      return AdaptedLinear(linear, self.activation, added[path]) if path in added else linear

    return adapted.replaced(base, Linear, make)

  def trains(self, path: str, role: Role) -> bool:
    return self.norms and path.split("/")[-2].endswith("norm") and role.depth != "head"


PFEIFFER = Bottleneck(activation="relu", targets=("feed_forward/down",), norms=False)


class AdaptedLinear(nnx.Module):
  """A frozen linear map, and a bottleneck layer that reads its output."""

  ROLES: ClassVar[dict[str, Role]] = adapted.ROLES
  frozen = Linear.__call__  # reads kernel, bias and axes

  def __init__(self, linear: Linear, activation: Activation, arrays):
    self.kernel, self.bias, self.axes = linear.kernel, linear.bias, linear.axes
    self.activation = activation
    self.adapter_down = nnx.Param(arrays["adapter_down"])
    self.adapter_down_bias = nnx.Param(arrays["adapter_down_bias"])
    self.adapter_up = nnx.Param(arrays["adapter_up"])
    self.adapter_up_bias = nnx.Param(arrays["adapter_up_bias"])

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.frozen(x)
    h = adapted.flat(y, y.ndim - (x.ndim - self.axes))
    down, down_bias, up, up_bias = (
      array[...].astype(h.dtype)
      for array in (
        *(self.adapter_down, self.adapter_down_bias),
        *(self.adapter_up, self.adapter_up_bias),
      )
    )
    inner = activate(h @ down + down_bias, self.activation)
    return y + adapted.as_outputs(inner @ up + up_bias, y)
