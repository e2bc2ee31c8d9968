"""Beam search (Graves 2012; Wu et al. 2016, section 7, for comparing texts of different lengths).

Every prompt keeps its K best unfinished texts, the beams, and the K best finished ones. A finished
text scores (sum of log p) / length^penalty, its end counted in both; log p is what the rules, such
as a penalty for repetition, leave of it. As in fairseq, and in
transformers with early_stopping, a prompt is done when it has K finished texts; with one beam that
is greedy search.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from plm_jax.decode.generator import Cache, Generator
from plm_jax.decode.rules import Rules
from plm_jax.decode.sampling import seen_tokens

_NEVER = -1e30  # finite, so that differences of it are no NaN


class Found(NamedTuple):
  """The K best texts of every prompt, best first. ids_BKL: their new tokens; length_BK: how many,
  the end not counted; score_BK: as they are compared."""

  ids_BKL: jax.Array
  length_BK: jax.Array
  score_BK: jax.Array


class _Search(NamedTuple):
  ids_BKL: jax.Array  # the beams
  log_p_BK: jax.Array
  token_BK: jax.Array  # their last tokens, which are not in the cache yet
  found: Found
  finished_B: jax.Array  # how many texts have ended
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
) -> Found:
  """The best texts of every prompt; arguments as of `sampling.begin`."""
  (rows, width), beams = prompt_BT.shape, rules.beams
  limit_B = jnp.minimum(limit_B, rules.max_length)
  cache = generator.start(batch, width + rules.max_length)
  logits_BV, cache = generator.extend(prompt_BT, cache)
  seen_BV = seen_tokens(prompt_BT, batch["pad"], logits_BV.shape[-1], rules)
  empty = jnp.zeros((rows, beams, rules.max_length), jnp.int32)
  none = jnp.full((rows, beams), _NEVER)
  first = _Search(
    ids_BKL=empty,
    log_p_BK=none.at[:, 0].set(0.0),  # all beams are the prompt: only one may be continued
    token_BK=jnp.zeros((rows, beams), jnp.int32),
    found=Found(empty, jnp.zeros((rows, beams), jnp.int32), none),
    finished_B=jnp.where(limit_B < 1, beams, 0),
    step=jnp.zeros((), jnp.int32),
    seen_BKV=None if seen_BV is None else jnp.repeat(seen_BV[:, None], beams, axis=1),
    cache=cache.take(jnp.repeat(jnp.arange(rows), beams)),
  )
  logits_BKV = jnp.repeat(logits_BV[:, None], beams, axis=1)

  def goes_on(now):
    return (now.step < rules.max_length) & (now.finished_B < beams).any()

  def one_more(now):
    logits, cache = generator.extend(now.token_BK.reshape(-1, 1), now.cache)
    now = now._replace(cache=cache)
    return _continued(now, logits.reshape(rows, beams, -1), limit_B, rules, ends_E)

  first = _continued(first, logits_BKV, limit_B, rules, ends_E)
  last = jax.lax.while_loop(goes_on, one_more, first)
  return _sorted(last.found)


def _continued(now: _Search, logits_BKV, limit_B, rules: Rules, ends_E) -> _Search:
  """Every beam with one token more: the best that end are finished, the best that do not go on."""
  rows, beams, vocabulary = logits_BKV.shape
  flat = logits_BKV.reshape(rows * beams, vocabulary)
  seen = None if now.seen_BKV is None else now.seen_BKV.reshape(rows * beams, vocabulary)
  # As in transformers and fairseq: what the rules take from one token goes to no other.
  log_p = rules.applied(jax.nn.log_softmax(flat), seen, ends_E, now.step)
  total = now.log_p_BK[..., None] + jnp.maximum(log_p, _NEVER).reshape(logits_BKV.shape)
  # Of 2 K candidates K do not end, if only one token ends a text; of more, some more.
  candidates = min(beams * (len(ends_E) + 1), beams * vocabulary)
  best_BC, place_BC = jax.lax.top_k(total.reshape(rows, -1), candidates)
  beam_BC, token_BC = place_BC // vocabulary, (place_BC % vocabulary).astype(jnp.int32)
  take = lambda x, at: jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)  # noqa: E731
  ids_BCL = jax.lax.dynamic_update_slice_in_dim(
    take(now.ids_BKL, beam_BC), token_BC[..., None], now.step, axis=2
  )
  ends_BC = jnp.isin(token_BC, ends_E)
  # A text that ends must be among the K best itself; where there is no room left, all end.
  last_B = now.step + 1 >= limit_B
  ends_here = (ends_BC | last_B[:, None]) & (jnp.arange(candidates) < beams)
  found = _with(now, ids_BCL, best_BC, ends_BC, ends_here, rules)
  going_BC = jnp.where(ends_BC, 2 * _NEVER, best_BC)
  log_p_BK, at_BK = jax.lax.top_k(going_BC, beams)
  beam_BK = take(beam_BC, at_BK)
  rows_BK = jnp.arange(rows)[:, None] * beams + beam_BK
  seen_BKV = now.seen_BKV
  if seen_BKV is not None:
    token = jax.nn.one_hot(take(token_BC, at_BK), vocabulary, dtype=bool)
    seen_BKV = take(seen_BKV, beam_BK) | token
  is_done = now.finished_B >= beams
  return _Search(
    ids_BKL=take(ids_BCL, at_BK),
    log_p_BK=log_p_BK,
    token_BK=take(token_BC, at_BK),
    found=jax.tree.map(
      lambda new, old: jnp.where(is_done.reshape(-1, *[1] * (new.ndim - 1)), old, new),
      found,
      now.found,
    ),
    finished_B=jnp.where(last_B, beams, now.finished_B + ends_here.sum(axis=1)),
    step=now.step + 1,
    seen_BKV=seen_BKV,
    cache=now.cache.take(rows_BK.reshape(-1), same_prompts=True),
  )


def _with(now: _Search, ids_BCL, log_p_BC, ends_BC, ends_here, rules: Rules) -> Found:
  """The best of what was found before and of what ends now."""
  beams = now.ids_BKL.shape[1]
  length = (now.step + 1).astype(jnp.float32)
  score_BC = jnp.where(ends_here, log_p_BC / length**rules.length_penalty, _NEVER)
  length_BC = jnp.broadcast_to(now.step + 1, ends_BC.shape) - ends_BC
  both = Found(
    jnp.concatenate([now.found.ids_BKL, ids_BCL], axis=1),
    jnp.concatenate([now.found.length_BK, length_BC], axis=1),
    jnp.concatenate([now.found.score_BK, score_BC], axis=1),
  )
  return jax.tree.map(lambda x: x[:, :beams], _sorted(both))


def _sorted(found: Found) -> Found:
  order = jnp.argsort(-found.score_BK, axis=1, stable=True)
  row = jnp.arange(len(order))[:, None]
  return jax.tree.map(lambda x: x[row, order], found)
