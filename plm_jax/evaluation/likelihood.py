"""Log-probabilities of single tokens, from the left or from both sides, in batches of one shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.models.compute import Compute
from plm_jax.objectives.objective import token_log_p
from plm_jax.runs import Run

TOKENS = 8192  # per batch, which bounds the memory of its scores


def masked_log_p(
  run: Run, rows: dict[str, np.ndarray], row: np.ndarray, position: np.ndarray
) -> np.ndarray:
  """log p(token at `position` of `row` | the row with [MASK] there), float64 [N]."""
  model, mask = run.params.masked_lm(), run.tokenizer.vocab.mask
  size = max(8, TOKENS // rows["input_ids"].shape[1])
  parts = []
  for first in range(0, len(row), size):
    at = np.minimum(np.arange(first, first + size), len(row) - 1)  # the last batch is filled up
    batch = {name: values[row[at]] for name, values in rows.items()}
    target = batch["input_ids"][np.arange(size), position[at]]
    batch["input_ids"][np.arange(size), position[at]] = mask
    parts.append(_log_p_at(model, batch, position[at], target, run.compute))
  return np.concatenate(jax.device_get(parts))[: len(row)].astype(np.float64)


@functools.partial(jax.jit, static_argnames="compute")
def _log_p_at(model, batch, position_B, target_B, compute: Compute):
  hidden_BTD = model(batch, compute)
  state_BD = jnp.take_along_axis(hidden_BTD, position_B[:, None, None], axis=1)[:, 0]
  log_p_BV = jax.nn.log_softmax(model.token_logits(state_BD))
  return jnp.take_along_axis(log_p_BV, target_B[:, None], axis=1)[:, 0]


def next_log_p(run: Run, rows: dict[str, np.ndarray]) -> np.ndarray:
  """log p(token at t + 1 | those up to t) of every row, float64 [N, T - 1]; of padding too."""
  count, width = rows["input_ids"].shape
  size = max(8, TOKENS // width)
  parts = []
  for first in range(0, count, size):
    at = np.minimum(np.arange(first, first + size), count - 1)
    batch = {name: values[at] for name, values in rows.items()}
    parts.append(_next_log_p(run.params.encoder(), batch, run.compute))
  return np.concatenate(jax.device_get(parts))[:count].astype(np.float64)


@functools.partial(jax.jit, static_argnames="compute")
def _next_log_p(model, batch, compute: Compute):
  next_BT = batch["input_ids"][:, 1:]
  return token_log_p(model, model(batch, compute)[:, :-1], next_BT)
