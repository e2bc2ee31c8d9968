"""Trivial baselines (unigram, majority class) on the held-out predictions."""

import math
from typing import NamedTuple

import numpy as np


class Baseline(NamedTuple):
  """The scores of a trivial predictor.

  kind: its name in a report, one word. scores: {metric: value} in the order of the report; the
  metric "perplexity" is the exponential of "loss"; None where no baseline exists. unit: the loss's.
  """

  kind: str
  scores: dict[str, float | None]
  unit: str = " (nats)"


def perplexity(loss: float) -> float:
  """exp(loss), infinite beyond the largest float."""
  return math.exp(loss) if loss < 709 else math.inf


def unigram(counts: np.ndarray, batches: list[dict], objective: str) -> Baseline:
  """Cross-entropy (nats) and accuracy of the unigram model with add-one smoothing.

  counts: int `[V]`, how often each token is in the training text. batches: with
  `{objective}_targets` and `_weights`, the predictions that the trained model is measured on.
  """
  log_p = np.log((counts + 1) / (counts.sum() + len(counts)))
  targets = np.concatenate([b[f"{objective}_targets"].ravel() for b in batches])
  weights = np.concatenate([b[f"{objective}_weights"].ravel() for b in batches]).astype(np.float64)
  total = weights.sum()
  loss = float(-(log_p[targets] * weights).sum() / total)
  accuracy = float(((targets == counts.argmax()) * weights).sum() / total)
  return Baseline("unigram", {"loss": loss, "perplexity": perplexity(loss), "accuracy": accuracy})


def majority(batches: list[dict], label: str) -> Baseline:
  """Accuracy of always predicting the more frequent label."""
  labels = np.concatenate([b[label] for b in batches])
  weights = np.concatenate([b["row_weight"] for b in batches]).astype(np.float64)
  counts = np.bincount(labels, weights)
  return Baseline("majority", {"accuracy": float(counts.max() / counts.sum())})
