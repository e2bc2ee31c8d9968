"""The objectives of the tasks: which rows count, and objectives of earlier runs."""

import dataclasses

import numpy as np
import pytest

from plm_jax import overrides
from plm_jax.tasks.choose import Choice
from plm_jax.tasks.classification import Classification
from plm_jax.tasks.regress import Regression
from plm_jax.tasks.spans import SpanLoss
from plm_jax.tasks.tag import NO_TAG, TokenClassification
from plm_jax.tasks.writing import Writing

# As config.json had them before they shared a base: the weight was the last field.
STORED = {
  "classification.Classification": {
    "labels": 3, "label_smoothing": 0.1, "class_weights": [1.0, 2.0, 3.0], "balanced": True,
    "soft": 0.4, "temperature": 3.0, "weight": 0.5,
  },
  "regress.Regression": {"weight": 0.5},
  "choose.Choice": {"together": 4, "weight": 0.5},
  "tag.TokenClassification": {"tags": 7, "weight": 0.5},
  "spans.SpanLoss": {"weight": 0.5},
  "writing.Writing": {"label_smoothing": 0.1, "weight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_an_objective_of_an_earlier_config_json_is_read(name):
  stored = {"type": f"plm_jax.tasks.{name}", **STORED[name]}
  objective = overrides.from_json(stored)
  assert objective.weight == 0.5
  assert {field.name for field in dataclasses.fields(objective)} == set(STORED[name])
  assert overrides.to_json(objective) == stored


@pytest.mark.parametrize(
  ("objective", "values", "count"),
  [
    (Classification(labels=2, class_weights=(1.0, 3.0)), {"label": [1, 0, 1]}, 4),
    (Regression(), {"value": [0.0, 1.0, 2.0]}, 2),
    (Choice(together=1), {"label": [0, 0, 0]}, 2),
    (TokenClassification(tags=2), {"tag": [[NO_TAG, 1], [0, 1], [0, 0]]}, 3),
    (SpanLoss(), {"span_weight": [0, 1, 1]}, 1),
    (Writing(), {"targets": [[-1, 5], [5, 6], [7, 8]]}, 3),
  ],
)
def test_rows_that_fill_up_a_batch_do_not_count(objective, values, count):
  batch = {name: np.array(array) for name, array in values.items()}
  batch |= {"row_weight": np.array([1, 1, 0], np.float32)}
  assert float(objective.count(batch)) == count
