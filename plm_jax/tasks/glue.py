"""GLUE (Wang et al. 2019, arXiv:1804.07461): nine tasks with their own metrics, the average, and
the files of a submission.

  python run_finetune.py --from=runs/minilm --task=glue --data=glue_data
  python run_finetune.py --from=runs/minilm --task=glue --data=tfds    # of TensorFlow Datasets
  python run_finetune.py --from=runs/t5 --task=glue --data=glue_data --set=task.text_to_text=true

The test files have no labels: scores are those of the dev files, MNLI's of both. As text to text
(Raffel et al. 2020, section 2.4) the source is "mrpc sentence1: ... sentence2: ...", the target a
word, or of STS-B a number, rounded to the nearest fifth; an output that is no label is wrong.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.tasks import metrics
from plm_jax.tasks.classification import NONE, LabelTask
from plm_jax.tasks.examples import Example, Examples, Prediction, Splits
from plm_jax.tasks.file_task import FileTask
from plm_jax.tasks.glue_files import (
  MISMATCHED,
  PARTS,
  SUBMISSIONS,
  Part,
  folder_of,
  read_glue,
  submission,
  test_file,
)
from plm_jax.tasks.glue_tfds import glue_folder
from plm_jax.tasks.predicting import load
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.suite import PartResult, Scores, Suite
from plm_jax.tasks.task import Context, Task, Trained
from plm_jax.tasks.text_to_text import TASKS as TEXT_TASKS
from plm_jax.tasks.write import Write
from plm_jax.train.processes import is_first

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glue(Suite):
  """The nine tasks of a folder with CoLA, SST-2, ..., WNLI, or those of them that it has.

  source: the folder, or "tfds" for the data sets glue/cola, ... of TensorFlow Datasets.
  text_to_text: whether labels are written as words, by a model that generates.
  """

  name: ClassVar[str] = "glue"

  text_to_text: bool = False

  def parts(self, cache: Path) -> dict[str, Task]:
    place = self.folder(cache)
    parts: dict[str, Task] = {}
    for name, part in PARTS.items():
      kind = GlueText if self.text_to_text else GlueLabels if part.classes else GlueValues
      if folder := folder_of(place, part.folder):
        parts[name] = kind(part=name, source=str(folder))
    if not parts:
      names = ", ".join(part.folder for part in PARTS.values())
      raise UserError(f"The folder {self.source!r} has none of GLUE's tasks: {names}.")
    return parts

  def folder(self, cache: Path) -> Path:
    """The folder with the files of all parts. Errors: `UserError` if there is none."""
    if self.source == "tfds":
      return glue_folder(cache)
    place = Path(os.path.expanduser(self.source))
    if not place.is_dir():
      raise UserError(
        f"{self.source!r} is no folder; --task=glue needs one with CoLA, SST-2, ..., or --data=tfds"
      )
    return place

  def scores(self, name: str, test: Scores) -> Scores:
    return {metric: test[metric] for metric in PARTS[name].metrics}

  def finish(self, results: list[PartResult], path: Path, cache: Path) -> list[str]:
    """Writes submission.zip with the predictions of the models that are best on dev."""
    paths = {result.name: result for result in results}
    files, lines = {}, []
    for each in SUBMISSIONS:
      title, name, file = each.title, each.part, test_file(self.folder(cache), each)
      if name not in paths or file is None:
        why = f"there is no {each.folders[0]}/{each.files[0]}" if name in paths else "no such model"
        lines.append(f"{title} is not in the submission: {why}")
        continue
      files[f"{title}.tsv"] = predicted(paths[name].best(PARTS[name].metrics[0]), file)
    if files and is_first():
      with zipfile.ZipFile(path / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for title, text in sorted(files.items()):
          archive.writestr(title, text)
    if files:
      lines.append(f"{path}/submission.zip has the test predictions of {len(files)} files")
    left = [part.folder for name, part in PARTS.items() if name not in paths]
    if left:
      lines.append(f"the average is of {len(paths)} of 9 tasks: without {', '.join(left)}")
    return lines


def predicted(model: Path, path: Path) -> str:
  """A file of the submission from a fine-tuned model."""
  task, trained = load(model)
  items = task.read_file(path, labelled=False)
  predictions = task.predict(trained, task.encode(items, trained.tokenizer))
  # Every line needs a label; an output that is none counts as the first.
  answers = [
    p["value"] if "value" in p else p["label"] if p["label"] != NONE else task.kind.classes[0]
    for p in predictions
  ]
  return submission(task.kind, items, answers)
