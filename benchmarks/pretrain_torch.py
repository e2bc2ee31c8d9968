"""The contenders of `pretrain_step.py` in PyTorch: transformers' BERT as it stands and as an expert
has it, a GPT in the manner of nanoGPT, and transformers' T5."""

from __future__ import annotations

import abc
import functools
import os

import nano_gpt
import numpy as np
import torch
import transformers
from pretrain_cases import BATCHES, Case, make_batches
from torch.nn.functional import cross_entropy

WARMUP = 10_000


class Torch(abc.ABC):
  """A model that is trained as its users train it; a subclass says which, and on what."""

  def __init__(self, case: Case, options: set[str], steps_of_schedule: int):
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which is JAX's default there
    torch.manual_seed(0)
    self.model = self.make(case).to(self.device).train()
    self.autocast = case.dtype == "bfloat16"
    self.batches = [
      {k: v if v is None else self.put(v) for k, v in self.inputs(batch).items()}
      for batch in make_batches(case)
    ]
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
    self.schedule = torch.optim.lr_scheduler.LambdaLR(
      self.optimizer,
      lambda step: min((step + 1) / WARMUP, 1 - (step - WARMUP) / (steps_of_schedule - WARMUP)),
    )
    self.done, self.loss_sum = 0, torch.zeros((), device=self.device)

  @abc.abstractmethod
  def make(self, case: Case) -> torch.nn.Module:
    """The model."""

  @abc.abstractmethod
  def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray | None]:
    """The batch under the model's names."""

  def compute_loss(self, batch: dict) -> torch.Tensor:
    return self.model(**batch).loss

  def put(self, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(self.device)

  def run(self, steps: int) -> None:
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
      torch.cuda.synchronize()

  def about(self) -> dict:
    cuda = torch.cuda if self.device.type == "cuda" else None
    return {
      "device": f"{cuda.get_device_name() if cuda else 'cpu'} (torch)",
      "parameters": sum(p.numel() for p in self.model.parameters()),
      "mean_loss": float(self.loss_sum) / self.done,
      "peak_gib": cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def attention_mask(batch: dict[str, np.ndarray]) -> np.ndarray | None:
  """None where no row is padded: the default, and what lets SDPA choose its flash kernel."""
  positions = batch["input_ids"].shape[1]
  whole = batch["length"].min() == positions
  return None if whole else np.arange(positions) < batch["length"][:, None]


class Bert(Torch):
  """BertForPreTraining. expert: the head at the masked positions only."""

  def __init__(self, *given, expert: bool):
    self.expert = expert
    super().__init__(*given)

  def make(self, case: Case):
    config = transformers.BertConfig(
      num_hidden_layers=case.layers,
      hidden_size=case.width,
      num_attention_heads=case.heads,
      intermediate_size=4 * case.width,
      vocab_size=case.vocab,
      max_position_embeddings=max(512, case.length),
      hidden_dropout_prob=case.dropout,
      attention_probs_dropout_prob=case.dropout,
      hidden_act="gelu_pytorch_tanh",  # as in BERT's own code, and in ours
      attn_implementation="sdpa",
    )
    return transformers.BertForPreTraining(config)

  def inputs(self, batch):
    """Labels at every position for `stock`."""
    ids, positions = batch["input_ids"], batch["mlm_positions"]
    labels = np.full(ids.shape, -100)
    np.put_along_axis(labels, positions, batch["mlm_targets"], axis=1)
    both = {"input_ids": ids, "attention_mask": attention_mask(batch)}
    both |= {"token_type_ids": batch["segment_ids"], "pair_label": batch["pair_label"]}
    if not self.expert:
      return both | {"labels": labels}
    flat = positions + np.arange(len(ids))[:, None] * ids.shape[1]
    return both | {"labels": batch["mlm_targets"], "positions": flat}

  def compute_loss(self, batch):
    batch = dict(batch)
    follows = batch.pop("pair_label")
    if not self.expert:
      return self.model(**batch, next_sentence_label=follows).loss
    labels, positions = batch.pop("labels"), batch.pop("positions")
    hidden, pooled = self.model.bert(**batch)[:2]
    chosen = hidden.flatten(0, 1).index_select(0, positions.flatten())
    scores, pairs = self.model.cls(chosen, pooled)
    of_tokens = cross_entropy(scores.float(), labels.flatten())
    return of_tokens + cross_entropy(pairs.float(), follows)


class NanoGpt(Torch):
  def make(self, case: Case):
    return nano_gpt.Gpt(case.layers, case.width, case.heads, case.vocab, case.length, case.dropout)

  def inputs(self, batch):
    return {"ids": batch["input_ids"], "targets": batch["clm_targets"]}

  def compute_loss(self, batch):
    return self.model(**batch)


class T5(Torch):
  """T5ForConditionalGeneration, of T5 1.0."""

  def make(self, case: Case):
    config = transformers.T5Config(
      num_layers=case.layers,
      d_model=case.width,
      d_kv=case.width // case.heads,
      d_ff=4 * case.width,
      num_heads=case.heads,
      vocab_size=case.vocab,
      dropout_rate=case.dropout,
      use_cache=False,
    )
    return transformers.T5ForConditionalGeneration(config)

  def inputs(self, batch):
    ids = {"input_ids": batch["input_ids"], "attention_mask": attention_mask(batch)}
    decoder = batch["decoder_input_ids"]
    return ids | {"decoder_input_ids": decoder, "labels": batch["seq2seq_targets"]}


CONTENDERS = {
  ("bert", "stock"): functools.partial(Bert, expert=False),
  ("bert", "expert"): functools.partial(Bert, expert=True),
  ("gpt", "nanogpt"): NanoGpt,
  ("t5", "stock"): T5,
}
