"""Choosing the positions to predict and replacing their tokens, for whole blocks of rows at once.

Source: google-research/bert (eedf571) create_pretraining_data.py, `create_masked_lm_predictions`.

    predictions(length, rate, max_predictions) -> P            static number of prediction slots
    candidates(input_ids, vocab) -> bool [B, T]                all but [PAD], [CLS], [SEP]
    corrupt_tokens(input_ids, length, candidate_mask, draws, vocab, *, rate, mask, same, random,
                   max_predictions, unit) -> Corrupted(input_ids, positions, targets, weights)

Static masking is the same function with draws of `epoch % copies`: `draws.repeat(copies)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from plm_jax.data.draws import Draws
  from plm_jax.data.tokenizers import Vocab


class Corrupted(NamedTuple):
  """Rows after corruption; slots beyond a row's own number have position 0, target 0, weight 0."""

  input_ids: np.ndarray  # int32 [B, T], a new array
  positions: np.ndarray  # int32 [B, P], ascending within a row
  targets: np.ndarray  # int32 [B, P], the tokens before corruption
  weights: np.ndarray  # float32 [B, P], 1 for a prediction, 0 for padding


def predictions(length: int, rate: float, max_predictions: int | None = None) -> int:
  """P, the static number of slots for rows of `length` tokens: 19 at 128, 77 at 512 (rate .15)."""
  budget = max(1, round(length * rate))
  return budget if max_predictions is None else min(max_predictions, budget)


def candidates(input_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
  """bool [B, T]: positions that may be predicted; everything but padding, [CLS] and [SEP]."""
  raise NotImplementedError


def corrupt_tokens(
  input_ids: np.ndarray,
  length: np.ndarray,
  candidate_mask: np.ndarray,
  draws: Draws,
  vocab: Vocab,
  *,
  rate: float = 0.15,
  mask: float = 0.8,
  same: float = 0.1,
  random: float = 0.1,
  max_predictions: int | None = None,
  unit: Literal["token", "whole_word"] = "token",
) -> Corrupted:
  """Selects and replaces tokens; `length` int [B] counts [CLS] and [SEP], not padding."""
  raise NotImplementedError
