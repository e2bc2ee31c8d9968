"""Bytes per device of the train step of each family on eight simulated devices, compile only.

    python benchmarks/mesh_memory.py                    all families
    python benchmarks/mesh_memory.py bert gpt           some of them

Small models (2 layers of width 64, 16 rows), scanned layers, dropout on. A cell is "arguments +
temporaries" in kB, as XLA reports them: arguments are the state and the rows of one device.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from math import prod
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

import jax  # noqa: E402

from plm_jax import cli, overrides  # noqa: E402
from plm_jax.experiment import Experiment  # noqa: E402
from plm_jax.experiment_flags import vocab_size_of  # noqa: E402
from plm_jax.models.bert import Bert  # noqa: E402
from plm_jax.sharding import MeshShape  # noqa: E402
from plm_jax.train.example_batch import example_batch  # noqa: E402
from plm_jax.train.loop import compile_experiment  # noqa: E402

SMALL = ("model.layers=2", "model.width=64", "model.heads=8")
FAMILIES = {
  "bert": SMALL,
  "gpt": SMALL,
  "llama": SMALL,
  "t5": (*SMALL, "model.head_width=8", "model.hidden=256"),
  "bart": SMALL,
  "electra": SMALL,
  "albert": SMALL,
  "roberta": SMALL,
  "distilbert": SMALL,
  "lstm": SMALL[:2],
}
MESHES = {
  "1 device": (1, 1, 1),
  "data 8": (8, 1, 1),
  "fsdp 8": (1, 8, 1),
  "data 2, fsdp 4": (2, 4, 1),
  "data 2, tensor 4": (2, 1, 4),
  "2 x 2 x 2": (2, 2, 2),
}


def experiment_of(family: str) -> Experiment:
  """The family's base experiment at `smoke`, with the sizes of `FAMILIES`."""
  function = "tiny" if family == "lstm" else "base"
  experiment = cli.load_experiment(f"experiments/{family}.py:{function}", budget="smoke")()
  settings = ["global_batch=16", "compute.layers=scan", *FAMILIES[family]]
  experiment = overrides.apply(experiment, settings)
  if family == "distilbert":
    vocab_size = vocab_size_of(experiment)
    teacher = Bert(layers=4, width=64, heads=8, vocab_size=vocab_size).encoder
    model = dataclasses.replace(experiment.model, teacher="none", teacher_model=teacher)
    experiment = dataclasses.replace(experiment, model=model)
  return experiment.resolve(vocab_size_of(experiment))


def kilobytes(experiment: Experiment, sizes: tuple[int, int, int]) -> tuple[int, int]:
  """Arguments and temporaries of the compiled step per device, in kB."""
  mesh = MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
  experiment = dataclasses.replace(experiment, mesh=mesh)
  program = compile_experiment(experiment, example_batch(experiment), jax.devices()[: prod(sizes)])
  memory = program.step.func.memory_analysis()
  return memory.argument_size_in_bytes // 1000, memory.temp_size_in_bytes // 1000


def main() -> None:
  print("| family |", " | ".join(MESHES), "|")
  print("|---|" + "---:|" * len(MESHES))
  for family in sys.argv[1:] or FAMILIES:
    experiment = experiment_of(family)
    cells = [" + ".join(f"{n:,}" for n in kilobytes(experiment, s)) for s in MESHES.values()]
    print(f"| {family} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
  main()
