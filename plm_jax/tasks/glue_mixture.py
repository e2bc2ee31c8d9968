"""GLUE's tasks as one mixture of texts for one model, as T5 is trained (Raffel et al. 2020, section
3.5.2): `mixture.MixedBatches` has its batches.

An example's name begins with its part: "cola:train.tsv:7".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.tasks.examples import SPLITS, Example, Examples, Prediction, Splits
from plm_jax.tasks.glue import GlueText
from plm_jax.tasks.glue_files import PARTS, folder_of
from plm_jax.tasks.task import Context, Trained
from plm_jax.tasks.write import Write


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueMixture(Write):
  """One task of several parts of GLUE. parts: their names in `PARTS`. folders: of their files. cap:
  the K of the mixture. Scores are named PART/METRIC; "average" is the mean of all parts."""

  name: ClassVar[str] = "glue"
  metrics: ClassVar[tuple[str, ...]] = ("average",)
  baselines: ClassVar[dict[str, str]] = {"majority": "majority class or mean"}
  files: ClassVar[tuple[str, ...]] = (".tsv",)

  parts: tuple[str, ...] = ()
  folders: tuple[str, ...] = ()
  cap: int = 2**19

  @functools.cached_property
  def tasks(self) -> dict[str, GlueText]:
    """The task of each part, with the settings of the mixture."""
    own = ("source", "dev", "test", "labels")
    names = [field.name for field in dataclasses.fields(Write) if field.name not in own]
    settings: dict[str, Any] = {name: getattr(self, name) for name in names}
    return {
      part: GlueText(part=part, source=folder, **settings).fitted([])
      for part, folder in zip(self.parts, self.folders, strict=True)
    }

  @property
  def question(self) -> str:
    return f"GLUE as a mixture of {', '.join(self.parts)}, at most {self.cap:,} examples of each"

  def part_of(self, item: Example) -> int:
    """The number of the example's part."""
    return self.parts.index(item.name.partition(":")[0])

  # --- reading

  def read(self, context: Context) -> tuple[Self, Splits]:
    """All parts, whose rows have one length, that of the longest."""
    read = {part: task.read(context) for part, task in self.tasks.items()}
    lengths = {
      name: max(getattr(task, name) for task, _ in read.values())
      for name in ("length", "target_length")
    }
    train, dev, test = (
      _joined({part: getattr(splits, name) for part, (_, splits) in read.items()})
      for name in SPLITS
    )
    notes = [f"{part}: {note}" for part, (_, splits) in read.items() for note in splits.notes
             if not note.startswith(("sources of ", "targets of "))]  # fmt: skip
    notes.append(f"sources of {lengths['length']} tokens, targets of {lengths['target_length']}")
    return dataclasses.replace(self, **lengths), Splits(train, dev, test, tuple(notes))

  def read_file(self, path: str | Path, labelled: bool) -> list[Example]:
    """The examples of a part's file, which lies in a folder with the part's name."""
    folder = Path(path).absolute().parent
    for part, task in self.tasks.items():
      if folder_of(folder.parent, PARTS[part].folder) == folder:
        return [_marked(part, item) for item in task.read_file(path, labelled)]
    raise UserError(
      f"The file {str(path)!r} is in no folder that is named after a task: "
      f"{', '.join(PARTS[part].folder for part in self.parts)}."
    )

  @property
  def line(self) -> str:
    return "the name of a task of GLUE and its texts, with tabs between them"

  def parse(self, line: str, name: str) -> Example:
    part, _, rest = line.partition("\t")
    if part not in self.tasks:
      raise UserError(
        f"{name} begins with {part[:40]!r}; expected the name of a task ({', '.join(self.parts)}), "
        "a tab, and its texts with a tab between two."
      )
    return _marked(part, self.tasks[part].parse(rest, name))

  def encode(self, items: list[Example], tokenizer: Tokenizer) -> Examples:
    encoded = {
      part: self.tasks[part].encode([_plain(items[n]) for n in numbers], tokenizer)
      for part, numbers in self._numbers(items).items()
    }
    back = np.argsort(np.concatenate(list(self._numbers(items).values())), kind="stable")
    return dataclasses.replace(_joined(encoded).take(back), items=items)

  # --- predicting

  def predict(self, trained: Trained, examples: Examples) -> list[Prediction]:
    """As the task of each example's part."""
    predictions: dict[int, Prediction] = {}
    for part, numbers in self._numbers(examples.items).items():
      own = _without_part(examples.take(numbers))
      predictions |= zip(numbers, self.tasks[part].predict(trained, own))
    return [predictions[number] for number in range(len(examples))]

  def score(self, examples: Examples, predictions: list[Prediction]) -> dict[str, float]:
    scores, means = {}, []
    for part, own, answers in self._by_part(examples, predictions):
      test = self.tasks[part].score(own, answers)
      scores |= {f"{part}/{metric}": value for metric, value in test.items()}
      means.append(np.mean([test[m] for m in PARTS[part].metrics if m in test]))
    return {"average": float(np.mean(means))} | scores

  def report(self, examples: Examples, predictions: list[Prediction]) -> str:
    """That of each part."""
    return "\n\n".join(
      f"{part}\n{self.tasks[part].report(own, answers)}"
      for part, own, answers in self._by_part(examples, predictions)
    )

  def mistake(self, example: Example, prediction: Prediction) -> float:
    return self.tasks[self.parts[self.part_of(example)]].mistake(_plain(example), prediction)

  def baseline(self, name: str, splits: Splits) -> list[Prediction]:
    answers: dict[int, Prediction] = {}
    train = self._numbers(splits.train.items)
    for part, numbers in self._numbers(splits.test.items).items():
      own = splits._replace(train=splits.train.take(train[part]), test=splits.test.take(numbers))
      answers |= zip(numbers, self.tasks[part].baseline(name, own))
    return [answers[number] for number in range(len(splits.test))]

  def _numbers(self, items: Sequence[Example]) -> dict[str, list[int]]:
    """Part -> the numbers of its examples."""
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
      numbers.setdefault(self.parts[self.part_of(item)], []).append(number)
    return numbers

  def _by_part(self, examples: Examples, predictions: list[Prediction]):
    """(part, its examples, their predictions)."""
    for part, numbers in self._numbers(examples.items).items():
      yield part, _without_part(examples.take(numbers)), [predictions[n] for n in numbers]


def _marked(part: str, item: Example) -> Example:
  return item._replace(name=f"{part}:{item.name}", document=f"{part}:{item.document}")


def _plain(item: Example) -> Example:
  return item._replace(name=item.name.partition(":")[2])


def _without_part(examples: Examples) -> Examples:
  return dataclasses.replace(examples, items=[_plain(item) for item in examples.items])


def _joined(parts: dict[str, Examples]) -> Examples:
  """The examples of all parts, one part after the other."""
  items = [_marked(part, item) for part, examples in parts.items() for item in examples.items]
  known = all(examples.targets for examples in parts.values())
  targets = {"target": [t for e in parts.values() for t in e.targets["target"]]} if known else {}
  return Examples(items, [ids for e in parts.values() for ids in e.ids], targets)
