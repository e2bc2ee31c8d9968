"""Inputs under transformers' names, checked before a model sees them."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from plm_jax.errors import UserError

# Input -> the ids that it belongs to, whose shape it has.
_LIKE = {
  "attention_mask": "input_ids",
  "token_type_ids": "input_ids",
  "position_ids": "input_ids",
  "decoder_attention_mask": "decoder_input_ids",
}


def checked_inputs(
  raw: Mapping[str, Any], known: Collection[str], limits: Mapping[str, int], positions: int | None
) -> dict[str, np.ndarray]:
  """int32 `[B, T]` each; a missing attention mask is all ones.

  limits: the number of ids of each input. positions: the longest row; None is any. Errors:
  `UserError` for an input that is unknown, missing, or has a wrong shape or id.
  """
  raw = {name: value for name, value in raw.items() if value is not None}
  for name in raw:
    if name not in known:
      raise UserError(f"this model takes no {name}; it takes {', '.join(known)}.")
  if "input_ids" not in raw:
    raise UserError("input_ids is missing.")
  inputs = {name: _integers(name, value) for name, value in raw.items()}
  for name, array in inputs.items():
    like = _LIKE.get(name)
    if like is not None and array.shape != inputs[like].shape:
      raise UserError(
        f"{name} has the shape {list(array.shape)} and {like} {list(inputs[like].shape)}; they "
        "must be the same."
      )
    if like is None and positions is not None and array.shape[1] > positions:
      raise UserError(
        f"{name} is {array.shape[1]} tokens long; the model has {positions} positions."
      )
    limit = 2 if name.endswith("attention_mask") else limits[name]
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
      raise UserError(f"{name} has {low if low < 0 else high}; expected 0 to {limit - 1}.")
  for name in ("input_ids", "decoder_input_ids"):
    mask = name.replace("input_ids", "attention_mask")
    if name in inputs and mask in known:
      inputs.setdefault(mask, np.ones_like(inputs[name]))
  return {name: array.astype(np.int32) for name, array in inputs.items()}


def _integers(name: str, value: Any) -> np.ndarray:
  try:
    array = np.asarray(value)
  except ValueError:
    raise UserError(f"{name} has rows of different lengths; pad them.") from None
  if array.dtype == bool:
    array = array.astype(np.int32)
  if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
    raise UserError(
      f"{name} is {array.dtype} of the shape {list(array.shape)}; expected whole numbers [rows, "
      "tokens], at least one of each."
    )
  return array.astype(np.int64)
