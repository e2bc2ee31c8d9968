"""The loss over a large vocabulary in parts: gradients beside each part's logits, or logits again.

    python benchmarks/vocabulary_loss.py

The contender is what JAX does by itself (`jax.checkpoint` around each part): its backward pass
computes the logits a second time. Products are the compiler's count for one part.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags

from plm_jax import cli
from plm_jax.objectives.objective import cross_entropy, in_parts, token_terms

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_integer("vocabulary", 50_257, "Tokens of the vocabulary.")
  flags.DEFINE_integer("width", 256, "Width of the states.")
  flags.DEFINE_integer("rows", 4, "Rows of 256 positions.")
  flags.DEFINE_integer("rounds", 7, "Rounds, one of each contender in turn.")


class Head:
  """Stands for a model: logits by a table `[V, D]`."""

  def __init__(self, table: jax.Array):
    self.table = table

  def token_logits(self, hidden: jax.Array) -> jax.Array:
    return jnp.einsum("bwd,vd->bwv", hidden, self.table)


def ours(table, hidden, targets, weights):
  return token_terms(Head(table), hidden, targets, weights)["loss"][0]


def again(table, hidden, targets, weights):
  @jax.checkpoint
  def loss(part):
    hidden, targets, weights = part
    return cross_entropy(Head(table).token_logits(hidden), targets, weights)["loss"][0]

  parts = in_parts(Head(table), (hidden, targets, weights))
  return jax.lax.scan(lambda total, part: (total + loss(part), None), 0.0, parts)[0]


def main() -> None:
  keys = jax.random.split(jax.random.key(0), 3)
  shape = FLAGS.rows, 256
  arrays = (
    jax.random.normal(keys[0], (FLAGS.vocabulary, FLAGS.width)) * 0.02,
    jax.random.normal(keys[1], (*shape, FLAGS.width)),
    jax.random.randint(keys[2], shape, 0, FLAGS.vocabulary),
    jnp.ones(shape),
  )
  compiled = {
    function.__name__: jax.jit(jax.value_and_grad(function, (0, 1))).lower(*arrays).compile()
    for function in (again, ours)
  }
  seconds: dict[str, list[float]] = {name: [] for name in compiled}
  for _ in range(FLAGS.rounds):
    for name, run in compiled.items():
      start = time.process_time()
      jax.block_until_ready(run(*arrays))
      seconds[name].append(time.process_time() - start)
  for name, run in compiled.items():
    products = (run.cost_analysis() or {}).get("flops", float("nan")) / 1e9
    median = statistics.median(seconds[name])
    print(f"{name:5} {products:6.1f} GFLOP a part, {median:.2f} s of processor (median)")


if __name__ == "__main__":
  cli.run(main)
