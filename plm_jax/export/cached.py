"""Generation with a cache, as functions without state: keys and values in, more of them out.

A cache has no room for later tokens: it grows by the tokens that are read, as `past_key_values` of
transformers does. Names and layouts are those of Hugging Face Optimum: `past_key_values.0.key` is
`[batch, heads, past, head width]`, and the new one is `present.0.key`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export

from plm_jax.errors import UserError
from plm_jax.export.heads import tuned_heads
from plm_jax.export.portable import COMPUTE, Outputs, Portable
from plm_jax.models.cache import AttentionCache, KeyValues, KVStore, LayerCache, cache_mask
from plm_jax.models.config import TransformerConfig
from plm_jax.models.model import Parameters
from plm_jax.runs import Run


class GrowingStore(KVStore):
  """Keys and values without free columns."""

  def extended(self, new: KeyValues, at) -> GrowingStore:
    """This with the positions of `new` after its own."""
    pairs = zip(self, KVStore.from_key_values(new), strict=True)
    return GrowingStore(*(jnp.concatenate(pair, axis=1) for pair in pairs))


class GrowingCache(AttentionCache):
  """The cache of a stack whose layers have a `GrowingStore`."""

  def mask(self, targets: int) -> jax.Array:
    return cache_mask(self.pad_B, self.at, targets, self.columns + targets)


def step(run: Run) -> Portable:
  """One call reads the next tokens, the first call the whole prompt, with a `past` of no columns.

  Inputs of a decoder: `input_ids` [batch, new] and `attention_mask` [batch, past + new], which is 0
  at padding on the left. Of an encoder-decoder: `decoder_input_ids`, the `attention_mask` of the
  source, and the keys and values that `source` gives. Outputs: `logits` [batch, 1, V] of the token
  after the last. Errors: `UserError` for a model that keeps no keys and values.
  """
  model, config = _model_and_stack(run)
  batch, new, past, length = export.symbolic_shape("batch, new, past, length")
  has_source = hasattr(run.config, "source_ids")
  ids = "decoder_input_ids" if has_source else "input_ids"
  columns = length if has_source else past + new
  inputs = {
    ids: jax.ShapeDtypeStruct((batch, new), jnp.int32),
    "attention_mask": jax.ShapeDtypeStruct((batch, columns), jnp.int32),
    **_stores("past_key_values", config, batch, past),
    **(_stores("cross_key_values", config, batch, length) if has_source else {}),
  }

  def function(params: Parameters, **arrays: jax.Array) -> Outputs:
    mask, ids_BT = arrays["attention_mask"], arrays[ids]
    pad_B = (1 - mask).sum(axis=1)
    source_mask = None
    if has_source:
      pad_B, source_mask = jnp.zeros_like(pad_B), mask.astype(bool)[:, None, None, :]
    layers = []
    for layer in range(config.layers):
      own = GrowingStore(*_read(arrays, f"past_key_values.{layer}"))
      source = KVStore(*_read(arrays, f"cross_key_values.{layer}")) if has_source else None
      layers.append(LayerCache(own, source))
    columns = arrays["past_key_values.0.key"].shape[2]
    cache = GrowingCache(layers, pad_B, columns, source_mask)
    logits_BV, after = params.generator(COMPUTE).extend(ids_BT, cache)
    outputs = {"logits": logits_BV[:, None]}
    for layer, stores in enumerate(after.layers):
      outputs |= _written(f"present.{layer}", stores.own, mask.shape[0])
    return outputs

  return Portable(function, model, inputs, {ids: run.config.vocab_size}, run.config.positions)


def source(run: Run) -> Portable:
  """The encoder of an encoder-decoder: the keys and values that the decoder's layers read."""
  model, _ = _model_and_stack(run)
  batch, length = export.symbolic_shape("batch, length")
  struct = jax.ShapeDtypeStruct((batch, length), jnp.int32)

  def function(params: Parameters, input_ids, attention_mask) -> Outputs:
    length_B = attention_mask.sum(axis=1)
    rows = {"pad": jnp.zeros_like(length_B), "input_ids": input_ids, "length": length_B}
    cache = params.generator(COMPUTE).start(rows, 1)
    outputs = {}
    for layer, stores in enumerate(cache.layers):
      outputs |= _written(f"cross_key_values.{layer}", stores.source, input_ids.shape[0])
    return outputs

  inputs = {"input_ids": struct, "attention_mask": struct}
  limits = {"input_ids": run.config.vocab_size}
  return Portable(function, model, inputs, limits, run.config.positions)


def _model_and_stack(run: Run) -> tuple[Parameters, TransformerConfig]:
  """The parameters, and the configuration of the stack that has a cache."""
  model = run.params.encoder()
  config = getattr(model.config, "decoder_side", model.config)
  if tuned_heads(model):
    raise UserError("a fine-tuned model predicts no next token, so it has no graph with a cache.")
  if not hasattr(model, "generator") or not hasattr(config, "key_heads"):
    raise UserError(
      f"a {type(run.config).__name__} keeps no keys and values, so it has no graph with a cache."
    )
  return model, config


def _stores(name: str, config: TransformerConfig, batch, columns) -> dict:
  shape = (batch, config.key_heads, columns, config.width_of_heads)
  struct = jax.ShapeDtypeStruct(shape, jnp.float32)
  return {f"{name}.{n}.{kind}": struct for n in range(config.layers) for kind in ("key", "value")}


def _read(arrays: dict[str, jax.Array], name: str) -> list[jax.Array]:
  pair = (arrays[f"{name}.{kind}"] for kind in ("key", "value"))
  return [x.reshape(-1, *x.shape[2:]) for x in pair]


def _written(name: str, store: KVStore, rows) -> Outputs:
  pairs = zip(("key", "value"), store, strict=True)
  return {f"{name}.{kind}": x.reshape(rows, -1, *x.shape[1:]) for kind, x in pairs}
