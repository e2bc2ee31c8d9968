"""A sentence encoder exported to ONNX against transformers and against plm_jax itself.

All sides turn the same texts into the same vectors, tokenizing included: batches of 32 texts sorted
by length and padded to their longest, and single texts in random order. Each side computes all
texts of a round in turn, so that whatever else the machine does hits all of them; ratios are
medians over rounds, by the clock and by the processor time of the process.

  taskset -c 0,1 python benchmarks/exported.py --model=MINILM --data=reviews.tsv

--model is a directory of sentence-transformers; --data is a table whose first column has texts.
"""

from __future__ import annotations

import os
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

from plm_jax import cli  # noqa: E402
from plm_jax.commands.encode import encode, read  # noqa: E402
from plm_jax.commands.export import calibration_rows  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402
from plm_jax.export.onnx_file import write_onnx  # noqa: E402
from plm_jax.export.to_run import run_directory  # noqa: E402
from plm_jax.runs import Run  # noqa: E402

FLAGS = flags.FLAGS
Side = Callable[[list[str]], np.ndarray]
LONGEST = 128  # tokens


def define_flags() -> None:
  flags.DEFINE_string("model", None, "A directory of sentence-transformers.")
  flags.DEFINE_string("data", None, "A table of texts.")
  flags.DEFINE_integer("texts", 256, "Texts of a round in batches of 32; single ones: a quarter.")
  flags.DEFINE_integer("rounds", 7, "Rounds of which the median is taken.")


def tokenizer(model: Path):
  """transformers' arrays of texts: a function."""
  from tokenizers import Tokenizer

  loaded = Tokenizer.from_file(str(model / "tokenizer.json"))
  loaded.enable_truncation(LONGEST)
  loaded.enable_padding()

  def arrays(texts: list[str]) -> dict[str, np.ndarray]:
    rows = loaded.encode_batch(texts)
    ids = np.array([row.ids for row in rows])
    mask = np.array([row.attention_mask for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

  return arrays


def in_torch(model: Path, arrays) -> Side:
  """transformers, eager, float32."""
  import torch
  import transformers

  loaded = transformers.AutoModel.from_pretrained(model, attn_implementation="eager").eval()

  def side(texts: list[str]) -> np.ndarray:
    batch = {name: torch.from_numpy(array) for name, array in arrays(texts).items()}
    with torch.inference_mode():
      states, real = loaded(**batch).last_hidden_state, batch["attention_mask"][..., None]
      return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1).numpy()

  return side


def in_onnx(path: Path, arrays) -> Side:
  """ONNX Runtime, which computes the vectors alone."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = len(os.sched_getaffinity(0))
  opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
  return lambda texts: opened.run(["sentence_embedding"], arrays(texts))[0]


def sides(model: Path, folder: Path, calibration: list[str]) -> dict[str, Side]:
  """calibration: texts that are not measured."""
  run, arrays = Run.load(run_directory(model)), tokenizer(model)
  rows = calibration_rows(run, calibration)
  file = write_onnx(run, folder / "model.onnx", int8=True, calibration=rows)
  dynamic, static = file.smaller
  sizes = {"float32": file, "int8": dynamic, "static int8": static}
  print(", ".join(f"{name} {made.size / 1e6:.1f} MB" for name, made in sizes.items()))
  return {
    "transformers": in_torch(model, arrays),
    "plm_jax.encode": lambda texts: encode(run, texts),
    **{f"ONNX {name}": in_onnx(made.path, arrays) for name, made in sizes.items()},
  }


def measure(made: dict[str, Side], batches: list[list[str]], title: str) -> None:
  """Prints a row for each side."""
  first = {name: np.concatenate([side(batch) for batch in batches]) for name, side in made.items()}
  clock, processor = ({name: [] for name in made} for _ in range(2))
  for _ in range(FLAGS.rounds):
    for name, side in made.items():
      began = time.perf_counter(), time.process_time()
      for batch in batches:
        side(batch)
      clock[name].append(time.perf_counter() - began[0])
      processor[name].append(time.process_time() - began[1])
  texts, right = sum(map(len, batches)), first["transformers"]
  for name in made:
    ratios = [
      np.median(np.divide(seconds["transformers"], seconds[name])) for seconds in (clock, processor)
    ]
    error = np.linalg.norm(first[name] - right) / np.linalg.norm(right)
    print(
      f"| {title} | {name} | {np.median(clock[name]) / texts * 1e3:.2f} | {ratios[0]:.2f} | "
      f"{ratios[1]:.2f} | {error:.1e} | {(first[name] * right).sum(axis=1).min():.4f} |"
    )


def main() -> None:
  if not (FLAGS.model and FLAGS.data):
    raise UserError("--model=DIR and --data=FILE are needed.")
  texts = read(FLAGS.data)
  order = np.random.default_rng(0).permutation(len(texts))
  chosen, rest = order[: FLAGS.texts], [texts[n] for n in order[FLAGS.texts :]]
  singles = [[texts[n]] for n in chosen[: FLAGS.texts // 4]]
  ordered = sorted((texts[n] for n in chosen), key=len)
  batches = [ordered[first : first + 32] for first in range(0, len(ordered), 32)]
  with tempfile.TemporaryDirectory() as folder:
    made = sides(Path(FLAGS.model), Path(folder), rest)
    print("| batch | side | ms a text | times as fast | by processor | error | least cosine |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    measure(made, batches, "32")
    measure(made, singles, "1")


if __name__ == "__main__":
  cli.run(main)
