"""Mixtures of left-to-right models (Bengio et al. 2003, section 3.2): p is the weighted mean of the
models' probabilities, with the weights under which held-out text is most probable."""

import numpy as np

from plm_jax.data.preparation import Prepared
from plm_jax.errors import UserError
from plm_jax.evaluation.held_out import held_out_rows
from plm_jax.evaluation.likelihood import next_log_p
from plm_jax.evaluation.scores import is_causal
from plm_jax.objectives.clm import CLM
from plm_jax.runs import Run

_ROUNDS = 200
_ENOUGH = 1e-7  # nats per token


def check_mixed(runs: list[Run]) -> None:
  """A `UserError` for runs that do not predict the same tokens from the left."""
  first = runs[0]
  for run in runs:
    if not is_causal(run):
      raise UserError(f"{run.path} predicts no next token, so that it cannot be mixed with others")
    if run.tokenizer.fingerprint != first.tokenizer.fingerprint:
      raise UserError(
        f"{run.path} and {first.path} have different vocabularies, so that they cannot be mixed; "
        "train them on the same text"
      )


def weights_on(runs: list[Run], prepared: Prepared) -> np.ndarray:
  """float64 [models]: the weights for the held-out text of the first run."""
  batches = held_out_rows(runs[0], prepared, (CLM(),))
  rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
  kept = rows["clm_weights"][:, :-1] > 0
  inputs = {name: rows[name] for name in ("input_ids", "segment_ids", "length")}
  return fitted(np.stack([next_log_p(run, inputs)[kept] for run in runs]))


def fitted(log_p_MN: np.ndarray) -> np.ndarray:
  """float64 [models]: the weights under which N tokens are most probable, by expectation
  maximisation. log_p_MN: their log-probabilities under M models."""
  weights = np.full(len(log_p_MN), 1 / len(log_p_MN))
  before = -np.inf
  for _ in range(_ROUNDS):
    mixed = log_mean(log_p_MN, weights)
    weights = (weights * np.exp(log_p_MN - mixed).T).mean(axis=0)
    if mixed.mean() - before < _ENOUGH:
      break
    before = mixed.mean()
  return weights / weights.sum()


def log_mean(log_p_MN: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """float64 [N]: the logarithm of the weighted mean."""
  highest = log_p_MN.max(axis=0)
  return highest + np.log(weights @ np.exp(log_p_MN - highest))
