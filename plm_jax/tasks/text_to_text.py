"""Tasks as text: T5's source and target for each task.

  python -m plm_jax.tasks.text_to_text --task=mnli --from=train.jsonl --to=mnli.tsv
  python run_pretrain.py --from=runs/t5_tiny --experiment=experiments/t5.py:text_to_text \\
    --set=data.source=mnli.tsv

Sources: Raffel et al. 2020, section 2.4 and appendix D; google-research/text-to-text-transfer-
transformer (e081111) t5/data/preprocessors.py `glue`, `stsb`, `squad`, `translate`, `summarize`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import flags

from plm_jax import cli
from plm_jax.data.text_files import read_json
from plm_jax.errors import UserError

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A task: its source is "prefix column: text column: text", in the order of `columns`, its target
  one of `labels`, a number, or a free text.

  labels: of the classes 0, 1, ...; None if the target is the text of the column `target`. number:
  targets are numbers, rounded to the nearest fifth and written with one decimal (STS-B: 3.77 is
  "3.8"). prefix: the beginning of every source.
  """

  prefix: str
  columns: tuple[str, ...]
  labels: tuple[str, ...] | None = None
  number: bool = False
  target: str = "label"

  def source(self, example: Mapping[str, object]) -> str:
    """The encoder's text."""
    fields = [f"{column}: {self._text(example, column)}" for column in self.columns]
    if self.columns == ("text",):  # one text needs no name
      fields = [self._text(example, "text")]
    return " ".join([*([self.prefix] if self.prefix else []), *fields])

  def written(self, example: Mapping[str, object]) -> str:
    """The decoder's target. Errors: `UserError` for an unknown label."""
    value = example.get(self.target)
    if self.number:
      return rounded(float(value))
    if self.labels is None:
      return self._text(example, self.target)
    if value in self.labels:
      return value
    if str(value).isdecimal() and int(value) < len(self.labels):
      return self.labels[int(value)]
    raise UserError(
      f"the label {value!r} does not belong to this task; expected 0 to {len(self.labels) - 1}, or "
      f"{', '.join(self.labels)}"
    )

  def read(self, text: str) -> int | float | str | None:
    """The answer in a model's text: a class, a number, or the text; None if there is no answer."""
    text = text.strip()
    if self.number:
      try:
        return float(text)
      except ValueError:
        return None
    if self.labels is None:
      return text
    return self.labels.index(text) if text in self.labels else None

  def _text(self, example, column: str) -> str:
    value = example.get(column)
    if not isinstance(value, str) or not value.strip():
      raise UserError(
        f"an example has no text {column!r}; it has {', '.join(example) or 'nothing'}"
      )
    return " ".join(value.split())


def rounded(score: float) -> str:
  """A score from 0 to 5 as one of T5's strings, 0.2 apart."""
  return f"{round(score * 5) / 5:.1f}"


NOT_ENTAILED = ("entailment", "not_entailment")
TASKS = {
  "cola": TextTask("cola", ("sentence",), ("unacceptable", "acceptable")),
  "sst2": TextTask("sst2", ("sentence",), ("negative", "positive")),
  "mrpc": TextTask("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
  "qqp": TextTask("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
  "stsb": TextTask("stsb", ("sentence1", "sentence2"), number=True),
  "mnli": TextTask("mnli", ("hypothesis", "premise"), ("entailment", "neutral", "contradiction")),
  "qnli": TextTask("qnli", ("question", "sentence"), NOT_ENTAILED),
  "rte": TextTask("rte", ("sentence1", "sentence2"), NOT_ENTAILED),
  "wnli": TextTask("wnli", ("sentence1", "sentence2"), NOT_ENTAILED[::-1]),
  "squad": TextTask("", ("question", "context"), target="answer"),
  "summarize": TextTask("summarize:", ("text",), target="summary"),
  "translate_en_de": TextTask("translate English to German:", ("text",), target="translation"),
  "translate_en_fr": TextTask("translate English to French:", ("text",), target="translation"),
  "translate_en_ro": TextTask("translate English to Romanian:", ("text",), target="translation"),
}


def lines(task: TextTask, examples: Iterable[Mapping[str, object]]) -> Iterable[str]:
  """A line of a `.tsv` file for every example."""
  for number, example in enumerate(examples, 1):
    try:
      yield f"{task.source(example)}\t{task.written(example)}"
    except (UserError, TypeError, ValueError) as error:
      raise UserError(f"example {number}: {error}") from None


def read_examples(path: Path) -> Iterable[dict]:
  """The objects of a .jsonl file, one per line."""
  if not path.is_file():
    raise UserError(f"there is no file {path}; --from takes a .jsonl file, an example per line")
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      try:
        example = read_json(line)
      except ValueError as error:
        raise UserError(f"line {number} of {path} is not JSON: {error}") from None
      if not isinstance(example, dict):
        raise UserError(f"line {number} of {path} is not a JSON object")
      yield example


def define_flags() -> None:
  flags.DEFINE_enum("task", None, sorted(TASKS), "The task of the examples.", required=True)
  flags.DEFINE_string("from", None, "A .jsonl file with the task's columns.", required=True)
  flags.DEFINE_string("to", None, "The .tsv file to write.", required=True)


def main() -> None:
  path = Path(FLAGS.to)
  if path.exists():
    raise UserError(f"{path} already exists; name another file with --to")
  written = list(lines(TASKS[FLAGS.task], read_examples(Path(FLAGS["from"].value))))
  path.write_text("".join(line + "\n" for line in written), encoding="utf-8")
  print(f"{path}: {len(written):,} pairs; the first is\n{written[0] if written else ''}")


if __name__ == "__main__":
  cli.run(main)
