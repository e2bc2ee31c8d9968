"""A training step of an LSTM and of a Transformer against the length of its rows.

A step always has the same number of tokens: longer rows are fewer. An LSTM reads a row token by
token, so that only the rows are computed at once; attention computes all tokens of all rows at
once, with work that grows with the length. Both are those of experiments/history.py. Times are of
the processor, so that other work on the machine hardly changes them. A CPU has few cores to fill:
it shows the price of small products, and not the time that a GPU would save.

  python benchmarks/row_length.py --out=sweeps/history/row_length.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from absl import flags

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))  # so that it runs where plm_jax is not installed

from plm_jax import cli  # noqa: E402

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_integer("tokens", 2048, "Tokens of a step.", lower_bound=64)
  flags.DEFINE_list("lengths", ["64", "128", "256", "512", "1024"], "Tokens of a row.")
  flags.DEFINE_integer("rounds", 5, "Steps of each; the median counts.", lower_bound=1)
  flags.DEFINE_string("out", None, "A JSON file to write.")


def seconds_of_step(name: str, length: int, tokens: int, rounds: int) -> float:
  """The median processor time of a step."""
  import jax

  from experiments import history
  from plm_jax.sharding import MeshShape, to_global
  from plm_jax.train.example_batch import example_batch
  from plm_jax.train.loop import compile_experiment

  experiment = getattr(history, name)("small")
  experiment = replace(
    experiment,
    model=replace(experiment.model, positions=length, vocab_size=4096),
    data=replace(experiment.data, length=length),
    global_batch=max(1, tokens // length),
    mesh=MeshShape(data=1),
  )
  batch = example_batch(experiment)
  program = compile_experiment(experiment, batch, jax.devices()[:1])
  state, batch = program.create(), to_global(batch, program.mesh)
  times = []
  for _ in range(rounds + 1):
    start = time.process_time()
    state = program.step(state, batch)
    jax.block_until_ready(state)
    times.append(time.process_time() - start)
  return statistics.median(times[1:])


def main() -> None:
  times: dict[str, dict[str, float]] = {}
  for name in ("lstm", "gpt"):
    for length in map(int, FLAGS.lengths):
      seconds = seconds_of_step(name, length, FLAGS.tokens, FLAGS.rounds)
      times.setdefault(name, {})[str(length)] = 1e6 * seconds / FLAGS.tokens
      rows = FLAGS.tokens // length
      print(f"{name:5} {rows:3} x {length:5}  {1e6 * seconds / FLAGS.tokens:8.1f} us per token")
  if FLAGS.out:
    Path(FLAGS.out).write_text(json.dumps({"tokens": FLAGS.tokens, "microseconds": times}) + "\n")


if __name__ == "__main__":
  cli.run(main)
