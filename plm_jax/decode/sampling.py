"""Greedy search and sampling, one token at a time, in a loop under one jit.

`begin` reads the prompts. `advance` stops after `stop` tokens, or when all rows have ended, so that
a terminal can show a growing text, and the cache can grow with it (`writer.grow`). A row's text
depends only on its prompt and its key, not on the rest of the batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from plm_jax.decode.generator import Cache, Generator
from plm_jax.decode.rules import Rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingState:
  """The texts so far. ids_BL: the new tokens, `max_length` columns, the end included. length_B: the
  number of new tokens, without the end. limit_B: its maximum. log_p_B: the sum of log p, the end
  included, before any temperature. seen_BV: bool, the tokens a row contains; None without a
  repetition penalty. The last token is not in the cache yet."""

  ids_BL: jax.Array
  length_B: jax.Array
  limit_B: jax.Array
  done_B: jax.Array
  log_p_B: jax.Array
  step: jax.Array
  keys_B: jax.Array
  seen_BV: jax.Array | None
  cache: Cache


def begin(
  generator: Generator,
  batch: dict,
  prompt_BT: jax.Array,
  limit_B: jax.Array,
  keys_B: jax.Array,
  rules: Rules,
  ends_E: jax.Array,
  columns: int,
) -> SamplingState:
  """Reads the prompts and chooses the first token of each.

  batch: see `Generator.start`. prompt_BT: int, padded on the left; for encoder-decoders the
  beginning of the target. limit_B: most new tokens of a row. ends_E: the tokens that end a text.
  columns: of the cache; with C columns `advance` may stop at up to C - T + 1 tokens.
  """
  rows = len(prompt_BT)
  cache = generator.start(batch, columns)
  logits_BV, cache = generator.extend(prompt_BT, cache)
  seen_BV = seen_tokens(prompt_BT, batch["pad"], logits_BV.shape[-1], rules)
  state = SamplingState(
    ids_BL=jnp.zeros((rows, rules.max_length), jnp.int32),
    length_B=jnp.zeros(rows, jnp.int32),
    limit_B=jnp.minimum(limit_B, rules.max_length),
    done_B=jnp.minimum(limit_B, rules.max_length) < 1,
    log_p_B=jnp.zeros(rows),
    step=jnp.zeros((), jnp.int32),
    keys_B=keys_B,
    seen_BV=seen_BV,
    cache=cache,
  )
  return _with_next_token(state, logits_BV, rules, ends_E)


def advance(
  generator: Generator, state: SamplingState, rules: Rules, ends_E: jax.Array, stop: jax.Array
) -> SamplingState:
  """The state after `stop` tokens, or when all rows have ended."""

  def unfinished(state):
    return (state.step < jnp.minimum(stop, rules.max_length)) & ~state.done_B.all()

  def step(state):
    last_B1 = jax.lax.dynamic_slice_in_dim(state.ids_BL, state.step - 1, 1, axis=1)
    logits_BV, cache = generator.extend(last_B1, state.cache)
    return _with_next_token(dataclasses.replace(state, cache=cache), logits_BV, rules, ends_E)

  return jax.lax.while_loop(unfinished, step, state)


def _with_next_token(
  state: SamplingState, logits_BV: jax.Array, rules: Rules, ends_E: jax.Array
) -> SamplingState:
  """The state with one more token in every row that has not ended."""
  logits_BV = rules.applied(logits_BV, state.seen_BV, ends_E, state.step)
  if rules.temperature:
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, state.step)
    token_B = jax.vmap(jax.random.categorical)(keys_B, rules.drawn_from(logits_BV))
  else:
    token_B = logits_BV.argmax(axis=-1)
  token_B = token_B.astype(jnp.int32)
  row = jnp.arange(len(token_B))
  log_p_B = jax.nn.log_softmax(logits_BV)[row, token_B]
  active_B = ~state.done_B
  ended_B = jnp.isin(token_B, ends_E)
  length_B = state.length_B + (active_B & ~ended_B)
  ids_BL = jax.lax.dynamic_update_slice_in_dim(
    state.ids_BL, jnp.where(active_B, token_B, 0)[:, None], state.step, axis=1
  )
  seen_BV = state.seen_BV
  return dataclasses.replace(
    state,
    ids_BL=ids_BL,
    length_B=length_B,
    done_B=state.done_B | ended_B | (length_B >= state.limit_B),
    log_p_B=state.log_p_B + jnp.where(active_B, log_p_B, 0.0),
    step=state.step + 1,
    seen_BV=None if seen_BV is None else seen_BV.at[row, token_B].set(True),
  )


def seen_tokens(
  prompt_BT: jax.Array, pad_B: jax.Array, vocabulary: int, rules: Rules
) -> jax.Array | None:
  """bool `[B, V]`: the tokens of the prompts, without padding; None without a penalty."""
  if rules.repetition_penalty == 1:
    return None
  real_BT = jnp.arange(prompt_BT.shape[1]) >= pad_B[:, None]
  row = jnp.arange(len(prompt_BT))[:, None]
  return jnp.zeros((len(prompt_BT), vocabulary), bool).at[row, prompt_BT].max(real_BT)
