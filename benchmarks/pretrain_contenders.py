"""The contenders of `pretrain_step.py`, each in a process of its own behind the same three calls
`run(steps)`, `wait()` and `about()`. plm_jax is here, PyTorch in `pretrain_torch.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time

from pretrain_cases import BATCHES, Case, make_batches  # beside this file, whatever checkout runs

STEPS_OF_SCHEDULE = 100_000


def experiment(case: Case):
  """plm_jax's model and objectives of a case."""
  sizes = {"layers": case.layers, "width": case.width, "heads": case.heads}
  sizes |= {"vocab_size": case.vocab, "dropout": case.dropout, "attention_dropout": case.dropout}
  if case.family == "bert":
    from plm_jax.models.bert import Bert
    from plm_jax.objectives.mlm import MLM
    from plm_jax.objectives.nsp import NSP

    return Bert(positions=max(512, case.length), **sizes), (MLM(), NSP())
  if case.family == "gpt":
    from plm_jax.models.gpt import Gpt2
    from plm_jax.objectives.clm import CLM

    return Gpt2(positions=case.length, **sizes), (CLM(),)
  from plm_jax.models.t5 import T5
  from plm_jax.objectives.seq2seq import Seq2Seq

  head_width, hidden = case.width // case.heads, 4 * case.width
  config = T5(head_width=head_width, hidden=hidden, hidden_dropout=case.dropout, **sizes)
  return config, (Seq2Seq(),)


class PlmJax:
  """The step that `run_pretrain.py` runs."""

  def __init__(self, case: Case, options: set[str]):
    import jax

    from plm_jax.models.compute import Compute
    from plm_jax.optim.adamw import AdamW
    from plm_jax.train import step
    from plm_jax.train.state import create_state
    from plm_jax.train.step import metric_names, train_step

    compute = Compute(dtype=case.dtype, remat="remat" in options)
    for field, values in {"layers": ("scan", "unroll"), "dropout": ("hash", "threefry")}.items():
      for value in options & set(values):
        compute = dataclasses.replace(compute, **{field: value})
    config, objectives = experiment(case)
    heads = {name: size for o in objectives for name, size in o.heads.items()}
    model = config.init(jax.random.key(0), heads)
    optim = AdamW(peak=1e-4, warmup=10_000)
    self.batches = [jax.device_put(batch) for batch in make_batches(case)]
    transform = optim.transform(STEPS_OF_SCHEDULE)
    names = metric_names(model, self.batches[0], objectives=objectives, compute=compute)
    self.state = create_state(model, transform, jax.random.key(1), names)
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
    self.update = jax.jit(
      functools.partial(
        train_step,
        constants=optim.constants(STEPS_OF_SCHEDULE),
        objectives=objectives,
        compute=compute,
        optim=optim,
      ),
      donate_argnums=0,
      compiler_options=getattr(step, "step_options", dict)(),  # older checkouts have none
    )
    self.device, self.done = jax.devices()[0], 0

  def run(self, steps: int) -> None:
    for _ in range(steps):
      self.state = self.update(self.state, self.batches[self.done % BATCHES])
      self.done += 1

  def wait(self) -> None:
    import jax

    jax.block_until_ready(self.state)

  def about(self) -> dict:
    stats = self.device.memory_stats() or {}
    loss_sum, count = self.state.metrics["loss"]
    return {
      "device": f"{self.device.device_kind} (jax)",
      "parameters": self.parameters,
      "mean_loss": float(loss_sum / count),
      "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30 or None,
    }


def contender(name: str, case: Case):
  kind, *options = name.partition("@")[0].split("+")
  if kind == "plm_jax":
    return PlmJax(case, set(options))
  import pretrain_torch

  return pretrain_torch.CONTENDERS[case.family, kind](case, set(options), STEPS_OF_SCHEDULE)


def serve(name: str, case: Case) -> None:
  """Makes the contender, then answers every line (a number of steps) with a line of JSON."""
  if "keep" in name.partition("@")[0].split("+"):
    from plm_jax.cli import keep_freed_memory

    keep_freed_memory()
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints goes to stderr
  start = time.perf_counter()
  one = contender(name, case)
  one.run(1)
  one.wait()
  first = time.perf_counter() - start
  one.run(BATCHES)
  one.wait()
  print(json.dumps({"first_step_s": first}), file=answers, flush=True)
  for line in sys.stdin:
    steps = int(line)
    wall, cpu = time.perf_counter(), time.process_time()
    one.run(steps)
    one.wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    times = {"ms": wall / steps * 1e3, "cpu_ms": cpu / steps * 1e3}
    print(json.dumps(times | one.about()), file=answers, flush=True)


if __name__ == "__main__":
  serve(sys.argv[1], Case(**json.loads(sys.argv[2])))
