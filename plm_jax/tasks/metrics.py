"""Metrics of predictions, and their names in tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NAMES = {
  "macro_f1": "macro-F1",
  "micro_f1": "micro-F1",
  "subset_accuracy": "subset accuracy",
  "mcc": "MCC",
  "ece": "ECE",
  "pearson": "Pearson",
  "spearman": "Spearman",
  "f1": "F1",
  "em": "EM",
  "bleu": "BLEU",
  "chrf": "chrF",
  "rouge1": "ROUGE-1",
  "rouge2": "ROUGE-2",
  "rouge_l": "ROUGE-L",
  "exact": "exact match",
  "mrr": "MRR",
  "recall1": "recall@1",
  "recall10": "recall@10",
  "ndcg10": "nDCG@10",
  "accuracy_mm": "accuracy, mismatched",
}


def classification(targets: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> dict:
  """Accuracy, macro-F1, the unweighted mean over all classes of 2 P R / (P + R), and Matthews'
  correlation (Matthews 1975; for several classes Gorodkin 2004). A class without a correct
  prediction has F1 0."""
  from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

  settings = {"labels": list(classes), "average": "macro", "zero_division": 0}
  return {
    "accuracy": float(accuracy_score(targets, labels)),
    "macro_f1": float(f1_score(targets, labels, **settings)),
    "mcc": float(matthews_corrcoef(targets, labels)),
  }


def label_sets(targets_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
  """Of several labels per example, bool: F1 of all decisions together, the mean of the labels' F1,
  and the share of examples with exactly the true labels."""
  from sklearn.metrics import accuracy_score, f1_score

  micro, macro = (
    float(f1_score(targets_NC, labels_NC, average=mean, zero_division=0))
    for mean in ("micro", "macro")
  )
  exact = float(accuracy_score(targets_NC, labels_NC))
  return {"micro_f1": micro, "macro_f1": macro, "subset_accuracy": exact}


def best_f1_threshold(scores_NC: np.ndarray, targets_NC: np.ndarray) -> float:
  """The threshold whose labels, those with at least that score, have the best micro-F1; half way to
  the next lower score. 0.5 if no example has a label."""
  order = np.argsort(-scores_NC, axis=None, kind="stable")
  scores, true = scores_NC.ravel()[order], targets_NC.ravel()[order] > 0
  if not true.any():
    return 0.5
  f1 = 2 * np.cumsum(true) / (np.arange(1, len(true) + 1) + true.sum())
  is_last = np.append(scores[:-1] > scores[1:], True)  # equal scores are on one side
  best = int(np.where(is_last, f1, -1).argmax())
  lower = scores[best + 1] if best + 1 < len(scores) else 0.0
  return float((scores[best] + lower) / 2)


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, bins: int = 10):
  """The mean of |accuracy - confidence| over bins of equal width, weighted by their predictions
  (Guo et al. 2017, arXiv:1706.04599, section 2)."""
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(place, correct.astype(float) - confidence, bins)
  return float(np.abs(gaps).sum() / len(correct))


def retrieval(ranks: np.ndarray) -> dict[str, float]:
  """Of queries with one relevant text each, at `ranks` from 1: the mean of 1 / rank, the share that
  is first or among ten, and the normalised discounted gain of ten, `1 / log2(1 + rank)`."""
  gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
  return {
    "mrr": float((1 / ranks).mean()),
    "recall1": float((ranks <= 1).mean()),
    "recall10": float((ranks <= 10).mean()),
    "ndcg10": float(gains.mean()),
  }


def correlations(targets: np.ndarray, values: np.ndarray) -> dict[str, float]:
  """Pearson's and Spearman's correlation; 0 where one side is constant."""
  from scipy.stats import pearsonr, spearmanr

  if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(values) == 0:
    return {"pearson": 0.0, "spearman": 0.0}
  pearson, spearman = pearsonr(targets, values), spearmanr(targets, values)
  return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}


def by_class(true: Any, predicted: Any, classes: Sequence[str], **settings: Any) -> list[str]:
  """Precision, recall and F1 of every class; bool [N, C] if an example has several."""
  from sklearn.metrics import precision_recall_fscore_support

  columns: Any = precision_recall_fscore_support(true, predicted, zero_division=0, **settings)
  width = min(30, max(len(name) for name in (*classes, "class")))
  lines = [f"{'class':{width}}  precision  recall    F1  examples"]
  for name, row in zip(classes, np.transpose(columns), strict=True):
    precision, recall, f1, support = row
    lines.append(f"{name[:30]:{width}}{precision:11.3f}{recall:8.3f}{f1:6.3f}{int(support):10,}")
  return lines


def confusion(targets: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> str:
  """Precision, recall and F1 of every class; for up to 12 classes also the confusion matrix."""
  from sklearn.metrics import confusion_matrix

  lines = by_class(targets, labels, classes, labels=list(classes))
  width = min(30, max(len(name) for name in (*classes, "class")))
  if len(classes) <= 12:
    matrix = confusion_matrix(targets, labels, labels=list(classes))
    heads = "".join(f"{name[:10]:>11}" for name in classes)
    lines += ["", f"{'true, predicted:':{max(width, 16)}}{heads}"]
    for name, row in zip(classes, matrix, strict=True):
      lines.append(f"{name[:30]:{max(width, 16)}}" + "".join(f"{count:11,}" for count in row))
  return "\n".join(lines)
