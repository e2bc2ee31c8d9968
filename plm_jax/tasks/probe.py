"""Linear probe: a linear model on the frozen features of a checkpoint, as a baseline.

The features of a text are the mean of the last states over its tokens; of a pair (u, v) they are
[u, v, |u - v|, u * v] (Conneau et al. 2017, section 3.1). The penalty is chosen on the dev split.
For the task `similar` nothing is trained: its baseline is the cosine of the frozen vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plm_jax.runs import Run, RunInfo
from plm_jax.tasks.bag_of_words import best_linear
from plm_jax.tasks.comparison import PROBE, Cell
from plm_jax.tasks.examples import Examples, Prediction, Splits
from plm_jax.tasks.predicting import trained
from plm_jax.tasks.task import Task
from plm_jax.tasks.vectors import Pooled, vectors

_COMPARED = {"similarity", "text"}  # targets of vectors that are compared as they are
PENALTIES = (0.01, 0.1, 1.0)  # C of features with variance 1


class Probe:
  """The probe of a checkpoint on a task that was read. Features are computed once."""

  def __init__(self, source: RunInfo, task: Task):
    self._source, self._task = source, task
    self._vectors: dict[str, np.ndarray] = {}

  @staticmethod
  def fits(splits: Splits) -> bool:
    """Whether the task has labels or a number for each example of one text or two, or compares the
    vectors of texts."""
    targets = splits.train.targets.keys()
    texts = {len(item.texts) for item in splits.train.items[:1]}
    return bool(_COMPARED & targets or ({"label", "labels", "value"} & targets and texts <= {1, 2}))

  def cell(self, splits: Splits, labels: str, seed: int) -> Cell:
    """The scores of a probe that is trained on `splits.train`."""
    return Cell(PROBE, labels, seed, self._task.score(splits.test, self.predictions(splits)))

  def predictions(self, splits: Splits) -> list[Prediction]:
    """For the test split."""
    task: Any = self._task
    if _COMPARED & splits.train.targets.keys():
      columns = self._columns(splits.test, task.pooling)
      return task.from_vectors(splits.test, np.stack(columns, axis=1))
    features = [self._features(split) for split in splits[:3]]
    mean, scale = features[0].mean(axis=0), np.maximum(features[0].std(axis=0), 1e-6)
    scaled = [(each - mean) / scale for each in features]
    return task.from_targets(best_linear(scaled, splits, PENALTIES).predictions)

  def _features(self, split: Examples) -> np.ndarray:
    """float32 [N, features]."""
    columns = self._columns(split)
    if len(columns) == 1:
      return columns[0]
    u, v = columns
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)

  def _columns(self, split: Examples, pooling: str = "mean") -> list[np.ndarray]:
    """The vectors of the first texts, of the second and so on, float32 [N, D]."""
    texts = {text for item in split.items for text in item.texts} - self._vectors.keys()
    if texts:
      model, ordered = trained(Run.load(self._source.path)), sorted(texts)
      rows, _ = vectors(model, [(text,) for text in ordered], Pooled(pooling), self._task.length)
      self._vectors |= dict(zip(ordered, rows))
    return [
      np.stack([self._vectors[item.texts[place]] for item in split.items])
      for place in range(len(split.items[0].texts))
    ]
