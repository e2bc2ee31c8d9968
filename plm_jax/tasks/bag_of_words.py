"""Bag-of-words baseline: TF-IDF of words, then multinomial logistic regression.

It reads the models' labelled texts, uncut, as words instead of word pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plm_jax.tasks.labelled_text import Task

PENALTIES = (1.0, 10.0, 100.0)  # C, the inverse of the strength; the dev split chooses one


class Fitted(NamedTuple):
  """predictions int [N] on the test split; penalty: the C that was best on the dev split."""

  predictions: np.ndarray
  penalty: float
  dev_accuracy: float


def fit_bag_of_words(task: Task) -> Fitted:
  """Trains on `task.train` and predicts `task.test`. Deterministic. A class without a training
  example is never predicted; a single class always is."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression

  words = TfidfVectorizer(lowercase=True, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
  train, dev, test = (
    words.fit_transform(task.train.texts),
    *map(words.transform, (task.dev.texts, task.test.texts)),
  )
  if len(known := np.unique(task.train.label)) == 1:
    always = np.full(len(task.test.label), known[0])
    return Fitted(always, PENALTIES[0], float(np.mean(task.dev.label == known[0])))

  def fitted(penalty: float) -> Fitted:
    model = LogisticRegression(C=penalty, max_iter=1000).fit(train, task.train.label)
    accuracy = float(np.mean(model.predict(dev) == task.dev.label))
    return Fitted(model.predict(test), penalty, accuracy)

  return max(map(fitted, PENALTIES), key=lambda fit: fit.dev_accuracy)  # the first of equals
