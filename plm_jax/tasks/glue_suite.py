"""GLUE (Wang et al. 2019, arXiv:1804.07461) as a suite: nine tasks, their average, a submission.

  python run_finetune.py --from=runs/minilm --task=glue --data=glue_data
  python run_finetune.py --from=runs/minilm --task=glue --data=tfds    # of TensorFlow Datasets
  python run_finetune.py --from=runs/t5 --task=glue --data=glue_data --set=task.text_to_text=true
  python run_finetune.py --from=runs/t5 --task=glue --data=glue_data --set=task.text_to_text=true \\
    --set=task.mixture=true    # one model for all tasks
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import ClassVar

from plm_jax.errors import UserError
from plm_jax.tasks.classification import NONE
from plm_jax.tasks.glue import GlueLabels, GlueText, GlueValues
from plm_jax.tasks.glue_files import PARTS, SUBMISSIONS, folder_of, submission, test_file
from plm_jax.tasks.glue_mixture import GlueMixture
from plm_jax.tasks.glue_tfds import glue_folder
from plm_jax.tasks.predicting import load
from plm_jax.tasks.suite import PartResult, Scores, Suite
from plm_jax.tasks.task import Task
from plm_jax.train.processes import is_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glue(Suite):
  """The nine tasks of a folder with CoLA, SST-2, ..., WNLI, or those of them that it has.

  source: the folder, or "tfds" for the data sets glue/cola, ... of TensorFlow Datasets.
  text_to_text: whether labels are written as words, by a model that generates.
  mixture: whether one model is trained on all tasks, text to text. cap: the K of mixture.py; with
    fewer examples a task is drawn in proportion to them.
  """

  name: ClassVar[str] = "glue"

  text_to_text: bool = False
  mixture: bool = False
  cap: int = 2**19

  def __post_init__(self):
    if self.mixture and not self.text_to_text:
      raise UserError(
        "task.mixture=true is for one model that writes the labels of all tasks; add "
        "--set=task.text_to_text=true"
      )
    if self.cap != type(self).cap and not self.mixture:
      raise UserError(f"task.cap={self.cap} is of a mixture; add --set=task.mixture=true")
    if self.cap < 1:
      raise UserError(f"task.cap={self.cap} was given; expected at least 1 example of a task")

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

  def joint(self, cache: Path) -> Task | None:
    if not self.mixture:
      return None
    tasks = self.chosen(cache)
    folders = tuple(task.source for task in tasks.values())
    return GlueMixture(source=self.source, parts=tuple(tasks), folders=folders, cap=self.cap)

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
      files[f"{title}.tsv"] = predicted(paths[name].best(PARTS[name].metrics[0]), file, name)
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


def predicted(model: Path, path: Path, part: str) -> str:
  """A file of the submission from a fine-tuned model of the part, or of a mixture."""
  task, trained = load(model)
  task = task.tasks[part] if isinstance(task, GlueMixture) else task
  items = task.read_file(path, labelled=False)
  predictions = task.predict(trained, task.encode(items, trained.tokenizer))
  # Every line needs a label; an output that is none counts as the first.
  answers = [
    p["value"] if "value" in p else p["label"] if p["label"] != NONE else task.kind.classes[0]
    for p in predictions
  ]
  return submission(task.kind, items, answers)
