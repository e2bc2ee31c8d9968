"""Fine-tuning and prediction of plm_jax against transformers in PyTorch, with the same checkpoint.

Training: the step of run_finetune.py against the Hugging Face Trainer with dynamic padding. Both
read the same examples in the same batches in the same order, in float32, with AdamW, a linear
schedule and gradients clipped to norm 1. Prediction: plm_jax.predict against a text-classification
pipeline whose texts are sorted by length, for texts of mixed length, tokenizing included.

Each side lives in a process of its own, warmed up and called in turn, so that whatever else the
machine does hits both; ratios are medians over rounds, by the clock and by the processor time of
the process. The seconds before the first round (loading and compiling) are in the column "start".

  python benchmarks/finetune.py --model=MINILM --data=reviews.tsv
  python benchmarks/finetune.py --model=MINILM --data=reviews.tsv --work=predict --rounds=3

--model is a downloaded BERT; --data is a file with one text and one label in a line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from needed import check_installed  # noqa: E402

from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402

_MODEL = flags.DEFINE_string("model", None, "A downloaded directory of transformers.")
_DATA = flags.DEFINE_string("data", None, "A .csv, .tsv or .jsonl file with texts and labels.")
_WORK = flags.DEFINE_list("work", ["train", "predict"], "What is measured.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each side.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 16, "Training steps in a round.", lower_bound=1)
_TEXTS = flags.DEFINE_integer("texts", 1024, "Texts to predict in a round.", lower_bound=1)
BATCH = 32
SIDES = ("plm_jax", "transformers")


class Turns:
  """The worker's end: it says that it is ready, then does a round for every line it reads."""

  def __init__(self):
    self._answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    self._restart()

  def done(self, **about: Any) -> None:
    """The end of a round; returns when the next may start."""
    times = {
      "s": time.perf_counter() - self._start,
      "cpu_s": time.process_time() - self._cpu,
    }
    print(json.dumps(times | about), file=self._answers, flush=True)
    if not sys.stdin.readline():
      sys.exit()
    self._restart()

  def _restart(self) -> None:
    self._start, self._cpu = time.perf_counter(), time.process_time()


# --- plm_jax: also writes the batches and the weights that the other side reads -------------------


class Ours:
  """What run_finetune.py makes of the model and the data."""

  def __init__(self, case: dict[str, Any]):
    from experiments.finetune import recipe
    from plm_jax.data.corpora import cache_folder
    from plm_jax.export.to_run import run_directory
    from plm_jax.runs import RunInfo
    from plm_jax.tasks.finetuning import batches_of, global_shapes, plan, restored
    from plm_jax.tasks.registry import chosen_task
    from plm_jax.train.loop import compile_experiment

    cli.keep_freed_memory()
    cache, folder = cache_folder(None), Path(case["folder"])
    source = RunInfo.read(run_directory(case["model"], cache))
    task = chosen_task("classify", case["data"])
    settings = ["task.test_share=0.5", "model.classifier=pooler"]  # the other side's head
    self.plan = plan(source, recipe, task, settings, cache, folder)
    self.experiment = self.plan.experiment(None, 0)
    self.batches = batches_of(self.experiment, self.plan.splits.train, source.tokenizer)
    self.program = compile_experiment(self.experiment, global_shapes(self.batches))
    self.params = restored(self.program, source).params

  def write(self, case: dict[str, Any]) -> None:
    """The weights as a directory of transformers, the batches and the texts to predict."""
    from plm_jax.export.from_run import write_directory
    from plm_jax.export.pretrained import Pretrained

    folder = Path(case["folder"])
    names = {str(number): name for number, name in enumerate(self.plan.task.classes)}
    model = Pretrained(self.experiment.model, self.params, document={"id2label": names})
    write_directory(model, self.plan.source.tokenizer, folder / "model")
    rows = []
    for step in range(case["steps"] * (case["rounds"] + 1)):
      batch = self.batches(step)
      for ids, length, label in zip(batch["input_ids"], batch["length"], batch["label"]):
        rows.append({"input_ids": ids[:length].tolist(), "label": int(label)})
    (folder / "batches.json").write_text(json.dumps(rows))
    texts = [item.texts[0] for item in self.plan.splits.test.items[: case["texts"]]]
    (folder / "texts.json").write_text(json.dumps([texts, self.plan.task.length]))


def train_plm_jax(case: dict[str, Any], turns: Turns) -> None:
  import jax

  from plm_jax.sharding import to_global

  ours = Ours(case)
  ours.write(case)
  state = dataclasses.replace(ours.program.create(), params=ours.params)
  total = case["steps"] * (case["rounds"] + 1)
  for step in range(total):  # compiles every shape
    ours.program.step_for(ours.batches(step))
  for step in range(total):
    batch = to_global(ours.batches(step), ours.program.mesh)
    state = ours.program.step_for(batch)(state, batch)
    if (step + 1) % case["steps"] == 0:
      jax.block_until_ready(state)
      turns.done()


