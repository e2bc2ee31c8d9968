"""Models with fewer of their layers.

`every_other` is Fan et al. 2020 (arXiv:1909.11556, section 3.3): the layers that stay are at equal
distances, from the first one. `layer_selection` of plm_jax/models/distilbert.py is DistilBERT's,
from the first to the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.models.model import Model, Parameters
from plm_jax.models.parameters import is_stacked, map_roles


def check_layers(config: Model, params: Parameters) -> int:
  """The number of layers. Errors: `UserError` for a model that is not one stack of layers with
  separate parameters."""
  name, layers = type(config).__name__, getattr(config, "layers", None)
  if layers is None or getattr(params, "blocks", None) is None:
    raise UserError(f"a {name} has no single stack of layers, of which some could go")
  if getattr(config, "groups", 1) > 1 or getattr(config, "inner_layers", 1) > 1:
    raise UserError(f"the layers of this {name} share their parameters in groups; none can go")
  return layers


def every_other(layers: int, kept: int) -> list[int]:
  """The numbers of the `kept` layers: 6 -> 3 is [0, 2, 4]. Errors: `UserError` for too many."""
  if not 1 <= kept < layers:
    raise UserError(f"layers{kept} was asked for, and the model has {layers} layers; keep fewer")
  return [number * layers // kept for number in range(kept)]


def with_layers(config: Any, params: Parameters, chosen: Sequence[int]) -> tuple[Any, Parameters]:
  """The configuration and the parameters with the chosen layers alone, in order. Parameters that
  all layers share stay as they are."""

  def part(path: str, role, leaf):
    del role
    return leaf[np.array(chosen)] if is_stacked(path) and len(leaf) == config.layers else leaf

  return dataclasses.replace(config, layers=len(chosen)), map_roles(part, params)
