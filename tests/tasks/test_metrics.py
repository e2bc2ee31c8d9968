"""Metrics against values computed by hand."""

import math

import numpy as np
import pytest

from plm_jax.tasks import metrics


def test_matthews_correlation_is_that_of_the_counts():
  targets, labels = list("aaaabbbbbb"), list("aaabbbbbba")  # 3 and 5 right, 1 and 1 wrong
  scores = metrics.classification(targets, labels, "ab")
  assert scores["mcc"] == pytest.approx((3 * 5 - 1) / math.sqrt(4 * 4 * 6 * 6))
  assert scores["accuracy"] == pytest.approx(0.8)
  assert metrics.classification(targets, ["a"] * 10, "ab")["mcc"] == 0


def test_calibration_error_is_the_weighted_gap_of_the_bins():
  correct = np.array([1, 0, 1, 1])
  confidence = np.array([0.55, 0.6, 0.95, 1.0])  # two bins of two: .5 at .575, 1 at .975
  error = metrics.expected_calibration_error(correct, confidence)
  assert error == pytest.approx((2 * 0.075 + 2 * 0.025) / 4)
  assert metrics.expected_calibration_error(np.ones(3), np.ones(3)) == 0


def test_correlations_of_values_and_of_ranks():
  scores = metrics.correlations(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 10]))
  assert scores["spearman"] == pytest.approx(1)
  assert scores["pearson"] == pytest.approx(14 / math.sqrt(5 * 50))
  assert metrics.correlations(np.arange(3.0), np.ones(3)) == {"pearson": 0, "spearman": 0}


def test_the_report_has_every_class_and_the_confusion_matrix():
  report = metrics.confusion(list("aab"), list("abb"), "abc")
  rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line.strip()}
  assert report.splitlines()[1].split() == ["a", "1.000", "0.500", "0.667", "2"]
  assert report.splitlines()[3].split() == ["c", "0.000", "0.000", "0.000", "0"]
  assert rows["a"] == ["1", "1", "0"] and rows["b"] == ["0", "1", "0"]
