"""One training step of a recurrent language model against PyTorch's, interleaved.

The same work on both sides: token table, 2 layers, output table without a bias, the state carried
to the next batch, gradients clipped to norm 1, AdamW, float32, no dropout. Each side is a process,
warmed up and called in turn, so that whatever else the machine does hits both; the ratio is the
median over rounds, by the clock and by processor time.

  python benchmarks/recurrent_step.py                     2 x 256, 8 rows of 128, vocabulary 4,096
  python benchmarks/recurrent_step.py --width=650 --batch=20 --length=35 --vocab=10000
  python benchmarks/recurrent_step.py --cell=gru --rounds=20
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from plm_jax import cli  # noqa: E402

SIZES = {"width": 256, "batch": 8, "length": 128, "vocab": 4096, "rounds": 15, "steps": 3}
FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_enum("cell", "lstm", ["lstm", "gru", "rnn"], "The recurrent layer.")
  for name, size in SIZES.items():
    flags.DEFINE_integer(name, size, f"The number of {name}, or size.", lower_bound=1)


def ids_of(sizes: dict[str, int]) -> np.ndarray:
  """int32 [batch, length + 1]: random tokens and the one that follows them."""
  draws = np.random.default_rng(0)
  return draws.integers(5, sizes["vocab"], (sizes["batch"], sizes["length"] + 1)).astype(np.int32)


def ours(cell: str, sizes: dict[str, int]):
  """A function that takes one step of plm_jax."""
  import jax

  from plm_jax.data.packed_documents import PackedDocuments
  from plm_jax.data.pipeline import Corpus
  from plm_jax.experiment import Experiment
  from plm_jax.models import lstm
  from plm_jax.models.compute import Compute
  from plm_jax.objectives.clm import CLM
  from plm_jax.optim.adamw import AdamW
  from plm_jax.sharding import MeshShape, to_global
  from plm_jax.train.example_batch import example_batch
  from plm_jax.train.loop import compile_experiment

  model = getattr(lstm, cell.capitalize())
  experiment = Experiment(
    model=model(width=sizes["width"], vocab_size=sizes["vocab"]),
    objectives=(CLM(),),
    data=Corpus(segments=PackedDocuments(separate=False, ordered=True), length=sizes["length"]),
    optim=AdamW(peak=1e-3, warmup=10, clip=1.0),
    global_batch=sizes["batch"],
    steps=1_000_000,
    mesh=MeshShape(data=1),
    compute=Compute(dtype="float32"),
  )
  batch = example_batch(experiment)
  ids = ids_of(sizes)
  batch |= {"input_ids": ids[:, :-1], "clm_targets": ids[:, 1:]}
  batch["begins"] = np.zeros_like(batch["begins"])
  program = compile_experiment(experiment, batch, jax.devices()[:1])
  state, batch = program.create(), to_global(batch, program.mesh)

  def step():
    nonlocal state
    state = program.step(state, batch)
    jax.block_until_ready(state)

  return step


def torchs(cell: str, sizes: dict[str, int]):
  """A function that takes one step of PyTorch."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  table = torch.nn.Embedding(sizes["vocab"], sizes["width"])
  layers = getattr(torch.nn, cell.upper())(sizes["width"], sizes["width"], 2, batch_first=True)
  output = torch.nn.Linear(sizes["width"], sizes["vocab"], bias=False)
  parameters = [p for module in (table, layers, output) for p in module.parameters()]
  optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
  ids = torch.tensor(ids_of(sizes), dtype=torch.long)
  carry = None

  def step():
    nonlocal carry
    states, last = layers(table(ids[:, :-1]), carry)
    logits = output(states).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    carry = last.detach() if cell != "lstm" else tuple(x.detach() for x in last)

  return step


def worker(make, cell: str, sizes: dict[str, int], pipe) -> None:
  """Answers every message with the clock and processor seconds of a step."""
  step = make(cell, sizes)
  for _ in range(3):
    step()
  pipe.send("ready")
  while pipe.recv():
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(sizes["steps"]):
      step()
    spent = time.perf_counter() - clock, time.process_time() - processor
    pipe.send(tuple(x / sizes["steps"] for x in spent))


def main() -> None:
  sizes = {name: FLAGS[name].value for name in SIZES}
  context = multiprocessing.get_context("spawn")
  pipes, processes = [], []
  for make in (ours, torchs):
    here, there = context.Pipe()
    processes.append(context.Process(target=worker, args=(make, FLAGS.cell, sizes, there)))
    processes[-1].start()
    here.recv()
    pipes.append(here)
  times = []
  for number in range(sizes["rounds"]):
    pair = [None, None]
    for side in (0, 1) if number % 2 else (1, 0):
      pipes[side].send(True)
      pair[side] = pipes[side].recv()
    times.append(pair)
  for pipe, process in zip(pipes, processes, strict=True):
    pipe.send(False)
    process.join()
  times = np.array(times)  # [rounds, side, clock or processor]
  for side, name in enumerate(("plm_jax", "torch")):
    clock, processor = np.median(times[:, side], axis=0) * 1000
    print(f"{name:8} {clock:8.1f} ms by the clock, {processor:8.1f} ms of processor time")
  ratios = np.median(times[:, 1] / times[:, 0], axis=0)
  print(f"plm_jax is {ratios[0]:.2f} times as fast by the clock, {ratios[1]:.2f} by processor time")


if __name__ == "__main__":
  cli.run(main)
