"""Bytes per device of a train step that is compiled for a TPU which is not there.

    pip install libtpu
    python benchmarks/tpu_memory.py bert_large v5e:4x4 1,16,1 64
    python benchmarks/tpu_memory.py llama_1b v5p:2x2x2 1,8,1 16 compute.remat=true

Arguments: a case of `CASES`, a topology, the mesh (data, fsdp, tensor), rows per step, and fields
as for `--set`. Activations are bfloat16, in one micro-batch. A step that is too large ends with the
compiler's sentence.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from math import prod
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from plm_jax import cli, overrides  # noqa: E402
from plm_jax.errors import UserError  # noqa: E402
from plm_jax.experiment_flags import vocab_size_of  # noqa: E402
from plm_jax.models.llama import Llama  # noqa: E402
from plm_jax.models.t5 import T5_3B  # noqa: E402
from plm_jax.sharding import MeshShape  # noqa: E402
from plm_jax.train.example_batch import example_batch  # noqa: E402
from plm_jax.train.loop import compile_experiment  # noqa: E402

# An experiment at `paper`, and a model in place of its own.
CASES = {
  "bert_large": ("experiments/bert.py:large", None),
  "gpt2": ("experiments/gpt.py:gpt2_small", None),
  "llama_1b": (
    "experiments/llama.py:base",
    Llama(layers=22, width=2048, heads=32, kv_heads=4, hidden=5632),
  ),
  "t5_3b": ("experiments/t5.py:base", dataclasses.replace(T5_3B, vocab_size=None)),
}


def main(case: str, topology: str, mesh: str, rows: str, *settings: str) -> None:
  sizes = [int(size) for size in mesh.split(",")]
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  jax.default_backend = lambda: "tpu"  # the project asks which machine it is on
  reference, model = CASES[case]
  experiment = cli.load_experiment(reference, budget="paper")()
  experiment = dataclasses.replace(
    experiment,
    model=model or experiment.model,
    global_batch=int(rows),
    mesh=MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))),
  )
  fixed = ["compute.dtype=bfloat16", "compute.micro_batches=1"]
  experiment = overrides.apply(experiment, [*fixed, *settings])
  experiment = experiment.resolve(vocab_size_of(experiment))
  program = compile_experiment(experiment, example_batch(experiment), list(devices)[: prod(sizes)])
  memory = program.step.func.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  print(f"arguments {arguments / 1e9:.2f} GB, temporaries {temporaries / 1e9:.2f} GB per device")


if __name__ == "__main__":
  try:
    main(*sys.argv[1:])
  except UserError as error:
    sys.exit(f"error: {error}")
