"""The outputs of any run for token ids, by transformers' names."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.from_run import from_run
from plm_jax.export.heads import tuned_outputs
from plm_jax.export.inputs import checked_inputs
from plm_jax.models.compute import Compute
from plm_jax.models.recording import all_states
from plm_jax.runs import Run


def outputs(
  run: Run, *, output_hidden_states: bool = False, output_attentions: bool = False, **inputs: Any
) -> dict[str, Any]:
  """As `hf.run`; a model that transformers lacks has `last_hidden_state` and the logits of its head
  for tokens, classes or answers. Errors: `UserError` for inputs that the model does not take."""
  wanted = output_hidden_states, output_attentions
  try:
    model = from_run(run)
  except UserError:  # transformers has no such model
    return _of_no_family(run, wanted, inputs)
  return hf.run(model, output_hidden_states=wanted[0], output_attentions=wanted[1], **inputs)


def _of_no_family(run: Run, wanted: tuple[bool, bool], inputs: dict[str, Any]) -> dict[str, Any]:
  config = run.config
  names, limits = ["input_ids", "attention_mask"], {"input_ids": config.vocab_size}
  if getattr(config, "segments", 0):
    names, limits = [*names, "token_type_ids"], limits | {"token_type_ids": config.segments}
  if getattr(config, "has_decoder", False):
    names.append("decoder_input_ids")
    limits |= {"decoder_input_ids": config.vocab_size}
  batch = checked_inputs(inputs, names, limits, config.positions)
  mask = batch.pop("attention_mask")
  if (np.diff(mask, axis=1) > 0).any():
    raise UserError("this model takes padding at the end of a row only; pad on the right.")
  batch["length"] = mask.sum(axis=1, dtype=np.int32)
  batch["segment_ids"] = batch.pop("token_type_ids", np.zeros_like(mask))
  with jax.default_matmul_precision("float32"):
    made = _forward(wanted)(run.params.encoder(), batch)
  return jax.tree.map(np.asarray, made)


@functools.lru_cache(maxsize=4)
def _forward(wanted: tuple[bool, bool]):
  compute = Compute(dtype="float32", layers="unroll")

  def forward(params, batch):
    hidden = params(batch, compute)
    made = {"last_hidden_state": hidden} | tuned_outputs(params, hidden, batch)
    predicts_tokens = params.masked_lm() is not None or hasattr(params, "generator")
    if len(made) == 1 and predicts_tokens:
      made["logits"] = params.token_logits(hidden)
    layers = zip(("hidden_states", "attentions"), all_states(params, batch, compute), strict=True)
    return made | {n: tuple(each) for (n, each), is_wanted in zip(layers, wanted) if is_wanted}

  return jax.jit(forward)
