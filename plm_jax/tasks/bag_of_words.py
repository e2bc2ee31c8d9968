"""Bag-of-words baseline: TF-IDF of words, then a linear model.

It reads the models' labelled texts, uncut, as words instead of word pieces. Of a pair, the words of
each text and those that both have are separate features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from plm_jax.tasks import metrics
from plm_jax.tasks.examples import Examples, Splits

PENALTIES = (1.0, 10.0, 100.0)  # C, the inverse of the strength; the dev split chooses one


class Fitted(NamedTuple):
  """predictions [N] on the test split: classes, or numbers; of several labels bool [N, labels].
  penalty: the C that was best on the dev split; dev: its accuracy there, minus its squared error,
  or its micro-F1."""

  predictions: np.ndarray
  penalty: float
  dev: float


def best_bag_of_words(splits: Splits) -> Fitted:
  """Multinomial logistic regression of the target "label", one logistic regression for each of
  "labels", or ridge regression of "value", trained on `splits.train`. Deterministic. A class
  without a training example is never predicted."""
  return best_linear(_features(splits), splits, PENALTIES)


def best_linear(features: Sequence[Any], splits: Splits, penalties: Sequence[float]) -> Fitted:
  """The linear model with the penalty that is best on the dev split. features: of train, dev and
  test, [examples, features]. With one class in training it is always predicted."""
  from sklearn.linear_model import LogisticRegression, Ridge

  if "labels" in splits.train.targets:
    fits = (_fitted_labels(features, splits, penalty) for penalty in penalties)
    return max(fits, key=lambda fit: fit.dev)
  train, dev, test = features
  is_number = "value" in splits.train.targets
  target = "value" if is_number else "label"
  known, chosen_by = splits.train.targets[target], splits.dev.targets[target]

  def fitted(penalty: float) -> Fitted:
    model: Any = Ridge(1 / penalty) if is_number else LogisticRegression(C=penalty, max_iter=1000)
    model.fit(train, known)
    errors = model.predict(dev) - chosen_by
    dev_score = -np.mean(errors**2) if is_number else np.mean(errors == 0)
    return Fitted(model.predict(test), penalty, float(dev_score))

  if not is_number and len(np.unique(known)) < 2:
    same = np.full(len(splits.test), known[0])
    return Fitted(same, penalties[0], float(np.mean(chosen_by == known[0])))
  return max(map(fitted, penalties), key=lambda fit: fit.dev)  # the first of equals


def _fitted_labels(features: Sequence[Any], splits: Splits, penalty: float) -> Fitted:
  """A linear model for each label, and the threshold that is best on the dev split."""
  from sklearn.linear_model import LogisticRegression

  train, dev, test = features
  known, true = (split.targets["labels"] > 0 for split in splits[:2])
  p_dev, p_test = (np.tile(known.all(axis=0) * 1.0, (x.shape[0], 1)) for x in (dev, test))
  for label in np.flatnonzero(known.any(axis=0) & ~known.all(axis=0)):
    model = LogisticRegression(C=penalty, max_iter=1000).fit(train, known[:, label])
    p_dev[:, label], p_test[:, label] = (model.predict_proba(x)[:, 1] for x in (dev, test))
  threshold = metrics.best_f1_threshold(p_dev, true)
  micro = metrics.label_sets(true, p_dev >= threshold)["micro_f1"]
  return Fitted(p_test >= threshold, penalty, micro)


def tfidf_vectors(splits: Splits) -> tuple[Any, Any]:
  """TF-IDF of the first and of the second texts of the test split, of length 1: sparse arrays
  [examples, words]."""
  from scipy.sparse import csr_array

  words = _vectorizer()
  try:
    words.fit(text for item in splits.train.items for text in item.texts)
  except ValueError:  # there are only marks
    none = csr_array((len(splits.test), 1))
    return none, none
  first, second = ([item.texts[place] for item in splits.test.items] for place in (0, 1))
  return csr_array(words.transform(first)), csr_array(words.transform(second))


def _vectorizer() -> Any:
  from sklearn.feature_extraction.text import TfidfVectorizer

  return TfidfVectorizer(lowercase=True, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")


def _features(splits: Splits) -> list[Any]:
  """Of train, dev and test: sparse [examples, features]."""
  from scipy.sparse import hstack

  parts = []
  for number in range(len(splits.train.items[0].texts)):
    words = _vectorizer()
    texts = [[item.texts[number] for item in split.items] for split in splits[:3]]
    parts.append([words.fit_transform(texts[0]), *map(words.transform, texts[1:])])
  if len(parts) > 1:
    parts.append([_shared_words(split) for split in splits[:3]])
  return [hstack(columns).tocsr() if len(columns) > 1 else columns[0] for columns in zip(*parts)]


def _shared_words(split: Examples) -> np.ndarray:
  """float [N, 2]: the share of each text's words that are in the other, too."""
  shares = []
  for item in split.items:
    first, second = (set(text.lower().split()) for text in item.texts)
    both = len(first & second)
    shares.append([both / max(len(first), 1), both / max(len(second), 1)])
  return np.array(shares)
