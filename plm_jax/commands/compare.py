"""Do two fine-tuned models differ on the same labelled file?

  python -m plm_jax.compare A B --data=test.tsv

A and B are directories of run_finetune.py for the same task and classes. The first metric of the
task is compared: accuracy of examples by McNemar's exact test, accuracy of words and any other
metric by the paired bootstrap. The interval is that of B minus A. Then come the examples on which
the models differ most, as lines of JSON.

From Python: `from plm_jax.compare import compare; compare("A", "B", "test.tsv").difference`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.tasks.comparison import named
from plm_jax.tasks.difference import MCNEMAR, Difference, counts_examples, difference, mistakes
from plm_jax.tasks.examples import Example, Prediction
from plm_jax.tasks.predicting import load
from plm_jax.tasks.registry import task_class
from plm_jax.tasks.task import Task, shown
from plm_jax.train.process import keep_compilations
from plm_jax.train.workdir import write_whole

FLAGS = flags.FLAGS
SURE = 0.05  # the p-value below which models are said to differ


def define_flags() -> None:
  flags.DEFINE_string("data", None, "A labelled file that both models are tested on.")
  flags.DEFINE_string("task", None, "FILE:CLASS of a task of your own, as both were tuned with.")
  flags.DEFINE_integer("most", 20, "The number of examples that are listed.")
  flags.DEFINE_string("out", None, "A .jsonl file for all examples on which the models differ.")
  flags.DEFINE_integer("seed", 0, "The seed of the resamples.")


class Compared(NamedTuple):
  """gaps: float64 [N], how much more wrong A is than B on each example."""

  difference: Difference
  items: list[Example]
  a: list[Prediction]
  b: list[Prediction]
  gaps: np.ndarray

  def lines(self) -> Iterator[dict[str, Any]]:
    """The examples on which the models differ, the largest difference first."""
    for row in np.argsort(-np.abs(self.gaps), kind="stable"):
      if self.gaps[row]:
        (line,) = shown([self.items[row]], [{}])
        better = "b" if self.gaps[row] > 0 else "a"
        yield line | {"better": better, "a": self.a[row], "b": self.b[row]}


def compare(a: str | Path, b: str | Path, data: str | Path, seed: int = 0) -> Compared:
  """Both models on a labelled file. Errors: `UserError` for models of different tasks."""
  (task, first), (other_task, second) = load(a), load(b)
  if kind_of(task) != kind_of(other_task):
    names = [f"{each.name} {getattr(each, 'part', '')}".strip() for each in (task, other_task)]
    if names[0] == names[1]:
      names = [f"{name} ({', '.join(labels_of(each)[:10]) or 'no classes'})"
               for name, each in zip(names, (task, other_task))]  # fmt: skip
    raise UserError(
      f"{a} was fine-tuned on the task {names[0]} and {b} on {names[1]}; only models of one task "
      "can be compared."
    )
  items = task.read_file(data, labelled=True)
  if not items:
    raise UserError(f"{data} has no example.")
  examples = task.encode(items, first.tokenizer)
  predictions = task.predict(first, examples)
  other = other_task.predict(second, other_task.encode(items, second.tokenizer))
  sizes = [mistakes(task, examples, each) for each in (predictions, other)]
  gaps = sizes[0] - sizes[1]
  if counts_examples(task):  # how sure two mistakes are does not matter
    gaps[np.minimum(*sizes) > 0] = 0
  result = difference(task, examples, predictions, other, seed)
  return Compared(result, items, predictions, other, gaps)


def kind_of(task: Task) -> tuple:
  """Equal for tasks with the same answers and metrics."""
  return type(task), getattr(task, "part", None), task.metrics, labels_of(task)


def labels_of(task: Task) -> list[str]:
  return sorted(task.classes or getattr(task, "labels", None) or ())


def main(a: str, b: str) -> None:
  if not FLAGS.data:
    raise UserError("--data=FILE, a labelled file that both models are tested on, is needed.")
  if FLAGS.out and Path(FLAGS.out).exists():
    raise UserError(f"{FLAGS.out} already exists; name another file with --out.")
  keep_compilations(default_cache())
  if FLAGS.task:
    task_class(FLAGS.task)  # imports its file
  compared = compare(a, b, FLAGS.data, FLAGS.seed)
  print(verdict(compared))
  lines = [json.dumps(line, ensure_ascii=False) for line in compared.lines()]
  if FLAGS.out:
    write_whole(Path(FLAGS.out), "".join(line + "\n" for line in lines))
  if lines[: FLAGS.most]:
    print("\nthe examples on which they differ most:", *lines[: FLAGS.most], sep="\n")


def verdict(compared: Compared) -> str:
  d, count = compared.difference, len(compared.items)
  lines = [
    f"{named(d.metric)} on {count:,} examples: A {d.a:.4f}, B {d.b:.4f}",
    f"B minus A: {d.b - d.a:+.4f}, 95% confidence interval {d.low:+.4f} to {d.high:+.4f}",
    f"p = {d.p:.4g} ({d.test})",
  ]
  if d.test == MCNEMAR:
    lines.append(f"right in A alone: {d.only_a:,}; right in B alone: {d.only_b:,}")
  better = "B is better" if d.b > d.a else "A is better"
  lines.append(
    f"{better}." if d.p < SURE else "These examples do not show a difference between the models."
  )
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main, words=("A", "B"))
