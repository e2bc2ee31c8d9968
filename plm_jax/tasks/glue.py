"""The nine tasks of GLUE (Wang et al. 2019, arXiv:1804.07461) with their own metrics.

The test files have no labels: scores are those of the dev files, MNLI's of both. As text to text
(Raffel et al. 2020, section 2.4) the source is "mrpc sentence1: ... sentence2: ...", the target a
word, or of STS-B a number, rounded to the nearest fifth; an output that is no label is wrong.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.tasks import metrics
from plm_jax.tasks.classification import NONE, LabelTask
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.glue_files import MISMATCHED, PARTS, Part, read_glue
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.text_to_text import TASKS as TEXT_TASKS
from plm_jax.tasks.write import Write

_NO_NUMBER = -1.0  # an output of STS-B without a number (t5, `string_to_float`)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueFiles(FileTask):
  """A task of GLUE in its folder. part: its name in `PARTS`."""

  name: ClassVar[str] = "glue"
  files: ClassVar[tuple[str, ...]] = (".tsv",)

  part: str = "cola"

  @property
  def kind(self) -> Part:
    return PARTS[self.part]

  @property
  def metrics(self) -> tuple[str, ...]:
    return self.kind.metrics

  @property
  def question(self) -> str:
    return f"GLUE's {self.kind.folder}: {', '.join(self.kind.classes) or 'a number from 0 to 5'}?"

  def read(self, context: Context) -> tuple[Self, Splits]:
    task, splits = super().read(context)
    mismatched = Path(task.source).parent / MISMATCHED
    if self.part == "mnli":
      items = [*splits.test.items, *read_glue(mismatched, self.kind, labelled=True).items]
      splits = splits._replace(test=task.encode(items, context.tokenizer))
    return task, splits

  def read_noted(self, path: str) -> tuple[list[Example], list[str]]:
    file, name = read_glue(Path(path), self.kind, labelled=True), Path(path).name
    if not file.left_out:
      return file.items, []
    count, first = len(file.left_out), file.left_out[0]
    return file.items, [
      f"{name}: {count:,} malformed lines are left out, the first is line {first}"
    ]

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    return read_glue(Path(path), self.kind, labelled).items

  def with_columns(self) -> Self:
    return self

  def has_targets(self, path: Path) -> bool:
    return False

  @property
  def line(self) -> str:
    return "a text" if len(self.kind.texts) == 1 else "two texts with a tab between them"

  def parse(self, line: str, name: str) -> Example:
    texts = tuple(text.strip() for text in line.split("\t"))
    if len(texts) != len(self.kind.texts) or not all(texts):
      raise UserError(
        f"{name} has {len(texts)} texts, and GLUE's {self.kind.folder} has {len(self.kind.texts)}, "
        "with a tab between two."
      )
    return Example(texts, None, name, name)

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    """The metrics of the task; a prediction that is no label is wrong."""
    return glue_scores(self.kind, examples.items, predictions)

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    if not self.kind.classes:
      return ""
    targets = [item.target for item in examples.items]
    return metrics.confusion(targets, [p["label"] for p in predictions], self.kind.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueLabels(GlueFiles, LabelTask):
  """A task of GLUE with classes, for a model with a classifier."""

  def fitted(self, items: list[Example]) -> Self:
    return dataclasses.replace(self, labels=self.kind.classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueValues(GlueFiles, Regress):
  """STS-B, for a model that predicts a number."""

  part: str = "stsb"
  pair: bool | None = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueText(GlueFiles, Write):
  """A task of GLUE as text to text."""

  @property
  def is_free(self) -> bool:
    return False

  @property
  def baselines(self) -> dict[str, str]:
    return {"majority": "majority class" if self.kind.classes else "mean"}

  def fitted(self, items: list[Example]) -> Self:
    return dataclasses.replace(self, labels=TEXT_TASKS[self.part].labels or ())

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    written = super().encode([self._as_text(item) for item in items], tokenizer)
    return Examples(items, written.ids, written.targets)

  def _as_text(self, item: Example) -> Example:
    """The example with T5's source and target."""
    task, kind = TEXT_TASKS[self.part], self.kind
    # A line of a test file may lack a text.
    row = dict(zip(kind.names, (text or "." for text in item.texts)))
    target = item.target
    if target is not None:
      target = task.written({"label": kind.classes.index(target) if kind.classes else target})
    return item._replace(texts=(task.source(row),), target=target)

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """{"output", "score"} and "label", or for STS-B "value"."""
    predictions = super().predict(trained, examples)
    words = dict(zip(TEXT_TASKS[self.part].labels or (), self.kind.classes))
    for prediction in predictions:
      if self.kind.classes:
        prediction["label"] = words.get(prediction["label"], NONE)
      else:
        value = TEXT_TASKS[self.part].read(prediction["output"].replace(" ", ""))
        prediction["value"] = _NO_NUMBER if value is None else value
    return predictions

  def mistake(self, example: Example, prediction: Prediction) -> float:
    if not self.kind.classes:
      return abs(prediction["value"] - example.target)
    return float(prediction["label"] != example.target)

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    targets = [item.target for item in splits.train.items]
    if self.kind.classes:
      answer: dict[str, Any] = {"label": max(self.kind.classes, key=targets.count)}
    else:
      answer = {"value": float(np.mean(targets))}
    return [answer] * len(splits.test)


def glue_scores(
  part: Part, items: list[Example], predictions: list[Prediction]
) -> dict[str, float]:
  """The metrics of a part: F1 is that of class 1, "accuracy_mm" that of MNLI's mismatched texts."""
  if not part.classes:
    values = np.array([prediction["value"] for prediction in predictions])
    return metrics.correlations(np.array([item.target for item in items]), values)
  from sklearn.metrics import f1_score

  targets = np.array([item.target for item in items])
  labels = np.array([prediction["label"] for prediction in predictions])
  in_mm = np.array([item.name.startswith(MISMATCHED) for item in items])
  scores = {}
  if not in_mm.all():
    scores = metrics.classification(targets[~in_mm], labels[~in_mm], part.classes)
  if in_mm.any():
    scores["accuracy_mm"] = float((targets == labels)[in_mm].mean())
  if "f1" in part.metrics:
    scores["f1"] = float(f1_score(targets == "1", labels == "1", zero_division=0))
  return scores
