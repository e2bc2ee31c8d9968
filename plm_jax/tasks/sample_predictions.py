"""A few predictions for the reader of a fine-tuning: the best and the worst of the test split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from plm_jax.tasks.examples import Example, Examples, Prediction
from plm_jax.tasks.task import Task

_WIDTH = 96  # characters of a text
_ANSWERS = ("label", "labels", "choice", "answer", "output", "value", "entities", "tags")
_ANSWERS += ("rank", "similarity")


def sample_predictions(
  task: Task, examples: Examples, predictions: list[Prediction], count: int = 2
) -> str:
  """`count` predictions with the smallest mistakes and `count` with the largest, with the targets.
  Of equal mistakes those with the highest scores are shown, and of these the first."""
  pairs = list(zip(examples.items, predictions, strict=True))
  sizes = np.array([task.mistake(*pair) for pair in pairs])
  scores = [one["score"] if isinstance(one.get("score"), float) else 0.0 for one in predictions]
  surest = np.negative(scores)
  order = np.lexsort((surest, sizes))
  count = min(count, len(pairs) // 2)
  right = (
    f"{np.count_nonzero(sizes == 0):,} of {len(pairs):,} predictions on the test split are right"
  )
  lines = [right, "the best", *_lines(pairs, order[:count])]
  largest = [n for n in np.lexsort((surest, -sizes))[:count] if sizes[n] > 0]
  return "\n".join([*lines, *(["the worst"] if largest else []), *_lines(pairs, largest)])


def _lines(pairs: list[tuple[Example, Prediction]], numbers: Iterable[int]) -> list[str]:
  lines = []
  for item, prediction in (pairs[number] for number in numbers):
    lines.append("  " + _cut(" | ".join(item.texts)))
    wanted = f"   (the data have: {_cut(_text(item.target))})" if item.target is not None else ""
    lines.append(f"    {_cut(_shown(prediction))}{wanted}")
  return lines


def _shown(prediction: Prediction) -> str:
  """The answer of a prediction, with its probability where there is one."""
  name = next(name for name in _ANSWERS if name in prediction)
  score = prediction.get("score")
  is_probability = isinstance(score, float) and 0 <= score <= 1 and name != "output"
  answer = f"rank {prediction[name]}" if name == "rank" else _text(prediction[name])
  return answer + (f" {score:.2f}" if is_probability else "")


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
  text = " ".join(text.split())
  return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
