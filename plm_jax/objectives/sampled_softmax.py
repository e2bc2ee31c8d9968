"""Cross-entropy over sampled tokens (Jean et al. 2015, arXiv:1412.2007; TensorFlow,
`sampled_softmax_loss`), for training with a large vocabulary.

The rows of a step draw n tokens together, with replacement, from a log-uniform distribution over
the ranks by frequency:

    p(rank k) = log((k + 2) / (k + 1)) / log(V + 1)

Every different token is one candidate. It is among them with the probability q = 1 - (1 - p)^n, the
expected count of TensorFlow's sampler of unique tokens. The scores of candidates and of the target
are lowered by log q. A candidate that is the target of a position is left out there.
"""

from __future__ import annotations

import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.objectives.objective import Terms, cross_entropy

DRAWS = 84  # the stream of draws
_OUT = -1e9  # the score of no candidate
_ranks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # vocabulary -> ids, probabilities


def refuse_negative(objective) -> None:
  """A `UserError` for a number of draws below 0."""
  if objective.sampled < 0:
    raise UserError(f"objectives.{objective.name}.sampled={objective.sampled} must be at least 0")


def by_rank(vocab) -> tuple[np.ndarray, np.ndarray]:
  """int32 `[V]`, the tokens by falling count; float32 `[V]`, the probability of each token."""
  if vocab not in _ranks:
    counts = np.zeros(vocab.size) if vocab.counts is None else np.asarray(vocab.counts)
    order = np.argsort(-counts, kind="stable").astype(np.int32)
    ranks = np.arange(len(order))
    p = np.empty(len(order), np.float32)
    p[order] = np.log((ranks + 2) / (ranks + 1)) / math.log(len(order) + 1)
    _ranks[vocab] = order, p
  return _ranks[vocab]


def sampled(targets_BT: np.ndarray, draws, vocab, number: int) -> dict[str, np.ndarray]:
  """The arrays of a batch for `sampled_terms`: `candidates` int32 `[B, number]`, and `candidate_p`
  and `target_p`, the probabilities of the candidates and of the targets."""
  order, p = by_rank(vocab)
  uniform = draws.uniform(DRAWS, number).astype(np.float64)
  rank = np.exp(uniform * math.log(len(order) + 1)).astype(np.int64) - 1
  candidates = order[np.minimum(rank, len(order) - 1)]
  return {"candidates": candidates, "candidate_p": p[candidates], "target_p": p[targets_BT]}


def sampled_terms(model, hidden_BTD, targets_BT, weights_BT, batch, target_p_BT) -> Terms:
  """ "loss" of the sampled tokens; "accuracy" counts the targets that score above all of them.

  The model's `output_at(ids)` gives the rows of the output's table, and its biases or None.
  """
  if not hasattr(model, "output_at"):
    raise UserError(
      f"a sampled softmax needs the rows of the output's table, which a {type(model).__name__} "
      "does not give; set sampled=0 of the objective"
    )
  ids_S, p_S = batch["candidates"].reshape(-1), batch["candidate_p"].reshape(-1)
  place_S = jnp.argsort(ids_S)
  ids_S, p_S = ids_S[place_S], p_S[place_S]
  repeated_S = jnp.diff(ids_S, prepend=-1) == 0
  draws = len(ids_S)
  scores_BTS = _scores(model, hidden_BTD, ids_S) - _log_q(p_S, draws)
  is_out = repeated_S | (ids_S == targets_BT[..., None])
  scores_BTS = jnp.where(is_out, _OUT, scores_BTS)
  rows_BTD, bias_BT = model.output_at(targets_BT)
  target_BT = (hidden_BTD.astype(jnp.float32) * rows_BTD).sum(axis=-1)
  target_BT = target_BT + (0 if bias_BT is None else bias_BT) - _log_q(target_p_BT, draws)
  logits = jnp.concatenate([target_BT[..., None], scores_BTS], axis=-1)
  return cross_entropy(logits, jnp.zeros_like(targets_BT), weights_BT)


def _scores(model, hidden_BTD: jax.Array, ids_S: jax.Array) -> jax.Array:
  """float32 `[B, T, S]`: the scores of some tokens."""
  rows_SD, bias_S = model.output_at(ids_S)
  rows_SD = rows_SD.astype(hidden_BTD.dtype)
  scores_BTS = jnp.einsum("btd,sd->bts", hidden_BTD, rows_SD, preferred_element_type=jnp.float32)
  return scores_BTS if bias_S is None else scores_BTS + bias_S


def _log_q(p: jax.Array, draws: int) -> jax.Array:
  """log(1 - (1 - p)^draws)."""
  return jnp.log(-jnp.expm1(draws * jnp.log1p(-p)))
