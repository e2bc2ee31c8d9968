"""What the families of encoder-decoders share: inputs, outputs and the layers' names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.names import Entry
from plm_jax.models.compute import Compute
from plm_jax.models.encoder_decoder import EncoderDecoder, EncoderDecoderModel


class Seq2SeqFamily:
  """A model with the language model's head, or bare: only the architecture tells, where tables are
  tied."""

  model_type: str
  config: type[EncoderDecoder]
  base = ""
  architectures: Mapping[str, frozenset[str]]
  inputs = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
  buffers: tuple[str, ...] = ()
  always: Mapping[str, Any]  # what a model of the family always is
  pretraining: str  # the experiment that goes on with such a checkpoint

  def found(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    return architecture, self.architectures[architecture]

  def refuse_others(self, config: EncoderDecoder) -> None:
    """Errors: `UserError` naming a field that differs from what the family always has."""
    for field, needed in self.always.items():
      if getattr(config, field) != needed:
        raise UserError(
          f"model.{field}={getattr(config, field)} cannot be exported: transformers' "
          f"{self.model_type} always has {field}={needed}."
        )

  def head(self, config: EncoderDecoder, heads: Collection[str]) -> list[Entry]:
    return [Entry("lm/table", "lm_head.weight")] if "lm" in heads and not config.tied else []

  def spare(self, config: EncoderDecoder, heads: Collection[str]) -> dict[str, str]:
    return {}

  def heads_of(
    self, params: EncoderDecoderModel, architecture: str | None = None
  ) -> dict[str, int]:
    if params.classes is not None:
      return {"classes": params.classes.bias.shape[0]}
    return {"lm": 0} if architecture is None or self.architectures[architecture] else {}

  def experiment(self, heads: Collection[str]) -> str:
    return self.pretraining

  def limits(self, config: EncoderDecoder) -> dict[str, int]:
    return {"input_ids": config.vocab_size, "decoder_input_ids": config.vocab_size}

  def longest(self, config: EncoderDecoder) -> int | None:
    return config.positions

  def batch(self, config: EncoderDecoder, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    if "decoder_input_ids" not in inputs:
      raise UserError("decoder_input_ids is missing: what the decoder has read so far.")
    return inputs | {"length": inputs["attention_mask"].sum(axis=1, dtype=np.int32)}

  def run(
    self, params: EncoderDecoderModel, batch: dict[str, Any], compute: Compute, architecture: str
  ) -> dict[str, jax.Array]:
    hidden = params(batch, compute)
    mask = batch["attention_mask"]
    # The same computation again, which the compiler makes once.
    source = params.encode(batch["input_ids"], batch["length"], compute, mask_BS=mask)
    outputs = {"encoder_last_hidden_state": source}
    if self.heads_of(params, architecture):
      return outputs | {"logits": params.token_logits(hidden)}
    return outputs | {"last_hidden_state": hidden}
