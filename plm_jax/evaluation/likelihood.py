"""Log-probabilities of single tokens, from the left or from both sides, in batches of one shape."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.data.segments import Rows
from plm_jax.models.compute import Compute
from plm_jax.objectives.objective import token_log_p
from plm_jax.runs import Run

TOKENS = 8192  # per batch, which bounds the memory of its scores


def masked_log_p(run: Run, rows: Rows, row: np.ndarray, position: np.ndarray) -> np.ndarray:
  """log p(token at `position` of `row` | the row with [MASK] there), float64 [N]."""
  model, mask = run.params.masked_lm(), run.tokenizer.vocab.mask

  def log_p(at):
    batch = {name: values[row[at]] for name, values in rows.items()}
    target = batch["input_ids"][np.arange(len(at)), position[at]]
    batch["input_ids"][np.arange(len(at)), position[at]] = mask
    return _log_p_at(model, batch, position[at], target, run.compute)

  return in_batches(log_p, len(row), rows["input_ids"].shape[1])


def in_batches(log_p: Callable, count: int, width: int) -> np.ndarray:
  """`log_p` of the rows 0 to count - 1, float64; the last batch is filled up with the last row."""
  size = max(8, TOKENS // width)
  firsts = range(0, count, size)
  parts = [log_p(np.minimum(np.arange(first, first + size), count - 1)) for first in firsts]
  return np.concatenate(jax.device_get(parts))[:count].astype(np.float64)


@functools.partial(jax.jit, static_argnames="compute")
def _log_p_at(model, batch, position_B, target_B, compute: Compute):
  hidden_BTD = model(batch, compute)
  state_BD = jnp.take_along_axis(hidden_BTD, position_B[:, None, None], axis=1)[:, 0]
  log_p_BV = jax.nn.log_softmax(model.token_logits(state_BD))
  return jnp.take_along_axis(log_p_BV, target_B[:, None], axis=1)[:, 0]


def next_log_p(run: Run, rows: dict[str, np.ndarray]) -> np.ndarray:
  """log p(token at t + 1 | those up to t) of every row, float64 [N, T - 1]; of padding too."""
  model = run.params.encoder()

  def log_p(at):
    return _next_log_p(model, {name: values[at] for name, values in rows.items()}, run.compute)

  return in_batches(log_p, *rows["input_ids"].shape)


@functools.partial(jax.jit, static_argnames="compute")
def _next_log_p(model, batch, compute: Compute):
  hidden = model(batch, compute)
  states_BTD = getattr(hidden, "forward_BTP", hidden)  # of ELMo, the direction that reads the past
  return token_log_p(model, states_BTD[:, :-1], batch["input_ids"][:, 1:])
