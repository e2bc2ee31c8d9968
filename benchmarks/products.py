"""Products of float32 matrices in XLA and PyTorch, in GFLOP/s: the largest part of a step on a CPU.

  python benchmarks/products.py                  the products of MiniLM's layers
  python benchmarks/products.py --width=768 --hidden=3072

One side after the other, since the idle threads of either slow the other down for a while.
"""

from __future__ import annotations

import os
import sys
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

FLAGS = flags.FLAGS
Side = Callable[[np.ndarray, np.ndarray], Callable[[], object]]


def define_flags() -> None:
  flags.DEFINE_list("rows", ["16", "32", "128", "512", "1024", "2048"], "Rows of the left matrix.")
  flags.DEFINE_integer("width", 384, "D of the products D x D, D x F and F x D.")
  flags.DEFINE_integer("hidden", 1536, "F of these.")
  flags.DEFINE_integer("rounds", 21, "Products of which the median is taken.")


def in_jax(x_RK: np.ndarray, w_KF: np.ndarray) -> Callable[[], object]:
  import jax

  product, x, w = jax.jit(lambda x, w: x @ w), jax.device_put(x_RK), jax.device_put(w_KF)
  return lambda: product(x, w).block_until_ready()


def in_torch(x_RK: np.ndarray, w_KF: np.ndarray) -> Callable[[], object]:
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  x, w = torch.from_numpy(x_RK), torch.from_numpy(w_KF)
  return lambda: x @ w


def speed(side: Side, rows: int, inputs: int, outputs: int) -> float:
  """GFLOP/s, by the median."""
  draw = np.random.default_rng(0).standard_normal
  call = side(draw((rows, inputs), np.float32), draw((inputs, outputs), np.float32))
  seconds = []
  for _ in range(FLAGS.rounds + 3):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return 2 * rows * inputs * outputs / np.median(seconds[3:]) / 1e9


def main() -> None:
  check_installed("torch")
  D, F = FLAGS.width, FLAGS.hidden
  shapes = [(int(R), *kernel) for R in FLAGS.rows for kernel in ((D, D), (D, F), (F, D))]
  found = [[speed(side, *shape) for shape in shapes] for side in (in_jax, in_torch)]
  print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
  print("| rows, kernel | XLA, GFLOP/s | PyTorch |\n|---|---:|---:|")
  for (rows, inputs, outputs), ours, theirs in zip(shapes, *found):
    print(f"| {rows}, {inputs} x {outputs} | {ours:.0f} | {theirs:.0f} |")


if __name__ == "__main__":
  cli.run(main)
