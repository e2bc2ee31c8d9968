"""Magnitude pruning of single weights (Han et al. 2015, arXiv:1506.02626, section 3).

The smallest weights of every matrix become 0, the same share in each matrix (Zhu and Gupta 2017,
arXiv:1710.01878, prune layer by layer too, gradually; here in one step). Matrices are the kernels
of linear maps without heads; tables, biases and norms stay whole. In training with `tuning.sparse`
a weight that is 0 stays 0.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from plm_jax.errors import UserError
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role, map_roles, with_roles


def is_pruned(path: str, role: Role) -> bool:
  """Whether pruning changes a parameter."""
  del path
  return role.kind == "kernel" and role.depth != "head"


def pruned(params: Parameters, share: float) -> Parameters:
  """The parameters with the smallest `share` of every matrix set to 0; each layer of a stack has
  separate matrices. Errors: `UserError` for a model without matrices."""
  if not any(is_pruned(path, role) for path, role, _ in with_roles(params)):
    raise UserError("the model has no linear maps, so that there is nothing to prune")

  def smallest(path: str, role: Role, leaf: jax.Array):
    if not is_pruned(path, role):
      return leaf
    rows = leaf.reshape(-1, math.prod(leaf.shape[leaf.ndim - len(role.axes) :]))
    count = int(share * rows.shape[1])
    order = jnp.argsort(jnp.argsort(jnp.abs(rows), axis=1, stable=True), axis=1)
    return jnp.where(order >= count, rows, 0.0).reshape(leaf.shape)

  return map_roles(smallest, params)


def with_zeros(params: Parameters, tree: Parameters) -> Parameters:
  """A tree such as gradients with 0 wherever a weight of the parameters was pruned. None, of a
  parameter that is not trained, stays None."""

  def masked(path: str, role: Role, leaf, weights):
    return jnp.where(weights == 0, 0.0, leaf) if is_pruned(path, role) else leaf

  return map_roles(masked, tree, params)


def sparsity(params: Parameters) -> float:
  """The share of zeros in the matrices that are pruned."""
  leaves = [leaf for path, role, leaf in with_roles(params) if is_pruned(path, role)]
  zeros = sum(int((leaf == 0).sum()) for leaf in leaves)
  return zeros / max(1, sum(leaf.size for leaf in leaves))
