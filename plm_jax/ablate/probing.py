"""Linear probes of frozen models: what do the states of the last layer know, in every generation?

The states of a text are averaged over its tokens, those of a word over its pieces, special tokens
left out. A ridge regression of them on the classes, one column each, is solved exactly; the penalty
is the best on the dev split. Examples are chosen by their text, so that they do not depend on the
tokenizer.

    probe_topic_LABELS_accuracy   which package does a sentence come from?
    probe_order_LABELS_accuracy   are its words in order, or shuffled?
    probe_tag_accuracy            the part of speech of a word
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plm_jax.data.documents import Document
from plm_jax.errors import UserError
from plm_jax.evaluation.scores import Scores
from plm_jax.runs import Run
from plm_jax.tasks.frozen_states import text_vectors, word_vectors
from plm_jax.tasks.label import Label
from plm_jax.tasks.labelled_text import LabelledText, side_of
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.word_order import WordOrder, by_word_order

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
SIZES = {"train": 1000, "dev": 200, "test": 600}  # sentences
TAGGED = {"train": 500, "dev": 100, "test": 400}  # sentences of tagged words
CLASSES = 20  # the packages with the most sentences
SHORTEST, LONGEST = 8, 16  # words of a sentence, so that no model cuts it


class Labelled(NamedTuple):
  """Texts with classes."""

  texts: list[str]
  classes: list[str]


def probe(run: Run, labels: list[int | None], cache: Path, scores: Scores) -> None:
  """Adds probe_topic_* and probe_order_* to `scores`, of the first of several texts."""
  if run.experiment.is_counted:
    scores.notes.append("a model made from counts has no states to probe")
    return
  data: Any = run.experiment.data
  source, held_out = next(iter(data.texts.values())), data.held_out
  tasks: tuple[LabelledText, ...] = (
    Label(source=source, held_out=held_out),
    WordOrder(source=source, held_out=held_out),
  )
  for name, task in zip(("topic", "order"), tasks, strict=True):
    documents = list(task.documents(cache))
    if name == "order":
      documents = [part for document in documents for part in by_word_order(document)]
    splits = chosen(documents, task)
    features = {split: text_vectors(run, each.texts) for split, each in splits.items()}
    for size in labels:
      few = np.array(order(splits["train"].texts, str(run.experiment.seed)))[:size]
      train = features["train"][few], [splits["train"].classes[i] for i in few]
      rest = [(features[split], splits[split].classes) for split in ("dev", "test")]
      kind, count = f"probe_{name}_{size or 'all'}", len(splits["test"].texts)
      texts = np.array([hashlib.sha256("\n".join(splits["test"].texts).encode()).hexdigest()])
      scores.add(kind, {"accuracy": ridge_accuracy(train, *rest)}, count, [{"test": texts}])
      majority = Counter(splits["test"].classes).most_common(1)[0][1] / count
      scores.references[f"{kind}_accuracy"] = majority


def order(texts: list[str], salt: str = "") -> list[int]:
  """The numbers of the texts in a random order that depends on each text alone."""
  keys = [hashlib.sha256((salt + text).encode()).digest() for text in texts]
  return sorted(range(len(texts)), key=keys.__getitem__)


def chosen(documents: list[Document], task: LabelledText) -> dict[str, Labelled]:
  """The sentences of `SIZES`, as many of each class as there are, in an order of their own."""
  frequent = Counter(d.label for d in documents for _ in d.sentences).most_common(CLASSES)
  classes = {label for label, _ in frequent}
  texts: dict[str, dict[str, str]] = {split: {} for split in SIZES}
  for document in documents:
    if document.label in classes:
      split = texts[side_of(document, task)]
      fit = (s for s in document.sentences if SHORTEST <= len(s.split()) <= LONGEST)
      split |= dict.fromkeys(fit, document.label)
  splits = {}
  for split, size in SIZES.items():
    names = list(texts[split])
    kept = [names[i] for i in order(names)][:size]
    splits[split] = Labelled(kept, [texts[split][text] for text in kept])
  return splits


def tagging(run: Run, files: str, scores: Scores) -> None:
  """Adds probe_tag_accuracy to `scores`. files: "TRAIN,TEST", in a format of the task `tag`."""
  if run.experiment.is_counted:
    return
  paths = files.split(",")
  if len(paths) != 2:
    raise UserError(f"--tags={files} must be two files of tagged words, TRAIN,TEST.")
  read = [
    [item for item in Tag().read_file(path, labelled=True) if len(item.words) <= LONGEST]
    for path in paths
  ]
  parts = {"train": read[0][TAGGED["dev"] :], "dev": read[0], "test": read[1]}
  vectors, tags = {}, {}
  for split, size in TAGGED.items():
    items = parts[split][:size]
    words = [item.words for item in items]
    vectors[split] = word_vectors(run, [item.texts[0] for item in items], words)
    tags[split] = [tag for item in items for tag in item.target]
  accuracy = ridge_accuracy(*((vectors[split], tags[split]) for split in TAGGED))
  test = np.array(tags["test"])
  scores.add("probe_tag", {"accuracy": accuracy}, len(test), [{"test": test}])
  majority = Counter(tags["train"]).most_common(1)[0][0]
  scores.references["probe_tag_accuracy"] = float(np.mean(test == majority))


def ridge_accuracy(train, dev, test) -> float:
  """The accuracy on `test` with the penalty that is best on `dev`. Each: features [N, D] and
  classes. Features are scaled by their standard deviation in training."""
  names = sorted(set(train[1]))
  number = {name: i for i, name in enumerate(names)}
  mean, scale = train[0].mean(axis=0), np.maximum(train[0].std(axis=0), 1e-6)

  def scaled(x: np.ndarray) -> np.ndarray:
    x = (x - mean) / scale
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)

  x, y = scaled(train[0].astype(np.float64)), np.eye(len(names))[[number[c] for c in train[1]]]
  inner, cross = x.T @ x, x.T @ y

  def accuracy(penalty: float, split) -> float:
    weights = np.linalg.solve(inner + penalty * np.eye(len(inner)), cross)
    best = (scaled(split[0]) @ weights).argmax(axis=1)
    return float(np.mean([names[i] == c for i, c in zip(best, split[1], strict=True)]))

  return accuracy(max(PENALTIES, key=lambda penalty: accuracy(penalty, dev)), test)
