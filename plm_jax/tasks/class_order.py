"""The order of a stored classifier's classes.

Published checkpoints of the same labels number them differently: those of MNLI begin with
contradiction (fairseq) or with entailment (GLUE), and labels here are sorted by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from plm_jax.models.model import Parameters
from plm_jax.models.parameters import path_name
from plm_jax.runs import RunInfo

# The parameters with an axis of classes, the last one.
HEADS = ("classes/kernel", "classes/bias", "token_classes/kernel", "token_classes/bias")


def stored_classes(source: RunInfo) -> list[str]:
  """The names of a run's or a published model's labels, in the order of their numbers."""
  public = source.document.get("public") or {}
  names: dict[str, Any] = public.get("config", {}).get("id2label") or {}
  return source.document.get("classes") or [str(names[key]) for key in sorted(names, key=int)]


def in_order(params: Parameters, stored: Sequence[str], wanted: Sequence[str]) -> Parameters:
  """The parameters with their classes moved from the stored order to the wanted one, if both have
  the same names, whatever their case."""
  known, new = ([name.casefold() for name in names] for names in (stored, wanted))
  if known == new or sorted(known) != sorted(new) or len(set(new)) < len(new):
    return params
  order = np.array([known.index(name) for name in new])

  def moved(path, leaf):
    if not path_name(path).endswith(HEADS):
      return leaf
    return jax.jit(lambda x: x[..., order], out_shardings=leaf.sharding)(leaf)

  return jax.tree_util.tree_map_with_path(moved, params)
