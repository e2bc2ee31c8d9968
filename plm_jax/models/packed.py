"""Several examples in one row of a model, and their states as if each had a row of its own.

A packed batch also has `packed/input_ids`, `packed/document_ids` and, if examples have them,
`packed/segment_ids` int32 `[R, W]`, `packed/length` int32 `[R]`, and `packed/place` int32 `[B, T]`:
the place in `[R * W]` of every position of the examples. The model reads the packed rows, heads and
losses the examples (plm_jax/tasks/packed_rows.py packs them).
"""

from collections.abc import Callable
from typing import Any

import jax

PREFIX = "packed/"
PLACE = PREFIX + "place"


def is_packed(batch: dict) -> bool:
  return PLACE in batch


def states_of(model: Callable, batch: dict, *how) -> Any:
  """`model(batch, *how)`, arrays `[B, T, ...]`; those of a packed batch are read from its rows."""
  if not is_packed(batch):
    return model(batch, *how)
  rows = {name.removeprefix(PREFIX): x for name, x in batch.items() if name.startswith(PREFIX)}
  states = model(rows, *how)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[batch[PLACE]], states)
