"""Muon: for the kernels of layers, momentum whose singular values are made equal.

`optax.contrib.muon` has the same iteration, keeps its coefficients in the state of a run, and
corrects the momentum for its bias, as Jordan's code does not. Here a kernel is a matrix
[inputs, outputs], with heads merged, and each layer of a stack is separate.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plm_jax.errors import UserError
from plm_jax.models.parameters import Role, map_roles, stacked_axes
from plm_jax.optim.adamw import AdamW

_STEPS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
_SIZE = 0.2  # root mean square of an update, about that of AdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
  """AdamW, but kernels of layers move along an orthogonal matrix (Jordan et al. 2024).

      m = momentum m + g            u = g + momentum m = U S V^T
      w = w - lr (.2 sqrt(max(inputs, outputs)) U V^T + decay w)

  Five steps of a Newton-Schulz iteration give U V^T, with singular values of .7 to 1.2 and not 1.
  With the factor an update has the size of AdamW's, so that `peak` and `decay` are those of AdamW
  (Liu et al. 2025, section 2.2). Embeddings, heads, biases and the gains of norms have AdamW's
  update. A kernel has one moment instead of two.

  momentum: of the kernels of layers; b1, b2 and eps are those of all other parameters.
  """

  momentum: float = 0.95

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.momentum < 1:
      raise UserError(f"optim.momentum={self.momentum} must be at least 0 and below 1")

  def direction(self) -> optax.GradientTransformation:
    return scale_by_muon(self.momentum, super().direction())


class MuonState(NamedTuple):
  """`m` of the kernels of layers, None elsewhere; the state of all other parameters."""

  m: Any
  rest: optax.OptState


def scale_by_muon(
  momentum: float, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
  """The orthogonal direction of the kernels of layers, and that of `rest` for all others."""

  def parts(tree) -> tuple[Any, Any]:
    """The kernels of layers and the others, each with None, which is no leaf, for the rest."""
    kernels = map_roles(lambda path, role, x: x if _is_moved(role) else None, tree)
    return kernels, map_roles(lambda path, role, x: None if _is_moved(role) else x, tree)

  def init(params):
    kernels, others = parts(params)
    return MuonState(jax.tree.map(jnp.zeros_like, kernels), rest.init(others))

  def update(grads, state, params=None):
    del params
    kernels, others = parts(grads)
    m = jax.tree.map(lambda m, g: momentum * m + g, state.m, kernels)
    ahead = jax.tree.map(lambda m, g: g + momentum * m, m, kernels)
    others, after = rest.update(others, state.rest)
    moved = jax.tree.map(
      lambda kernel, other: other if kernel is None else kernel,
      map_roles(orthogonal, ahead), others, is_leaf=lambda x: x is None,
    )  # fmt: skip
    return moved, MuonState(m, after)

  return optax.GradientTransformation(init, update)


def orthogonal(path: str, role: Role, u: jax.Array) -> jax.Array:
  """.2 sqrt(max(inputs, outputs)) U V^T, approximately, of each matrix U S V^T of `u`."""
  first = stacked_axes(path, role, u.ndim)
  x = u.reshape(*u.shape[:first], math.prod(u.shape[first : first + role.inputs]), -1)
  inputs, outputs = x.shape[-2:]
  if inputs > outputs:
    x = x.mT
  x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
  a, b, c = _QUINTIC
  for _ in range(_STEPS):
    square = x @ x.mT
    x = a * x + (b * square + c * square @ square) @ x
  if inputs > outputs:
    x = x.mT
  return _SIZE * max(inputs, outputs) ** 0.5 * x.reshape(u.shape)


def _is_moved(role: Role) -> bool:
  return role.kind == "kernel" and role.depth == "layer"
