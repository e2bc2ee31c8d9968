"""Sentence vectors of plm_jax against transformers in PyTorch and against ONNX Runtime.

All sides turn the same texts of mixed lengths into the same vectors, tokenizing included: once
many together and once one after the other. transformers and ONNX Runtime get batches of 32, sorted
by characters and padded to their longest; plm_jax gets the list, and forms its own batches. Each
side lives in a process of its own and computes all texts of a round in turn, so that whatever else
the machine does hits all of them; ratios are medians over rounds, by the clock and by the processor
time of the process.

  taskset -c 0,1 python benchmarks/exported.py --model=MINILM --data=reviews.tsv

--model is a directory of sentence-transformers; --data is a table whose first column has texts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from needed import check_installed  # noqa: E402

from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS
Side = Callable[[list[str]], np.ndarray]
LONGEST = 128  # tokens
BATCH = 32


def define_flags() -> None:
  flags.DEFINE_string("model", None, "A directory of sentence-transformers.")
  flags.DEFINE_string("data", None, "A table of texts.")
  flags.DEFINE_integer("texts", 1024, "Texts of a round; one by one: a quarter.")
  flags.DEFINE_integer("rounds", 7, "Rounds of which the median is taken.")


# --- the sides: model, file -> a function of many texts -------------------------------------------


def in_batches(model: str, compute: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Side:
  """compute: makes the vectors of transformers' arrays."""
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
  tokenizer.enable_truncation(LONGEST)
  tokenizer.enable_padding()

  def vectors(texts: list[str]) -> np.ndarray:
    rows = tokenizer.encode_batch(texts)
    ids = np.array([row.ids for row in rows])
    mask = np.array([row.attention_mask for row in rows])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return compute(arrays)

  def side(texts: list[str]) -> np.ndarray:
    order = np.argsort([len(text) for text in texts], kind="stable")
    parts = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    made = np.concatenate([vectors([texts[n] for n in part]) for part in parts])
    return made[np.argsort(order)]

  return side


def in_torch(model: str, file: str) -> Side:
  """transformers, eager, float32."""
  import torch
  import transformers

  del file
  loaded = transformers.AutoModel.from_pretrained(model, attn_implementation="eager").eval()

  def compute(arrays: dict[str, np.ndarray]) -> np.ndarray:
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.inference_mode():
      states, real = loaded(**batch).last_hidden_state, batch["attention_mask"][..., None]
      return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1).numpy()

  return in_batches(model, compute)


def in_onnx(model: str, file: str) -> Side:
  """ONNX Runtime, which computes the vectors alone."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = len(os.sched_getaffinity(0))
  opened = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
  return in_batches(model, lambda arrays: opened.run(["sentence_embedding"], arrays)[0])


def in_plm_jax(model: str, file: str) -> Side:
  """The Python API, with the allocator of the commands."""
  cli.keep_freed_memory()
  import plm_jax

  del file
  return plm_jax.load(model).encode


SIDES = {
  "transformers": in_torch,
  "plm_jax.encode": in_plm_jax,
  "ONNX float32": in_onnx,
  "ONNX int8": in_onnx,
  "ONNX static int8": in_onnx,
}


def work(name: str, model: str, file: str) -> None:
  """A worker: lists of texts, computed one after the other, come in as a line; the times and the
  vectors go out."""
  side = SIDES[name](model, file)
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints goes to stderr
  for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    made = [side(texts) for texts in json.loads(line)]
    times = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([times, np.concatenate(made).tolist()]), file=answers, flush=True)


# --- the comparison -------------------------------------------------------------------------------


def onnx_files(model: str, folder: Path, calibration: list[str]) -> dict[str, str]:
  """The file of each ONNX side. calibration: texts that are not measured."""
  from plm_jax.commands.export import calibration_rows
  from plm_jax.export.onnx_file import write_onnx
  from plm_jax.export.to_run import run_directory
  from plm_jax.runs import Run

  run = Run.load(run_directory(model))
  rows = calibration_rows(run, calibration)
  file = write_onnx(run, folder / "model.onnx", int8=True, calibration=rows)
  made = dict(zip(("ONNX float32", "ONNX int8", "ONNX static int8"), (file, *file.smaller)))
  print(", ".join(f"{name} {one.size / 1e6:.1f} MB" for name, one in made.items()))
  return {name: str(one.path) for name, one in made.items()}


def measure(workers: dict[str, subprocess.Popen], calls: list[list[str]], title: str) -> None:
  """Prints a row for each side. calls: the lists of texts that are computed one after the other."""

  def answer(name: str) -> tuple[list[float], np.ndarray]:
    worker = workers[name]
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(calls), file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
      raise UserError(f"the side {name} ended; what it said stands above")
    times, vectors = json.loads(line)
    return times, np.array(vectors)

  first = {name: answer(name)[1] for name in workers}  # compiles
  rounds = [[answer(name)[0] for name in workers] for _ in range(FLAGS.rounds)]
  seconds, right = np.array(rounds), first["transformers"]
  for number, name in enumerate(workers):
    clock, processor = np.median(seconds[:, 0] / seconds[:, number], axis=0)
    ms = np.median(seconds[:, number, 0]) / len(right) * 1e3
    error = np.linalg.norm(first[name] - right) / np.linalg.norm(right)
    cosine = (first[name] * right).sum(axis=1).min()
    print(
      f"| {title} | {name} | {ms:.2f} | {clock:.2f} | {processor:.2f} | {error:.1e} | "
      f"{cosine:.4f} |"
    )


def main() -> None:
  if not (FLAGS.model and FLAGS.data):
    raise UserError("--model=DIR and --data=FILE are needed.")
  check_installed("torch", "transformers", "onnx", "onnxruntime", extra="bench,onnx")
  from plm_jax.commands.encode import read

  texts = read(FLAGS.data)
  if len(texts) <= FLAGS.texts:
    raise UserError(
      f"{FLAGS.data} has {len(texts):,} texts; give a lower --texts, so that some are left for the "
      "calibration of int8"
    )
  order = np.random.default_rng(0).permutation(len(texts))
  chosen = [texts[n] for n in order[: FLAGS.texts]]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  with tempfile.TemporaryDirectory() as folder:
    files = onnx_files(FLAGS.model, Path(folder), [texts[n] for n in order[FLAGS.texts :]])
    workers = {
      name: subprocess.Popen(
        [sys.executable, __file__, "--worker", name, FLAGS.model, files.get(name, "")], **pipes
      )
      for name in SIDES
    }
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| texts | side | ms a text | times as fast | by processor | error | least cosine |")
    print("|---|---|---:|---:|---:|---:|---:|")
    try:
      measure(workers, [chosen], "many")
      measure(workers, [[text] for text in chosen[: FLAGS.texts // 4]], "one by one")
    finally:
      for worker in workers.values():
        worker.kill()


if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    work(*sys.argv[2:])
  else:
    cli.run(main)
