"""Agreement of an exported function with JAX, on rows of many lengths.

JAX computes one batch of padded rows. The exported function computes parts of it, each cut to its
longest row, and must give the same numbers at the real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.portable import Portable
from plm_jax.models.config import TransformerConfig

TOLERANCE = 1e-4
ROWS, TOKENS, TARGETS = 6, 24, 11
PARTS = ((range(6), 11), ((3,), 1), ((1, 4), 5), ((5, 2, 5), 2))  # rows, and tokens of the target

Arrays = dict[str, np.ndarray]
Function = Callable[[Arrays], Arrays]


class Reference(NamedTuple):
  """Inputs, int64, and the outputs of JAX for them, float32."""

  inputs: Arrays
  outputs: Arrays
  dims: Mapping[str, tuple[str, ...]]  # of the outputs


class Difference(NamedTuple):
  """The largest difference, and the norm of the difference relative to that of the output."""

  largest: float
  relative: float


def reference(model: Portable) -> Reference:
  """Random ids, and the outputs of JAX."""
  random = np.random.default_rng(0)
  tokens = min(TOKENS, model.longest)
  lengths_B = np.linspace(tokens, 1, ROWS).round().astype(int)
  mask_BT = (np.arange(tokens) < lengths_B[:, None]).astype(np.int64)
  inputs = {"attention_mask": mask_BT}
  for name, limit in model.limits.items():
    is_target = name.startswith("decoder")
    columns = min(TARGETS, model.longest) if is_target else tokens
    ids = random.integers(0, limit, (ROWS, columns))
    inputs[name] = ids if is_target else ids * mask_BT
  arrays = {name: jnp.asarray(array, jnp.int32) for name, array in inputs.items()}
  with jax.default_matmul_precision("float32"):
    outputs = jax.jit(model.function)(model.params, **arrays)
  return Reference(inputs, {n: np.asarray(x, np.float32) for n, x in outputs.items()}, model.dims())


def differences(ref: Reference, exported: Function) -> dict[str, Difference]:
  """For each output, the difference over all parts of the reference."""
  pairs: dict[str, list] = {name: [] for name in ref.outputs}
  lengths_B = ref.inputs["attention_mask"].sum(axis=1)
  for rows, targets in PARTS:
    rows = list(rows)
    tokens = int(lengths_B[rows].max())
    made = exported(
      {
        name: array[rows, : targets if name.startswith("decoder") else tokens]
        for name, array in ref.inputs.items()
      }
    )
    real = ref.inputs["attention_mask"][rows, :tokens].astype(bool)
    for name, dims in ref.dims.items():
      ours, theirs = ref.outputs[name][rows], made[name]
      if "length" in dims:
        ours, theirs = ours[:, :tokens][real], theirs[real]
      elif "target" in dims:
        ours = ours[:, :targets]
      pairs[name].append((ours.reshape(-1), theirs.reshape(-1)))
  return {name: _difference(*map(np.concatenate, zip(*arrays))) for name, arrays in pairs.items()}


def cached_difference(
  ref: Reference, config: TransformerConfig, step: Function, source: Function | None = None
) -> Difference:
  """Of the logits after prompts of several lengths, and after each of the next tokens. source: the
  encoder of an encoder-decoder, whose prompts have one length."""
  rows, prompts = np.arange(4), np.array([5, 3, 1, 2])
  ids = ref.inputs["input_ids"][rows]
  stack, extra = config, {}
  if source is not None:
    stack, prompts = config.decoder_side, np.array([1, 1, 1, 1])
    tokens = ref.inputs["attention_mask"][rows].sum(axis=1).max()
    encoder = {name: ref.inputs[name][rows, :tokens] for name in ("input_ids", "attention_mask")}
    extra = source(encoder) | {"attention_mask": encoder["attention_mask"]}
    ids = ref.inputs["decoder_input_ids"][rows]
  empty = np.zeros((len(rows), stack.key_heads, 0, stack.width_of_heads), np.float32)
  names = [f"{n}.{kind}" for n in range(stack.layers) for kind in ("key", "value")]
  past = {f"past_key_values.{name}": empty for name in names}
  width, pairs = prompts.max(), []
  mask = (np.arange(width) >= width - prompts[:, None]).astype(np.int64)
  new = np.stack([np.pad(row[:n], (width - n, 0)) for row, n in zip(ids, prompts)])
  for read in range(4):
    named = {"input_ids": new, "decoder_input_ids": new, "attention_mask": mask}
    made = step({**named, **past, **extra})
    past = {f"past_key_values.{name}": made[f"present.{name}"] for name in names}
    pairs.append((ref.outputs["logits"][rows, prompts - 1 + read], made["logits"][:, 0]))
    new = ids[rows, prompts + read][:, None]
    mask = np.append(mask, np.ones_like(new), axis=1)
  return _difference(*(np.concatenate(arrays) for arrays in zip(*pairs)))


def check(apart: Mapping[str, Difference], where: str) -> float:
  """The largest difference. Errors: `UserError` if it is above `TOLERANCE`."""
  for name, difference in apart.items():
    if not difference.largest <= TOLERANCE:  # also for NaN
      raise UserError(
        f"the output {name} in {where} differs from JAX by {difference.largest:.2g}, and at most "
        f"{TOLERANCE} is allowed, so no file was kept. Please report this."
      )
  return max(difference.largest for difference in apart.values())


def _difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
  apart = theirs - ours
  largest = float(np.abs(apart).max()) if apart.size else 0.0
  return Difference(largest, float(np.linalg.norm(apart) / max(np.linalg.norm(ours), 1e-12)))
