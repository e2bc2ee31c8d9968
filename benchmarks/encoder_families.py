"""ALBERT, DistilBERT and BERT of one width: bytes and latency, with random parameters.

Latency does not depend on the values of the parameters. The three are timed in turns by the code of
`python -m plm_jax.shrink`, on rows of mixed lengths.

  python benchmarks/encoder_families.py                          6 layers of 384, 12 heads
  python benchmarks/encoder_families.py --layers=2 --width=64 --heads=2 --vocab=1000     seconds
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from plm_jax import cli  # noqa: E402
from plm_jax.compression.forms import bytes_of  # noqa: E402
from plm_jax.models.albert import Albert  # noqa: E402
from plm_jax.models.bert import Bert  # noqa: E402
from plm_jax.models.compute import Compute  # noqa: E402
from plm_jax.models.distilbert import DistilBert  # noqa: E402
from plm_jax.models.layer_loop import with_separate_layers  # noqa: E402
from plm_jax.shrinking.measure import in_turns, states  # noqa: E402

_LAYERS = flags.DEFINE_integer("layers", 6, "of each model")
_WIDTH = flags.DEFINE_integer("width", 384, "of each model")
_HEADS = flags.DEFINE_integer("heads", 12, "of each model")
_VOCAB = flags.DEFINE_integer("vocab", 30522, "tokens")
LENGTHS = (16, 32, 64, 128)
REPEATS = 8  # the fastest counts: other programs only slow a call down


def models() -> dict[str, Bert | Albert | DistilBert]:
  """name -> configuration."""
  sizes = {"width": _WIDTH.value, "heads": _HEADS.value, "vocab_size": _VOCAB.value}
  deep, half = sizes | {"layers": _LAYERS.value}, sizes | {"layers": _LAYERS.value // 2}
  return {
    "BERT": Bert(**deep),
    "ALBERT, E = 128": Albert(**deep),
    "DistilBERT, as deep": DistilBert(**deep),
    "DistilBERT, half as deep": DistilBert(**half),
  }


def rows(length: int, size: int) -> dict[str, np.ndarray]:
  ids = np.random.default_rng(length).integers(5, _VOCAB.value, (size, length)).astype(np.int32)
  lengths = np.full(size, length, np.int32)
  return {"input_ids": ids, "segment_ids": np.zeros_like(ids), "length": lengths}


def main() -> None:
  compute, calls, sizes = Compute(), {}, {}
  for name, config in models().items():
    params = jax.jit(lambda key, config=config: config.init(key, {}))(jax.random.key(0))
    separate = with_separate_layers(params, compute)  # as predictions have them
    calls[name] = functools.partial(states, separate, compute=compute)
    sizes[name] = bytes_of(params)
  batches = [rows(length, 1) for length in LENGTHS for _ in range(REPEATS)]
  single = {
    name: times.reshape(len(LENGTHS), REPEATS).min(1)
    for name, times in in_turns(calls, batches).items()
  }
  many = in_turns(calls, [rows(length, 32) for length in LENGTHS])
  print("| model | parameters, MB | " + " | ".join(f"{n} tokens, ms" for n in LENGTHS)
        + " | texts a second, batch 32 |")  # fmt: skip
  print("| --- |" + " --: |" * (len(LENGTHS) + 2))
  for name in calls:
    times = " | ".join(f"{1000 * seconds:.1f}" for seconds in single[name])
    speed = 32 * len(LENGTHS) / many[name].sum()
    print(f"| {name} | {sizes[name] / 1e6:.1f} | {times} | {speed:.0f} |")


if __name__ == "__main__":
  cli.run(main)
