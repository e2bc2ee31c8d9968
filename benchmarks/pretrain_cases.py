"""What `pretrain_step.py` measures: a family of models, its sizes, and its batches."""

from __future__ import annotations

import dataclasses

import numpy as np

BATCHES = 4  # different batches, used in turn
PEAK = {"H100": 790e12, "H200": 790e12}  # measured FLOP/s of a product of bfloat16, 8192^3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What is measured. batch: rows. padded: a tenth of the rows is shorter, as in BERT's data, so
  that attention needs a mask. targets: the decoder's tokens per row, of an encoder-decoder; its
  decoder has as many layers as its encoder. dropout: everywhere where the family has it."""

  family: str = "bert"
  layers: int = 4
  width: int = 256
  heads: int = 4
  vocab: int = 8192
  batch: int = 8
  length: int = 128
  targets: int = 0
  dropout: float = 0.1
  dtype: str = "float32"
  padded: bool = False
  steps: int = 5
  rounds: int = 20
  contenders: tuple[str, ...] = ("plm_jax",)


_BERT = Case(padded=True, contenders=("plm_jax", "stock", "expert"))
_GPT = Case(family="gpt", length=256, contenders=("plm_jax", "nanogpt"))
_T5 = Case(family="t5", length=256, targets=64, contenders=("plm_jax", "stock"))
_BASE = {"layers": 12, "width": 768, "heads": 12, "dtype": "bfloat16", "rounds": 10}
_BERT_BASE = dataclasses.replace(
  _BERT,
  vocab=30522,
  batch=256,
  contenders=("plm_jax", "stock+compile", "expert+compile"),
  **_BASE,
)
PRESETS = {
  "cpu_small": _BERT,
  "cpu_gpt": _GPT,
  "cpu_t5": _T5,
  "gpu_base_128": _BERT_BASE,
  "gpu_base_512": dataclasses.replace(_BERT_BASE, batch=64, length=512),
  "gpu_large_512": dataclasses.replace(
    _BERT_BASE, layers=24, width=1024, heads=16, batch=32, length=512
  ),
  "gpu_gpt2_1024": dataclasses.replace(
    _GPT,
    vocab=50257,
    batch=32,
    length=1024,
    contenders=("plm_jax", "nanogpt+compile"),
    **_BASE,
  ),
  "gpu_t5_base": dataclasses.replace(
    _T5,
    vocab=32128,
    batch=64,
    length=512,
    targets=114,
    contenders=("plm_jax", "stock+compile"),
    **_BASE,
  ),
}


def make_batches(case: Case) -> list[dict[str, np.ndarray]]:
  """Random rows as `plm_jax.objectives` leaves them."""
  random = np.random.default_rng(0)
  make = {"bert": _masked, "gpt": _causal, "t5": _source_target}[case.family]
  return [make(case, random, *_rows(case, random)) for _ in range(BATCHES)]


def _rows(case: Case, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """int32 `[B, T]`, 0 behind the rows' lengths, and these."""
  short = random.random(case.batch) < (0.1 if case.padded else 0)
  shorter = random.integers(case.length // 2, case.length, case.batch)
  length = np.where(short, shorter, case.length).astype(np.int32)
  inside = np.arange(case.length) < length[:, None]
  ids = random.integers(5, case.vocab, (case.batch, case.length))
  return (ids * inside).astype(np.int32), length


def _masked(case: Case, random, ids: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
  """Masked tokens and pairs of segments."""
  slots = max(1, round(0.15 * case.length))
  column = np.arange(case.length)
  inside = column < length[:, None]
  order = np.where(inside, random.random(ids.shape), 2).argsort(axis=1)[:, :slots]
  return {
    "input_ids": ids,
    "segment_ids": ((column > length[:, None] // 2) & inside).astype(np.int32),
    "length": length,
    "mlm_positions": np.sort(order, axis=1).astype(np.int32),
    "mlm_targets": random.integers(5, case.vocab, order.shape).astype(np.int32),
    "mlm_weights": np.ones(order.shape, np.float32),
    "pair_label": random.integers(0, 2, case.batch).astype(np.int32),
    "row_weight": np.ones(case.batch, np.float32),
  }


def _causal(case: Case, random, ids: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
  """The next token at every position, that of the last one too, as nanoGPT's rows have it."""
  following = random.integers(5, case.vocab, (case.batch, 1))
  inside = np.arange(case.length) < length[:, None]
  return {
    "input_ids": ids,
    "length": length,
    "clm_targets": np.concatenate([ids[:, 1:], following], axis=1).astype(np.int32),
    "clm_weights": inside.astype(np.float32),
    "row_weight": np.ones(case.batch, np.float32),
  }


def _source_target(case: Case, random, ids: np.ndarray, length: np.ndarray) -> dict:
  """A source and a target that the decoder reads moved by one, behind the token of padding."""
  target = random.integers(5, case.vocab, (case.batch, case.targets)).astype(np.int32)
  return {
    "input_ids": ids,
    "length": length,
    "decoder_input_ids": np.pad(target[:, :-1], ((0, 0), (1, 0))),
    "decoder_length": np.full(case.batch, case.targets, np.int32),
    "seq2seq_targets": target,
    "seq2seq_weights": np.ones(target.shape, np.float32),
    "row_weight": np.ones(case.batch, np.float32),
  }


def flops_per_token(case: Case) -> float | None:
  """Floating-point operations of a training step for each token of BERT or GPT: six for each weight
  that a token meets, and attention's (for GPT the half that is not masked). None for T5."""
  L, D, T, V = case.layers, case.width, case.length, case.vocab
  blocks = 6 * 12 * L * D**2
  if case.family == "bert":
    predicted = max(1, round(0.15 * T)) / T
    return blocks + 12 * L * T * D + 6 * predicted * (D**2 + D * V)
  return blocks + 6 * L * T * D + 6 * D * V if case.family == "gpt" else None
