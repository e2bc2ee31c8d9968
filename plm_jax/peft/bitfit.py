"""BitFit: Simple Parameter-efficient Fine-tuning (Ben Zaken et al. 2022, arXiv:2106.10199).

All biases are trained, those of norms included, and nothing is added (section 3).
"""

import dataclasses
from typing import ClassVar

import jax

from plm_jax.errors import UserError
from plm_jax.models.model import Parameters
from plm_jax.models.parameters import Role, with_roles
from plm_jax.peft.adapted import Added, Peft


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFit(Peft):
  """BitFit: only the biases are trained (Ben Zaken et al. 2022)."""

  merges: ClassVar[bool] = True

  def init(self, key: jax.Array, base: Parameters) -> Added:
    if not any(role.kind == "bias" and role.depth != "head" for _, role, _ in with_roles(base)):
      raise UserError(
        "peft=BitFit trains nothing of this model: it has no biases; take another method"
      )
    return {}

  def trains(self, path: str, role: Role) -> bool:
    return role.kind == "bias"

  def merged(self, base: Parameters, added: Added) -> Parameters:
    return base