def predict_plm_jax(case: dict[str, Any], turns: Turns) -> None:
  from plm_jax.tasks.task import Trained

  ours = Ours(case)
  ours.write(case)
  tokenizer, task = ours.plan.source.tokenizer, ours.plan.task
  settings = ours.experiment.compute, ours.program.mesh, BATCH
  model = Trained(ours.experiment.model, ours.params, tokenizer, *settings)
  texts, _ = json.loads((Path(case["folder"]) / "texts.json").read_text())
  for _ in range(case["rounds"] + 1):
    items = [task.parse(text, "") for text in texts]
    predictions = task.predict(model, task.encode(items, tokenizer))
    turns.done(labels=[prediction["label"] for prediction in predictions])


# --- transformers ---------------------------------------------------------------------------------


def train_transformers(case: dict[str, Any], turns: Turns) -> None:
  import torch
  import transformers

  folder = Path(case["folder"])
  model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")

  class InOrder(transformers.Trainer):
    def _get_train_sampler(self, dataset=None):
      return torch.utils.data.SequentialSampler(self.train_dataset)

  class OnTurn(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
      if state.global_step % case["steps"] == 0:
        turns.done()

  trainer = InOrder(
    model,
    transformers.TrainingArguments(
      str(folder / "trainer"),
      per_device_train_batch_size=BATCH,
      max_steps=case["steps"] * (case["rounds"] + 1),
      learning_rate=5e-5,
      weight_decay=0.01,
      warmup_steps=30,
      logging_strategy="no",
      save_strategy="no",
      report_to=[],
      disable_tqdm=True,
      use_cpu=True,
    ),
    transformers.DataCollatorWithPadding(tokenizer),
    json.loads((folder / "batches.json").read_text()),
    callbacks=[OnTurn()],
  )
  trainer.train()


def predict_transformers(case: dict[str, Any], turns: Turns) -> None:
  import transformers

  folder = Path(case["folder"])
  texts, longest = json.loads((folder / "texts.json").read_text())
  pipe = transformers.pipeline("text-classification", str(folder / "model"), device="cpu")
  settings = {"batch_size": BATCH, "truncation": True, "max_length": longest}
  for _ in range(case["rounds"] + 1):
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    labels = [""] * len(texts)
    for number, made in zip(order, pipe([texts[number] for number in order], **settings)):
      labels[number] = made["label"]
    turns.done(labels=labels)


WORKS = {
  ("train", "plm_jax"): train_plm_jax,
  ("train", "transformers"): train_transformers,
  ("predict", "plm_jax"): predict_plm_jax,
  ("predict", "transformers"): predict_transformers,
}


# --- the comparison -------------------------------------------------------------------------------


class Worker:
  """The parent's end of one side. The first round warms up."""

  def __init__(self, work: str, side: str, case: dict[str, Any]):
    words = [sys.executable, __file__, "--worker", work, side, json.dumps(case)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    self._process = subprocess.Popen(words, env=environment, **pipes)
    self._side = side
    self.start = self._answer()["s"]

  def round(self) -> dict[str, Any]:
    print(file=self._process.stdin, flush=True)
    return self._answer()

  def end(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise UserError(f"the side {self._side} ended; what it said stands above")
    return json.loads(line)


def measure(work: str, case: dict[str, Any]) -> None:
  workers = {side: Worker(work, side, case) for side in SIDES}
  rounds = [
    {side: worker.round() for side, worker in workers.items()} for _ in range(case["rounds"])
  ]
  for worker in workers.values():
    worker.end()
  count = case["steps"] * BATCH if work == "train" else len(rounds[0]["plm_jax"]["labels"])
  print(
    f"\n{work}: {case['rounds']} rounds of {count:,} examples; "
    f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n"
    f"{'':14}{'examples/s':>12}{'CPU s':>8}{'start':>9}   plm_jax is so many times as fast, by "
    "clock and processor"
  )
  for side, worker in workers.items():
    wall, cpu = (np.array([each[side][name] for each in rounds]) for name in ("s", "cpu_s"))
    ours = [np.array([each["plm_jax"][name] for each in rounds]) for name in ("s", "cpu_s")]
    ratios = [spread(theirs / our) for theirs, our in zip((wall, cpu), ours)]
    print(
      f"{side:14}{count / np.median(wall):12.1f}{np.median(cpu):8.1f}{worker.start:7.1f} s   "
      f"{ratios[0]:24}{ratios[1]}"
    )
  if work == "predict":
    first, second = (rounds[0][side]["labels"] for side in SIDES)
    print(f"{np.mean(np.array(first) == np.array(second)):.1%} of the labels are equal")


def spread(ratios: np.ndarray) -> str:
  low, ratio, high = np.percentile(ratios, (25, 50, 75))
  return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def main() -> int:
  if not (_MODEL.value and _DATA.value):
    raise UserError("benchmarks/finetune.py needs --model=DIR and --data=FILE.")
  for work in _WORK.value:
    if (work, SIDES[0]) not in WORKS:
      raise UserError(f"--work={work} was given; expected train, predict or both.")
  check_installed("torch", "transformers", "accelerate")
  for work in _WORK.value:
    with tempfile.TemporaryDirectory() as folder:
      case = {"model": _MODEL.value, "data": _DATA.value, "folder": folder}
      case |= {"rounds": _ROUNDS.value, "steps": _STEPS.value, "texts": _TEXTS.value}
      measure(work, case)
  return 0


if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    WORKS[sys.argv[2], sys.argv[3]](json.loads(sys.argv[4]), Turns())
  else:
    cli.run(main)
