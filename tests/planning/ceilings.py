"""Ceilings for the compiled steps of some experiments, on a TPU and a GPU that are not here.

    PYTHONPATH=CHIPS python -m tests.planning.ceilings                  all, against ceilings.json
    PYTHONPATH=CHIPS python -m tests.planning.ceilings NAME... --record

CHIPS is a folder with libtpu, or with JAX's CUDA plugin and NVIDIA's assembler (`.ci/run` makes
it). The layers are full-sized, and there are few of them, so that a case compiles in seconds.
"""

import contextlib
import json
import sys
from importlib import metadata
from pathlib import Path

from plm_jax.experiment_flags import chosen_experiment
from plm_jax.planning.ahead import devices_of
from plm_jax.planning.choosing import placed
from plm_jax.planning.collectives import KINDS
from plm_jax.planning.devices import pretended, target_of
from plm_jax.planning.program_costs import costs_of, kernels, operations
from plm_jax.planning.program_text import Program, parsed
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment

RECORD = Path(__file__).with_suffix(".json")
FEW = ("model.layers=2", "compute.micro_batches=1", "compute.dtype=bfloat16")
# T5 is left out: it compiles for two minutes for a TPU. For a GPU, without tuning on a card, XLA
# finds no tiles for its 231 targets.
CASES = {  # name: experiment, devices, settings
  "bert-v5e": ("bert.py:base", "v5e-4", ("global_batch=256", "data.length=128")),
  "bert-512-v5e-fsdp": (
    "bert.py:base", "v5e-4", ("global_batch=64", "mesh.data=1", "mesh.fsdp=4"),
  ),
  "gpt2-v5e": ("gpt.py:gpt2_small", "v5e-4", ("global_batch=32",)),
  "bert-h100": ("bert.py:base", "h100x1", ("global_batch=96", "data.length=128")),
  "bert-512-h100": ("bert.py:base", "h100x1", ("global_batch=32",)),
  "gpt2-h100": ("gpt.py:gpt2_small", "h100x1", ("global_batch=16",)),
}  # fmt: skip


def measured(name: str) -> dict[str, float]:
  """Of one device and step. temporaries, traffic: bytes. squares: bytes of results with two axes of
  the row's length, such as the scores of attention. float32: the share of the operations whose
  inputs are float32. collectives: how often devices send."""
  reference, devices, settings = CASES[name]
  experiment, _ = chosen_experiment(
    f"experiments/{reference}", "", "paper", [*FEW, *settings], None
  )
  target = target_of(devices)
  with pretended(target.device):
    placement, _ = placed(experiment, target, True)
    experiment = placement.experiment
    batch = example_batch(experiment)
    program = compile_experiment(experiment, batch, devices_of(target))
  step = program.step.func
  found = parsed(step.as_text())
  costs = costs_of(found, target.device, target.count)
  return {
    "temporaries": step.memory_analysis().temp_size_in_bytes,
    "operations": costs.operations,
    "traffic": costs.traffic,
    "squares": squares(found, batch["input_ids"].shape[1]),
    "float32": float32_products(found) / max(costs.operations, 1),
    "collectives": sum(costs.collectives.runs.values()),
    "seconds": costs.seconds,
  }


def squares(program: Program, length: int) -> float:
  return sum(
    runs * array.size
    for runs, x, _ in kernels(program)
    if x.operation not in KINDS
    for array in x.arrays
    if array.shape.count(length) >= 2
  )


def float32_products(program: Program) -> float:
  total = 0.0
  for runs, x, computation in kernels(program):
    inside = [(x, computation)]
    for name in x.called("calls", "to_apply"):
      if name in program.computations:
        inside += [(y, program.computations[name]) for y in program.computations[name].order]
    for y, within in inside:
      if y.operation in ("dot", "convolution"):
        inputs = [within.by_name[name].arrays[0] for name in y.operands[:2]]
        if all(a.dtype == "f32" for a in inputs):
          total += runs * operations(program, y, within)
  return total


def versions() -> dict[str, str]:
  """Of the compilers, which a record holds for: JAX's GPU plugin has the version of JAX."""
  found = {"jax": metadata.version("jax")}
  with contextlib.suppress(metadata.PackageNotFoundError):
    found["libtpu"] = metadata.version("libtpu")
  return found


def main(names: list[str], record: bool) -> None:
  known = json.loads(RECORD.read_text())
  for name in names or CASES:
    found = {key: float(f"{value:.4g}") for key, value in measured(name).items()}
    print(json.dumps({"name": name, **found}))
    if record:
      known["cases"][name] = found
      RECORD.write_text(json.dumps(known | versions(), indent=1) + "\n")


if __name__ == "__main__":
  main([word for word in sys.argv[1:] if word != "--record"], "--record" in sys.argv)
