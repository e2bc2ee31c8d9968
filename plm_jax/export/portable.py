"""The function of a run that is exported: token ids and masks in, states, logits and vectors out.

Names are those of transformers. Rows are padded on the right; `attention_mask` is 0 at padding. The
layers are unrolled and the numbers float32, whatever the run's own settings are: a run that is
stored as integers has the values to which it was rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from plm_jax.errors import UserError
from plm_jax.export.from_run import electra_part
from plm_jax.export.heads import tuned_heads, tuned_outputs
from plm_jax.models.compute import Compute
from plm_jax.models.electra import Electra
from plm_jax.models.model import Parameters
from plm_jax.runs import Run, in_float32, refuse_counted

COMPUTE = Compute(dtype="float32", layers="unroll", attention="plain")

Outputs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Portable:
  """A function of a run. `function(params, **inputs)` gives the outputs by name.

  inputs: arrays with symbolic dimensions. limits: the number of ids of each input with ids.
  longest: tokens of a row.
  """

  function: Callable[..., Outputs]
  params: Parameters
  inputs: Mapping[str, jax.ShapeDtypeStruct]
  limits: Mapping[str, int]
  longest: int

  def dims(self) -> dict[str, tuple[str, ...]]:
    """The dimensions of the outputs."""
    shapes = jax.eval_shape(self.function, self.params, **self.inputs)
    return {name: tuple(map(str, struct.shape)) for name, struct in shapes.items()}


def portable(run: Run) -> Portable:
  """The forward pass of a run. Errors: `UserError` for a model of counts or of word vectors, and if
  the dimensions cannot be symbols."""
  refuse_counted(run)
  run = in_float32(run)
  config, model = run.config, run.params.encoder()
  if hasattr(model, "word_rows"):
    raise UserError(
      f"a {type(config).__name__} is a table of words; python -m plm_jax.embeddings export writes "
      "it."
    )
  if isinstance(run.experiment.model, Electra):
    _, model = electra_part(run.experiment.model, run.params, "discriminator")
  limits = {"input_ids": config.vocab_size}
  if getattr(config, "segments", 0) > 1:
    limits["token_type_ids"] = config.segments
  if hasattr(config, "source_ids") and not tuned_heads(model) and config.arrangement != "encoder":
    limits["decoder_input_ids"] = config.vocab_size
  batch, length, target = export.symbolic_shape("batch, length, target")
  inputs = {name: jax.ShapeDtypeStruct((batch, length), jnp.int32) for name in limits}
  inputs["attention_mask"] = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  if "decoder_input_ids" in limits:
    inputs["decoder_input_ids"] = jax.ShapeDtypeStruct((batch, target), jnp.int32)
  pooling = run.pooling or {"modes": ["mean"]}

  def function(params: Parameters, **arrays: jax.Array) -> Outputs:
    return _forward(params, arrays, pooling)

  made = Portable(function, model, inputs, limits, config.positions)
  try:
    made.dims()
  except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
    raise UserError(
      f"a {type(config).__name__} cannot be exported: its forward pass needs the number of rows or "
      f"tokens while it is traced ({str(error).splitlines()[0]})."
    ) from error
  return made


def _forward(params: Parameters, arrays: dict[str, jax.Array], pooling: Mapping[str, Any]):
  mask = arrays["attention_mask"]
  columns = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
  batch = arrays | {"length": jnp.maximum((columns * mask).max(axis=1), 1)}
  batch["segment_ids"] = batch.pop("token_type_ids", jnp.zeros_like(mask))
  hidden = params(batch, COMPUTE)
  outputs = {"last_hidden_state": hidden, **tuned_outputs(params, hidden, batch)}
  is_tuned = len(outputs) > 1
  if not is_tuned:
    outputs |= _pretrained_outputs(params, hidden, batch)
  states = hidden
  if hasattr(params, "encode"):
    states = params.encode(batch, COMPUTE)
    if "decoder_input_ids" in arrays:
      outputs["encoder_last_hidden_state"] = states
  if not is_tuned:
    outputs["sentence_embedding"] = pooled(states, mask, batch["length"], pooling)
  return outputs


def _pretrained_outputs(params: Parameters, hidden: jax.Array, batch: dict) -> Outputs:
  """The outputs of the heads of pretraining."""
  heads = {name for name in params.HEADS if getattr(params, name) is not None}
  outputs = {}
  if "pooler" in heads:
    outputs["pooler_output"] = params.pool(hidden, batch)
  if "nsp" in heads:
    outputs["seq_relationship_logits"] = params.next_sentence_logits(hidden, batch)
  if "sop" in heads:
    outputs["sop_logits"] = params.sentence_order_logits(hidden, batch)
  if "rtd" in heads:
    outputs["logits"] = params.replaced_logits(hidden)
  elif "mlm" in heads or hasattr(params, "generator") or "decoder_input_ids" in batch:
    outputs["logits"] = params.token_logits(hidden)
  return outputs


def pooled(states_BTD, mask_BT, length_B, pooling: Mapping[str, Any]) -> jax.Array:
  """float32 `[B, D * modes]`: the vectors of `plm_jax.encode`."""
  real_BT1 = mask_BT.astype(bool)[..., None]
  sum_BD = jnp.where(real_BT1, states_BTD, 0).sum(axis=1)
  count_B1 = jnp.maximum(real_BT1.sum(axis=1), 1)
  makes = {
    "cls": lambda: states_BTD[:, 0],
    "max": lambda: jnp.where(real_BT1, states_BTD, -jnp.inf).max(axis=1),
    "mean": lambda: sum_BD / count_B1,
    "mean_sqrt_len_tokens": lambda: sum_BD / jnp.sqrt(count_B1),
    "last": lambda: jnp.take_along_axis(states_BTD, length_B[:, None, None] - 1, axis=1)[:, 0],
  }
  if unknown := [mode for mode in pooling["modes"] if mode not in makes]:
    raise UserError(f"the pooling {unknown[0]} cannot be exported; there is {', '.join(makes)}.")
  vector = jnp.concatenate([makes[mode]() for mode in pooling["modes"]], axis=-1)
  if pooling.get("normalize"):
    vector /= jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
  return vector
