"""Training batches whose examples share rows: hardly a position holds no token.

The examples of a batch are put into rows that hold the longest example of the data, the longest
first, each into the row with the least room that is enough (best fit). A token attends to its own
example only, whose positions begin at 0, so losses and gradients are those of rows with one example
each (plm_jax/models/packed.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.models.packed import PLACE, PREFIX
from plm_jax.peft.prompt import Prompt


def check_packing(experiment: Any) -> None:
  """Errors: `UserError` for what cannot be trained on packed rows."""
  refused = {
    f"a {type(experiment.model).__name__}": not getattr(experiment.model, "packs", False),
    "prompt tuning, whose prompt stands before a row": isinstance(experiment.peft, Prompt),
    "augmented texts": getattr(getattr(experiment.data, "augment", None), "is_on", False),
    "compute.micro_batches above 1": experiment.compute.micro_batches > 1,
  }
  for what, is_so in refused.items():
    if is_so:
      raise UserError(f"task.packed=true is not for {what}; leave one of the two out.")


def placed(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, int]:
  """The row and the first position, int [B], of examples of these lengths (at most `width`), and
  the number of rows."""
  row, start = np.zeros((2, len(lengths)), np.int64)
  room = np.zeros(0, np.int64)  # of every row
  for example in np.argsort(-lengths, kind="stable"):
    fits = np.flatnonzero(room >= lengths[example])
    if not fits.size:
      fits, room = np.array([len(room)]), np.append(room, width)
    row[example] = best = fits[room[fits].argmin()]
    start[example] = width - room[best]
    room[best] -= lengths[example]
  return row, start, len(room)


def packed(batch: dict[str, np.ndarray], width: int, rows: int, before: int = 0) -> dict:
  """The batch with its packed rows. width, rows: of these. before: rows of the processes before."""
  lengths = batch["length"].astype(np.int64)
  row, start, _ = placed(lengths, width)
  column = np.arange(batch["input_ids"].shape[1])
  place = row[:, None] * width + start[:, None] + np.minimum(column, lengths[:, None] - 1)
  real = column < lengths[:, None]
  numbers = np.empty_like(row)  # 0, 1, ... within each row
  order = np.lexsort((start, row))
  numbers[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
  arrays = {name: batch[name] for name in ("input_ids", "segment_ids") if name in batch}
  arrays["document_ids"] = np.broadcast_to(numbers[:, None], place.shape)
  made = {PREFIX + "length": np.bincount(row, lengths, rows).astype(np.int32)}
  for name, array in arrays.items():
    made[PREFIX + name] = np.full((rows, width), -(name == "document_ids"), np.int32)
    made[PREFIX + name].reshape(-1)[place[real]] = array[real]
  return batch | made | {PLACE: (place + before * width).astype(np.int32)}
