"""Predicts with a fine-tuned model: labels, numbers, whatever its task predicts.

  python -m plm_jax.predict --model=DIR --text="a fine film" --text="dull"
  python -m plm_jax.predict --model=DIR --file=new.csv --out=predictions.jsonl
  cat texts.txt | python -m plm_jax.predict --model=DIR
  python -m plm_jax.predict --model=DIR --evaluate=test.tsv --errors

DIR is a directory of run_finetune.py, such as RUN/finetune/TASK/pretrained-all-0. Every line of the
output is an object of JSON, in the order of the input. A line of standard input, of a .txt file and
--text is one example: a text, two texts with a tab between them for a task of pairs, or an object
with the columns of the training file. Lines of standard input are answered as they come.
--threshold=0.8 makes less certain labels "(none)"; --set=task.FIELD=VALUE changes any other field.

From Python: `from plm_jax.predict import predict; predict("DIR", ["a fine film", "dull"])`.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from absl import flags

from plm_jax import cli
from plm_jax.data.corpora import default_cache
from plm_jax.errors import UserError
from plm_jax.progress import progress_bar
from plm_jax.tasks.comparison import named
from plm_jax.tasks.examples import Example, Prediction
from plm_jax.tasks.predicting import load
from plm_jax.tasks.registry import task_class
from plm_jax.tasks.task import Task, Trained, shown
from plm_jax.train.process import keep_compilations
from plm_jax.train.workdir import write_whole

FLAGS = flags.FLAGS
BLOCK = 1024  # examples that are read, sorted by length and written together


def define_flags() -> None:
  flags.DEFINE_string("model", None, "The directory of a fine-tuned model.")
  flags.DEFINE_multi_string("text", [], "A text to predict for. Repeatable.")
  flags.DEFINE_string("file", None, "A .csv, .tsv or .jsonl file, or any other file with lines.")
  flags.DEFINE_string("out", None, "The .jsonl file to write (default: standard output).")
  flags.DEFINE_string("evaluate", None, "A labelled file to score.")
  flags.DEFINE_bool("errors", False, "With --evaluate: the most confident mistakes.")
  flags.DEFINE_integer("most", 20, "With --errors: the number of mistakes.")
  flags.DEFINE_float("threshold", None, "The least probability of a label; else it is (none).")
  flags.DEFINE_string("task", None, "FILE:CLASS of a task of your own, as it was fine-tuned with.")
  flags.DEFINE_multi_string("set", [], "task.FIELD=VALUE, such as task.threshold=0.8. Repeatable.")


def predict(
  model: str | Path, texts: Sequence[str], settings: Sequence[str] = ()
) -> list[Prediction]:
  """The prediction for every text, as a line of standard input has it. settings: as of --set."""
  task, trained = load(model, settings)
  items = [task.parse(text, f"text {n}") for n, text in enumerate(texts, 1)]
  return task.predict(trained, task.encode(items, trained.tokenizer)) if items else []


def main() -> None:
  if not FLAGS.model:
    raise UserError("--model=DIR, the directory of a fine-tuned model, is needed.")
  inputs = [n for n in ("text", "file", "evaluate") if FLAGS[n].value]
  if len(inputs) > 1:
    raise UserError(f"--{inputs[0]} and --{inputs[1]} were given; choose one of them.")
  if FLAGS.errors and not FLAGS.evaluate:
    raise UserError("--errors needs --evaluate=FILE, a labelled file.")
  if FLAGS.out and Path(FLAGS.out).exists():
    raise UserError(f"{FLAGS.out} already exists; name another file with --out.")
  keep_compilations(default_cache())
  settings = [] if FLAGS.threshold is None else [f"task.threshold={FLAGS.threshold}"]
  if FLAGS.task:
    task_class(FLAGS.task)  # imports its file
  task, trained = load(FLAGS.model, [*settings, *FLAGS.set])
  if FLAGS.evaluate:
    evaluate(task, trained)
  elif FLAGS.out:
    partial = Path(FLAGS.out + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
      write(task, trained, inputs, file)
    partial.replace(FLAGS.out)
  else:
    write(task, trained, inputs, sys.stdout)


def write(task: Task, trained: Trained, inputs: list[str], out: IO[str]) -> None:
  """Writes a line for every example of the input."""
  items = read(task, inputs)
  total = len(items) if isinstance(items, list) else None
  for item, prediction in predicted(task, trained, items, total):
    line = next(shown([item], [prediction]))
    out.write(json.dumps(line, ensure_ascii=False) + "\n")
    out.flush()


def evaluate(task: Task, trained: Trained) -> None:
  """Prints the scores of a labelled file, the details, and its worst mistakes."""
  items = task.read_file(FLAGS.evaluate, labelled=True)
  examples = task.encode(items, trained.tokenizer)  # refuses unknown labels
  predictions = [p for _, p in predicted(task, trained, items, len(items))]
  for name, value in task.score(examples, predictions).items():
    print(f"{named(name):20} {value:.4f}")
  if report := task.report(examples, predictions):
    print(f"\n{report}")
  if FLAGS.out:
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in shown(items, predictions))
    write_whole(Path(FLAGS.out), "".join(lines))
  if FLAGS.errors:
    sizes = [task.mistake(item, p) for item, p in zip(items, predictions, strict=True)]
    worst = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: -sizes[i])
    print(f"\nthe worst of {len(worst):,} mistakes:")
    chosen = worst[: FLAGS.most]
    for line in shown([items[i] for i in chosen], [predictions[i] for i in chosen]):
      print(json.dumps(line, ensure_ascii=False))


def read(task: Task, inputs: list[str]) -> list[Example] | Iterator[Example]:
  """The examples of --text, of --file, or of standard input as they come."""
  if inputs == ["text"]:
    return [task.parse(text, f"text {n}") for n, text in enumerate(FLAGS.text, 1)]
  if inputs == ["file"]:
    if Path(FLAGS.file).suffix in task.files:
      return task.read_file(FLAGS.file, labelled=False)
    return list(parsed(task, cli.read_lines(FLAGS.file, "--file")))
  return parsed(task, sys.stdin)


def blocks(items: Iterable[Example]) -> Iterator[list[Example]]:
  """The items in blocks. Of an iterator a block has those that are there when the block before it
  is done, so that a slow stream is answered at once."""
  if isinstance(items, list):
    yield from (items[first : first + BLOCK] for first in range(0, len(items), BLOCK))
    return
  waiting: queue.Queue = queue.Queue(BLOCK)
  end = object()

  def fill() -> None:
    try:
      for item in items:
        waiting.put(item)
      waiting.put(end)
    except BaseException as error:  # raised by the consumer
      waiting.put(error)

  threading.Thread(target=fill, daemon=True).start()
  while True:
    block = [waiting.get()]
    while len(block) < BLOCK and not waiting.empty():
      block.append(waiting.get())
    stop = block.pop() if block[-1] is end or isinstance(block[-1], BaseException) else None
    if block:
      yield block
    if stop is end:
      return
    if stop is not None:
      raise stop


def parsed(task: Task, lines: Iterable[str]) -> Iterator[Example]:
  """The example of every line that is not empty."""
  for number, line in enumerate(lines, 1):
    if line.strip():
      yield task.parse(line.rstrip("\r\n"), f"line {number}")


def predicted(
  task: Task, trained: Trained, items: Iterable[Example], total: int | None
) -> Iterator[tuple[Example, Any]]:
  """(example, prediction) in order, a block at a time."""
  start, count = time.perf_counter(), 0
  quiet = not sys.stderr.isatty() if total is None else total < BLOCK
  with progress_bar(total, "predicting", unit=" texts", disable=quiet) as bar:
    for block in blocks(items):
      predictions = task.predict(trained, task.encode(block, trained.tokenizer))
      count += len(block)
      bar.update(len(block))
      yield from zip(block, predictions, strict=True)
  if not count:
    raise UserError("there is no example in the input; expected one in every line.")
  seconds = time.perf_counter() - start
  print(f"{count:,} examples in {seconds:.1f} s ({count / seconds:,.1f}/s)", file=sys.stderr)


if __name__ == "__main__":
  cli.run(main)
