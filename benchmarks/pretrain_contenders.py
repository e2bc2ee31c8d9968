"""The contenders of `pretrain_step.py`: plm_jax, and transformers as it stands and as an expert has
it, each behind the same three calls `run(steps)`, `wait()` and `about()`, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time

import numpy as np

BATCHES = 4  # different batches, used in turn
STEPS_OF_SCHEDULE = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What is measured. batch: rows. padded: a tenth of the rows is shorter, as in BERT's data, so
  that attention needs a mask."""

  layers: int = 4
  width: int = 256
  heads: int = 4
  vocab: int = 8192
  batch: int = 8
  length: int = 128
  dtype: str = "float32"
  padded: bool = True
  steps: int = 5
  rounds: int = 20
  contenders: tuple[str, ...] = ("plm_jax", "stock", "expert")


def make_batches(case: Case) -> list[dict[str, np.ndarray]]:
  """Random rows with masked positions, as `plm_jax.objectives` leaves them."""
  random, shape = np.random.default_rng(0), (case.batch, case.length)
  slots = max(1, round(0.15 * case.length))

  def one() -> dict[str, np.ndarray]:
    short = random.random(case.batch) < (0.1 if case.padded else 0)
    length = np.where(short, random.integers(case.length // 2, case.length, case.batch), shape[1])
    inside = np.arange(shape[1]) < length[:, None]
    order = np.where(inside, random.random(shape), 2).argsort(axis=1)[:, :slots]
    return {
      "input_ids": (random.integers(5, case.vocab, shape) * inside).astype(np.int32),
      "segment_ids": ((np.arange(shape[1]) > length[:, None] // 2) & inside).astype(np.int32),
      "length": length.astype(np.int32),
      "mlm_positions": np.sort(order, axis=1).astype(np.int32),
      "mlm_targets": random.integers(5, case.vocab, order.shape).astype(np.int32),
      "mlm_weights": np.ones(order.shape, np.float32),
      "pair_label": random.integers(0, 2, case.batch).astype(np.int32),
      "row_weight": np.ones(case.batch, np.float32),
    }

  return [one() for _ in range(BATCHES)]


class PlmJax:
  """The step that `run_pretrain.py` runs."""

  def __init__(self, case: Case, options: set[str]):
    import jax

    from plm_jax.models.bert import Bert
    from plm_jax.models.compute import Compute
    from plm_jax.objectives.mlm import MLM
    from plm_jax.objectives.nsp import NSP
    from plm_jax.train.optim import AdamW
    from plm_jax.train.state import create_state
    from plm_jax.train.step import metric_names, train_step

    compute = Compute(dtype=case.dtype, remat="remat" in options)
    for field, values in {"layers": ("scan", "unroll"), "dropout": ("hash", "threefry")}.items():
      for value in options & set(values):
        compute = dataclasses.replace(compute, **{field: value})
    config = Bert(
      layers=case.layers,
      width=case.width,
      heads=case.heads,
      vocab_size=case.vocab,
      positions=max(512, case.length),
    )
    model = config.init(jax.random.key(0), {"mlm": 0, "nsp": 0})
    optim, objectives = AdamW(peak=1e-4, warmup=10_000), (MLM(), NSP())
    self.batches = [jax.device_put(batch) for batch in make_batches(case)]
    transform = optim.transform(STEPS_OF_SCHEDULE)
    names = metric_names(model, self.batches[0], objectives=objectives, compute=compute)
    self.state = create_state(model, transform, jax.random.key(1), names)
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
    self.update = jax.jit(
      functools.partial(
        train_step,
        objectives=objectives,
        compute=compute,
        transform=transform,
        learning_rate=optim.learning_rate(STEPS_OF_SCHEDULE),
      ),
      donate_argnums=0,
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


class Torch:
  """transformers' BertForPreTraining, trained as its users train it."""

  def __init__(self, case: Case, options: set[str], *, expert: bool):
    import torch
    from transformers import BertConfig, BertForPreTraining

    self.torch, self.expert = torch, expert
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which is JAX's default there
    torch.manual_seed(0)
    config = BertConfig(
      num_hidden_layers=case.layers,
      hidden_size=case.width,
      num_attention_heads=case.heads,
      intermediate_size=4 * case.width,
      vocab_size=case.vocab,
      max_position_embeddings=max(512, case.length),
      hidden_act="gelu_pytorch_tanh",  # as in BERT's own code, and in ours
      attn_implementation="sdpa",
    )
    self.model = BertForPreTraining(config).to(self.device).train()
    self.autocast = case.dtype == "bfloat16"
    self.batches = [self.put(batch) for batch in make_batches(case)]
    self.loss = torch.compile(self.compute_loss) if "compile" in options else self.compute_loss
    parameters = list(self.model.parameters())
    self.optimizer = torch.optim.AdamW(
      [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
      ],
      lr=1e-4,
      eps=1e-6,
      fused=True,
    )
    warmup = 10_000
    self.schedule = torch.optim.lr_scheduler.LambdaLR(
      self.optimizer,
      lambda step: min((step + 1) / warmup, 1 - (step - warmup) / (STEPS_OF_SCHEDULE - warmup)),
    )
    self.done, self.loss_sum = 0, torch.zeros((), device=self.device)

  def put(self, batch: dict[str, np.ndarray]) -> dict:
    """The batch under transformers' names; labels at every position for `stock`."""
    ids, positions = batch["input_ids"], batch["mlm_positions"]
    labels = np.full(ids.shape, -100)
    np.put_along_axis(labels, positions, batch["mlm_targets"], axis=1)
    arrays = {
      "input_ids": ids,
      "attention_mask": np.arange(ids.shape[1]) < batch["length"][:, None],
      "token_type_ids": batch["segment_ids"],
      "labels": batch["mlm_targets"] if self.expert else labels,
      "pair_label": batch["pair_label"],
      "positions": positions + np.arange(len(ids))[:, None] * ids.shape[1],
    }
    put = {k: self.torch.from_numpy(v.astype(np.int64)).to(self.device) for k, v in arrays.items()}
    if not self.expert:
      del put["positions"]
    if batch["length"].min() == ids.shape[1]:
      put["attention_mask"] = None  # the default, and what lets SDPA choose its flash kernel
    return put

  def compute_loss(self, batch: dict):
    if not self.expert:
      return self.model(**batch).loss
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    hidden, pooled = self.model.bert(**inputs)[:2]
    chosen = hidden.flatten(0, 1).index_select(0, batch["positions"].flatten())
    scores, follows = self.model.cls(chosen, pooled)
    entropy = self.torch.nn.functional.cross_entropy
    return entropy(scores.float(), batch["labels"].flatten()) + entropy(
      follows.float(), batch["pair_label"]
    )

  def run(self, steps: int) -> None:
    torch = self.torch
    for _ in range(steps):
      with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
        loss = self.loss(self.batches[self.done % BATCHES])
      loss.backward()
      torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
      self.optimizer.step()
      self.schedule.step()
      self.optimizer.zero_grad(set_to_none=True)
      self.loss_sum += loss.detach()
      self.done += 1

  def wait(self) -> None:
    if self.device.type == "cuda":
      self.torch.cuda.synchronize()

  def about(self) -> dict:
    cuda = self.torch.cuda if self.device.type == "cuda" else None
    return {
      "device": f"{cuda.get_device_name() if cuda else 'cpu'} (torch)",
      "parameters": sum(p.numel() for p in self.model.parameters()),
      "mean_loss": float(self.loss_sum) / self.done,
      "peak_gib": cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def serve(name: str, case: Case) -> None:
  """Makes the contender, then answers every line (a number of steps) with a line of JSON."""
  if "keep" in name.partition("@")[0].split("+"):
    from plm_jax.train.allocator import keep_freed_memory

    keep_freed_memory()
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints goes to stderr
  family, *options = name.partition("@")[0].split("+")
  start = time.perf_counter()
  if family == "plm_jax":
    contender = PlmJax(case, set(options))
  else:
    contender = Torch(case, set(options), expert=family == "expert")
  contender.run(1)
  contender.wait()
  first = time.perf_counter() - start
  contender.run(BATCHES)
  contender.wait()
  print(json.dumps({"first_step_s": first}), file=answers, flush=True)
  for line in sys.stdin:
    steps = int(line)
    wall, cpu = time.perf_counter(), time.process_time()
    contender.run(steps)
    contender.wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    times = {"ms": wall / steps * 1e3, "cpu_ms": cpu / steps * 1e3}
    print(json.dumps(times | contender.about()), file=answers, flush=True)


if __name__ == "__main__":
  serve(sys.argv[1], Case(**json.loads(sys.argv[2])))
