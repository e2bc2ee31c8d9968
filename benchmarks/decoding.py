"""Greedy decoding of plm_jax against transformers' `generate` in PyTorch, with the same weights.

Random weights of GPT-2's sizes are written once as a directory of transformers; both sides read it,
go on from the same prompts for the same number of tokens, and must write the same ones. Each lives
in a process of its own, warmed up and called in turn, so that whatever else the machine does hits
both; ratios are medians over rounds, by the clock and by the processor time of the process.

  python benchmarks/decoding.py                                 124M parameters, batch 1 and 8
  python benchmarks/decoding.py --capacity=1024                 a cache most of which is empty
  python benchmarks/decoding.py --layers=2 --width=128 --heads=2 --rounds=3     seconds
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

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from needed import check_installed  # noqa: E402

from plm_jax import cli  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """capacity: columns of our cache; 0 is as many as are needed."""

  layers: int = 12
  width: int = 768
  heads: int = 12
  vocab: int = 50257
  prompt: int = 32
  new: int = 64
  capacity: int = 0
  batch: int = 1
  rounds: int = 5


_BATCH = flags.DEFINE_list("batches", ["1", "8"], "how many prompts at a time")
for _field in dataclasses.fields(Case):
  if _field.name != "batch":
    flags.DEFINE_integer(_field.name, _field.default, "of the case")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of activations and cache")


def prompts(case: Case) -> np.ndarray:
  ids = np.random.default_rng(0).integers(5, case.vocab, (case.batch, case.prompt))
  return ids.astype(np.int32)


# --- the two sides: directory, case -> a function that writes ids [batch, new] --------------------


def plm_jax(directory: str, case: Case, dtype: str):
  from plm_jax.decode import writer
  from plm_jax.decode.rules import Rules
  from plm_jax.export import hf
  from plm_jax.models.compute import Compute

  generator = writer.ready(hf.load(directory).params, Compute(dtype=dtype), case.vocab, case.batch)
  rows = np.zeros(case.batch, np.int32)
  of_draws = 0, np.zeros((case.batch, 2), np.uint32)
  no_end = np.zeros(0, np.int32)
  # Room for more tokens than a row may have: the cache is as large as it would be for those.
  rules = Rules(max_length=(case.capacity or case.prompt + case.new) - case.prompt)

  def write():
    given = {"pad": rows}, prompts(case), rows + case.new
    return np.asarray(writer.grow(generator, *given, *of_draws, no_end, rules).ids_BL)

  return lambda: write()[:, : case.new]


def transformers(directory: str, case: Case, dtype: str):
  import torch
  from transformers import GPT2LMHeadModel

  model = GPT2LMHeadModel.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  ids = torch.tensor(prompts(case)).long().to(device)
  model = model.to(device)
  settings = {"do_sample": False, "min_new_tokens": case.new, "max_new_tokens": case.new}

  def write():
    with torch.inference_mode():
      mask = torch.ones_like(ids)
      found = model.generate(
        ids, attention_mask=mask, eos_token_id=None, pad_token_id=0, **settings
      )
    return found[:, case.prompt :].cpu().numpy()

  return write


def work(side: str, directory: str, case: Case, dtype: str) -> None:
  """A worker: a line in, a line with the times and the tokens of one generation out."""
  write = {"plm_jax": plm_jax, "transformers": transformers}[side](directory, case, dtype)
  write()
  for _ in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    ids = write()
    times = [1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)]
    print(json.dumps({"times": times, "ids": ids.tolist()}), flush=True)


# --- the comparison -------------------------------------------------------------------------------


def weights(case: Case, directory: str) -> None:
  """Random parameters as a directory of transformers."""
  import jax

  from plm_jax.export import hf
  from plm_jax.models.gpt import Gpt2

  sizes = {"layers": case.layers, "width": case.width, "heads": case.heads}
  # Larger than trained ones start: with 0.02 the logits of most tokens would be alike.
  config = Gpt2(vocab_size=case.vocab, initializer_range=0.1, **sizes)
  hf.save(hf.Pretrained(config, config.init(jax.random.key(0), {"lm": 0})), directory)


def measure(case: Case, directory: str) -> None:
  sides = ("plm_jax", "transformers")
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  given = [directory, json.dumps(vars(case)), _DTYPE.value]
  workers = [
    subprocess.Popen([sys.executable, __file__, "--worker", side, *given], **pipes)
    for side in sides
  ]
  times, ids = np.zeros((2, case.rounds, 2)), [None, None]
  for number in range(case.rounds):
    for side, worker in enumerate(workers):
      print(file=worker.stdin, flush=True)
      line = worker.stdout.readline()
      if not line:
        raise UserError(f"the side {sides[side]} ended; what it said stands above")
      answer = json.loads(line)
      times[side, number], ids[side] = answer["times"], np.array(answer["ids"])
  for worker in workers:
    worker.stdin.close()
    worker.wait()
  show(case, times, ids)


def show(case: Case, times: np.ndarray, ids: list[np.ndarray]) -> None:
  ours, theirs = np.median(times[..., 0], axis=1)
  low, ratio, high = np.percentile(times[1] / times[0], (25, 50, 75), axis=0)
  speeds = [case.batch * case.new / ms * 1e3 for ms in (ours, theirs)]
  print(
    f"batch {case.batch}, {case.prompt} + {case.new} tokens, cache {case.capacity or 'as needed'}: "
    f"plm_jax {speeds[0]:,.1f} tokens/s (CPU {np.median(times[0, :, 1]):,.0f} ms), transformers "
    f"{speeds[1]:,.1f} (CPU {np.median(times[1, :, 1]):,.0f} ms); plm_jax is {ratio[0]:.2f} "
    f"[{low[0]:.2f}, {high[0]:.2f}] times as fast, by processor time {ratio[1]:.2f} "
    f"[{low[1]:.2f}, {high[1]:.2f}]; {np.mean(ids[0] == ids[1]):.1%} of the tokens equal; "
    f"load {os.getloadavg()[0]:.1f}"
  )


def main() -> int:
  own = {f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(Case) if f.name != "batch"}
  case = Case(**own)
  if case.capacity and case.capacity < case.prompt + case.new:
    raise UserError(f"--capacity={case.capacity} has no room for {case.prompt} + {case.new} tokens")
  check_installed("torch", "transformers")
  with tempfile.TemporaryDirectory() as directory:
    weights(case, directory)
    for batch in map(int, _BATCH.value):
      measure(dataclasses.replace(case, batch=batch), directory)
  return 0


if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    side, directory, case, dtype = sys.argv[2:]
    work(side, directory, Case(**json.loads(case)), dtype)
  else:
    cli.run(main)
