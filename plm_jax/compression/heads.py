"""Heads of attention: their importance, and models without the least important ones.

The importance of head h is the expected sensitivity of the loss to a gate xi_h at its output,
`I_h = E_x |dL(x) / dxi_h|` at xi = 1, divided by the l2 norm over the heads of a layer (Michel et
al. 2019, arXiv:1905.10650, section 4.1, equation 2).
Deviation: every layer keeps as many heads as any other, so that the heads are really removed, and
not only masked; the paper removes heads in the order of all layers together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.models.attention import Attention
from plm_jax.models.config import TransformerConfig
from plm_jax.models.layers import Linear
from plm_jax.models.model import Model, Parameters
from plm_jax.models.parameters import Role, map_roles
from plm_jax.peft.adapted import modules, replaced

OUTPUT = "blocks/attention/output"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GatedLinear:
  """The output projection of attention, with a factor for each head."""

  ROLES: ClassVar[dict[str, Role]] = {"head_gate": Role(("heads",), "gain", "layer")}

  linear: Linear
  head_gate: jax.Array  # [*layers, N]

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear(x * self.head_gate[..., None].astype(x.dtype))


def gated(params: Parameters, gates_LN: jax.Array) -> Parameters:
  """The parameters with gates: a row for each layer, or for each group of layers with the same
  parameters."""

  def gate(path: str, linear: Linear):
    return GatedLinear(linear, gates_LN) if path == OUTPUT else linear

  return replaced(params, Linear, gate)


def check_heads(config: Model, params: Parameters) -> int:
  """The number of heads of a layer. Errors: `UserError` for a model whose heads are not those of
  one stack of layers, one key head for each query head, and for a model with one head."""
  name = type(config).__name__
  places = [path for path in modules(params, Attention) if path != "blocks/attention"]
  if not isinstance(config, TransformerConfig) or places or OUTPUT not in modules(params, Linear):
    raise UserError(f"a {name} has no single stack of layers with attention, of which heads go")
  if config.key_heads != config.heads:
    raise UserError(
      f"the {config.heads} heads of this {name} share {config.key_heads} keys and values, so that "
      "single heads cannot be removed"
    )
  if config.heads < 2:
    raise UserError(f"this {name} has one head in a layer, and needs it")
  return config.heads


Loss = Callable[[Parameters, dict], jax.Array]
"""The loss of a model on a batch of one row."""


def importance(params: Parameters, heads: int, batches: list[dict], loss: Loss) -> np.ndarray:
  """float64 `[L, N]`: I_h on all rows of the batches. Rows of weight 0 do not count."""
  entries = modules(params, Linear)[OUTPUT].kernel.shape[0]
  gates_LN = jnp.ones((entries, heads))

  @jax.jit
  def sensitivities(params, batch):
    def of_row(row):
      row = jax.tree.map(lambda x: x[None], row)
      return jax.grad(lambda gates: loss(gated(params, gates), row))(gates_LN)

    weight_B = batch["row_weight"]
    return jnp.einsum("B,BLN->LN", weight_B, jnp.abs(jax.vmap(of_row)(batch))), weight_B.sum()

  sums = [jax.device_get(sensitivities(params, batch)) for batch in batches]
  total = sum(np.asarray(sum_LN, np.float64) for sum_LN, _ in sums)
  mean = total / sum(float(count) for _, count in sums)
  return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30)


def without_heads(config: Any, params: Parameters, kept_LN: np.ndarray) -> tuple[Any, Parameters]:
  """The configuration and the parameters with the kept heads alone. kept_LN: bool, equally many in
  every row."""
  (count,) = set(kept_LN.sum(1).tolist())
  chosen_LK = np.nonzero(kept_LN)[1].reshape(len(kept_LN), count)

  def part(path: str, role: Role, leaf: jax.Array):
    if "heads" not in role.axes or "blocks/attention/" not in path:
      return leaf
    axis = 1 + role.axes.index("heads")  # after the axis of layers
    index = chosen_LK.reshape(-1, *[count if a == axis else 1 for a in range(1, leaf.ndim)])
    return jnp.take_along_axis(leaf, index, axis)

  smaller = dataclasses.replace(config, heads=count, head_width=config.width_of_heads)
  if config.kv_heads is not None:
    smaller = dataclasses.replace(smaller, kv_heads=count)
  return smaller, map_roles(part, params)


def most_important(importance_LN: np.ndarray, count: int) -> np.ndarray:
  """bool `[L, N]`: the `count` most important heads of every layer."""
  order = np.argsort(np.argsort(-importance_LN, axis=1, kind="stable"), axis=1)
  return order < count
