"""What the families of decoders share: options, names, inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.names import Entry
from plm_jax.export.options import Options, activation_name
from plm_jax.models.compute import Compute
from plm_jax.models.decoder import Decoder, DecoderModel


class DecoderFamily:
  """A causal language model, or a classifier that reads the last token of a row.

  always: what a decoder of the family always is. twice: options that are one field of ours.
  """

  model_type: str
  config: type[Decoder]
  base: str
  architectures: Mapping[str, frozenset[str]]
  inputs = ("input_ids", "attention_mask", "position_ids")
  buffers: tuple[str, ...] = ()
  options: Mapping[str, tuple[str, Any]]
  always: Mapping[str, Any]
  twice: Mapping[str, str] = {}
  silent: tuple[str, ...] = ()
  activations: Mapping[str, str] = {}  # where the family calls them otherwise than all others do
  tokens: str  # the name of the token table
  pretraining: str  # the experiment that goes on with such a checkpoint

  # --- options

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Decoder, dict[str, int]]:
    fields = {name: options.take(*option) for name, option in self.options.items()}
    fields["activation"] = options.activation(*self.options["activation"], self.activations)
    for other, one in self.twice.items():
      if options.take(other, fields[one]) != fields[one]:
        raise UserError(
          f"{options.where} sets {other}={options.document[other]!r} and "
          f"{self.options[one][0]}={fields[one]!r}; this project has one rate for both."
        )
    fields = self.adapt(options, {**self.always, **fields})
    options.finish(self.silent)
    return self.config(**fields), {h: options.labels() if h == "classes" else 0 for h in heads}

  def adapt(self, options: Options, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as our configuration has them."""
    return fields

  def document_of(self, config: Decoder, heads: Mapping[str, int]) -> dict[str, Any]:
    for field, needed in self.always.items():
      if getattr(config, field) != needed:
        raise UserError(
          f"model.{field}={getattr(config, field)} cannot be exported: transformers' "
          f"{self.model_type} always has {field}={needed}."
        )
    document = {theirs: getattr(config, ours) for ours, (theirs, _) in self.options.items()}
    document |= {other: getattr(config, one) for other, one in self.twice.items()}
    name = self.options["activation"][0]
    return document | {name: activation_name(config.activation, self.activations)}

  # --- names

  def found(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    return architecture, self.architectures[architecture]

  def head(self, config: Decoder, heads: Collection[str]) -> list[Entry]:
    entries = []
    if "lm" in heads and not config.tied:
      entries.append(Entry("lm/table", "lm_head.weight"))
    if "classes" in heads:
      entries += [Entry("classes/kernel", "score.weight"), Entry("classes/bias", "")]
    return entries

  def copies(self, config: Decoder, heads: Collection[str]) -> dict[str, str]:
    tied = "lm" in heads and config.tied
    return {"lm_head.weight": f"{self.base}{self.tokens}.weight"} if tied else {}

  def spare(self, config: Decoder, heads: Collection[str]) -> dict[str, str]:
    return {}

  # --- numbers

  def heads_of(self, params: DecoderModel, architecture: str | None = None) -> dict[str, int]:
    """The token table may be the language model's too: only the architecture tells."""
    if params.classes is not None:
      return {"classes": params.classes.bias.shape[0]}
    return {"lm": 0} if architecture is None or self.architectures[architecture] else {}

  def experiment(self, heads: Collection[str]) -> str:
    return self.pretraining

  def limits(self, config: Decoder) -> dict[str, int]:
    return {"input_ids": config.vocab_size, "position_ids": config.positions}

  def longest(self, config: Decoder) -> int | None:
    return config.positions

  def batch(self, config: Decoder, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Where no token is real a row has length 1, so that there is a last one."""
    mask = inputs["attention_mask"]
    columns = np.arange(1, mask.shape[1] + 1, dtype=np.int32)
    return inputs | {"length": np.maximum((columns * mask).max(axis=1), 1)}

  def run(
    self, params: DecoderModel, batch: dict[str, Any], compute: Compute, architecture: str
  ) -> dict[str, jax.Array]:
    hidden = params(batch, compute)
    heads = self.heads_of(params, architecture)
    if "classes" in heads:
      return {"logits": params.class_logits(hidden, batch, None)}
    if "lm" in heads:
      return {"logits": params.token_logits(hidden)}
    return {"last_hidden_state": hidden}
