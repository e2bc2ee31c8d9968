"""Beam search (Graves 2012; Wu et al. 2016, section 7, for comparing texts of different lengths).

Every prompt keeps its K best unfinished texts, the beams, and the K best finished ones. A finished
text scores (sum of log p) / length^penalty, its end counted in both; log p is taken after the
rules, such as the repetition penalty. As in fairseq, and in transformers with early_stopping, a
prompt is done when it has K finished texts; with one beam this is greedy search.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plm_jax.decode.generator import Cache, Generator
from plm_jax.decode.rules import Rules
from plm_jax.decode.sampling import seen_tokens

_NEVER = -1e30  # finite, so that differences are not NaN


class BestTexts(NamedTuple):
  """The K best finished texts of every prompt, best first. ids_BKL: new tokens; length_BK: their
  number, without the end; score_BK: the score for comparison."""

  ids_BKL: jax.Array
  length_BK: jax.Array
  score_BK: jax.Array


class _Search(NamedTuple):
  ids_BKL: jax.Array  # the beams
  log_p_BK: jax.Array
  token_BK: jax.Array  # their last tokens, not in the cache yet
  best: BestTexts
  finished_B: jax.Array  # number of finished texts
  step: jax.Array
  seen_BKV: jax.Array | None
  cache: Cache  # of B * K rows


def search(
  generator: Generator,
  batch: dict,
  prompt_BT: jax.Array,
  limit_B: jax.Array,
  rules: Rules,
  ends_E: jax.Array,
) -> BestTexts:
  """The best texts of every prompt; arguments as in `sampling.begin`."""
  (rows, width), beams = prompt_BT.shape, rules.beams
  limit_B = jnp.minimum(limit_B, rules.max_length)
  cache = generator.start(batch, width + rules.max_length)
  logits_BV, cache = generator.extend(prompt_BT, cache)
  seen_BV = seen_tokens(prompt_BT, batch["pad"], logits_BV.shape[-1], rules)
  empty = jnp.zeros((rows, beams, rules.max_length), jnp.int32)
  none = jnp.full((rows, beams), _NEVER)
  first = _Search(
    ids_BKL=empty,
    log_p_BK=none.at[:, 0].set(0.0),  # all beams equal the prompt: only one may continue
    token_BK=jnp.zeros((rows, beams), jnp.int32),
    best=BestTexts(empty, jnp.zeros((rows, beams), jnp.int32), none),
    finished_B=jnp.where(limit_B < 1, beams, 0),
    step=jnp.zeros((), jnp.int32),
    seen_BKV=None if seen_BV is None else jnp.repeat(seen_BV[:, None], beams, axis=1),
    cache=cache.take(jnp.repeat(jnp.arange(rows), beams)),
  )
  logits_BKV = jnp.repeat(logits_BV[:, None], beams, axis=1)

  def unfinished(state):
    return (state.step < rules.max_length) & (state.finished_B < beams).any()

  def step(state):
    logits, cache = generator.extend(state.token_BK.reshape(-1, 1), state.cache)
    state = state._replace(cache=cache)
    return _extended(state, logits.reshape(rows, beams, -1), limit_B, rules, ends_E)

  first = _extended(first, logits_BKV, limit_B, rules, ends_E)
  return _sorted(jax.lax.while_loop(unfinished, step, first).best)


def _extended(state: _Search, logits_BKV, limit_B, rules: Rules, ends_E) -> _Search:
  """Every beam with one more token: the best that end are finished, the best others are beams."""
  rows, beams, vocabulary = logits_BKV.shape
  flat = logits_BKV.reshape(rows * beams, vocabulary)
  seen = None if state.seen_BKV is None else state.seen_BKV.reshape(rows * beams, vocabulary)
  # The rules change log p, which is not normalised again, as in transformers and fairseq.
  log_p = rules.applied(jax.nn.log_softmax(flat), seen, ends_E, state.step)
  total = state.log_p_BK[..., None] + jnp.maximum(log_p, _NEVER).reshape(logits_BKV.shape)
  # With E end tokens at most K * E candidates end, so that at least K of K * (E + 1) do not.
  candidates = min(beams * (len(ends_E) + 1), beams * vocabulary)
  best_BC, place_BC = jax.lax.top_k(total.reshape(rows, -1), candidates)
  beam_BC, token_BC = place_BC // vocabulary, (place_BC % vocabulary).astype(jnp.int32)
  take = lambda x, at: jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)  # noqa: E731
  ids_BCL = jax.lax.dynamic_update_slice_in_dim(
    take(state.ids_BKL, beam_BC), token_BC[..., None], state.step, axis=2
  )
  ends_BC = jnp.isin(token_BC, ends_E)
  # A text that ends must be among the K best; without room for more tokens, all end.
  last_B = state.step + 1 >= limit_B
  finishes_BC = (ends_BC | last_B[:, None]) & (jnp.arange(candidates) < beams)
  best = _finished(state, ids_BCL, best_BC, ends_BC, finishes_BC, rules)
  going_BC = jnp.where(ends_BC, 2 * _NEVER, best_BC)
  log_p_BK, at_BK = jax.lax.top_k(going_BC, beams)
  beam_BK = take(beam_BC, at_BK)
  rows_BK = jnp.arange(rows)[:, None] * beams + beam_BK
  seen_BKV = state.seen_BKV
  if seen_BKV is not None:
    token = jax.nn.one_hot(take(token_BC, at_BK), vocabulary, dtype=bool)
    seen_BKV = take(seen_BKV, beam_BK) | token
  is_done = state.finished_B >= beams
  return _Search(
    ids_BKL=take(ids_BCL, at_BK),
    log_p_BK=log_p_BK,
    token_BK=take(token_BC, at_BK),
    best=jax.tree.map(
      lambda new, old: jnp.where(is_done.reshape(-1, *[1] * (new.ndim - 1)), old, new),
      best,
      state.best,
    ),
    finished_B=jnp.where(last_B, beams, state.finished_B + finishes_BC.sum(axis=1)),
    step=state.step + 1,
    seen_BKV=seen_BKV,
    cache=state.cache.take(rows_BK.reshape(-1), same_prompts=True),
  )


def _finished(state: _Search, ids_BCL, log_p_BC, ends_BC, finishes_BC, rules: Rules) -> BestTexts:
  """The best of the earlier finished texts and of those that finish now."""
  beams = state.ids_BKL.shape[1]
  length = (state.step + 1).astype(jnp.float32)
  score_BC = jnp.where(finishes_BC, log_p_BC / length**rules.length_penalty, _NEVER)
  length_BC = jnp.broadcast_to(state.step + 1, ends_BC.shape) - ends_BC
  both = BestTexts(
    jnp.concatenate([state.best.ids_BKL, ids_BCL], axis=1),
    jnp.concatenate([state.best.length_BK, length_BC], axis=1),
    jnp.concatenate([state.best.score_BK, score_BC], axis=1),
  )
  return jax.tree.map(lambda x: x[:, :beams], _sorted(both))


def _sorted(texts: BestTexts) -> BestTexts:
  order = jnp.argsort(-texts.score_BK, axis=1, stable=True)
  row = jnp.arange(len(order))[:, None]
  return jax.tree.map(lambda x: x[row, order], texts)
