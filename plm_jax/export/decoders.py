"""What the families of decoders share: options, names, inputs and outputs."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.family import Family, Published
from plm_jax.export.heads import SIZED, tuned_entries, tuned_heads, tuned_outputs
from plm_jax.export.names import Entry
from plm_jax.export.options import Options, activation_name
from plm_jax.models.compute import Compute
from plm_jax.models.decoder import Decoder, DecoderModel

# Fields of ours that no decoder of transformers has.
ALWAYS = {"first_position": 0, "window": None, "attention_scale": None, "hidden_dropout": 0.0}
UNSAID_DROPOUT = 0.1  # of transformers' decoders over classes of tokens


class DecoderFamily(Family):
  """A causal language model, a classifier that reads the last token of a row, or one of tokens.

  always: what a decoder of the family always is. twice: options that are one field of ours. top:
  the linear maps over tokens.
  """

  config: type[Decoder]
  inputs = ("input_ids", "attention_mask", "position_ids")
  options: Mapping[str, tuple[str, Any]]
  always: Mapping[str, Any]
  twice: Mapping[str, str] = {}
  silent: tuple[str, ...] = ()
  activations: Mapping[str, str] = {}  # where the family calls them otherwise than all others do
  top: Mapping[str, str] = {}
  tokens: str  # the name of the token table

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
    if "token_classes" in self.top:
      fields["classifier_dropout"] = options.take("classifier_dropout", None)
      if "token_classes" in heads and fields["classifier_dropout"] is None:
        fields["classifier_dropout"] = UNSAID_DROPOUT
    options.finish(self.silent)
    return self.config(**fields), {h: options.labels() if h in SIZED else 0 for h in heads}

  def adapt(self, options: Options, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as our configuration has them."""
    return fields

  def document_of(self, config: Decoder, heads: Mapping[str, int]) -> dict[str, Any]:
    for field, needed in self.always.items():
      if field == "dropout" and config.dropout != needed:  # it has no part in what is computed
        print(
          f"note: model.dropout={config.dropout} is not written: transformers' {self.model_type} "
          "has none in training either",
          file=sys.stderr,
        )
      elif getattr(config, field) != needed:
        raise self.never(field, getattr(config, field), needed)
    document = {theirs: getattr(config, ours) for ours, (theirs, _) in self.options.items()}
    if "token_classes" in heads or config.classifier_dropout is not None:
      own = config.classifier_dropout
      document["classifier_dropout"] = config.dropout if own is None else own
    document |= {other: getattr(config, one) for other, one in self.twice.items()}
    name = self.options["activation"][0]
    return document | {name: activation_name(config.activation, self.activations)}

  # --- names

  def head(self, config: Decoder, heads: Collection[str]) -> list[Entry]:
    entries = []
    if "lm" in heads and not config.tied:
      entries.append(Entry("lm/table", "lm_head.weight"))
    if "classes" in heads:
      entries.append(Entry("classes/kernel", "score.weight"))
    return entries + tuned_entries(self.top, heads)

  def copies(self, config: Decoder, heads: Collection[str]) -> dict[str, str]:
    tied = "lm" in heads and config.tied
    return {"lm_head.weight": f"{self.base}{self.tokens}.weight"} if tied else {}

  # --- numbers

  def heads_of(self, params: DecoderModel, architecture: str | None = None) -> dict[str, int]:
    """The token table may be the language model's too: only the architecture tells."""
    if found := tuned_heads(params):
      return found
    return {"lm": 0} if architecture is None or self.architectures[architecture] else {}

  def limits(self, config: Decoder) -> dict[str, int]:
    return {"input_ids": config.vocab_size, "position_ids": config.positions}

  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """A row ends at its last real token; its classes, as in transformers, at the last that is not
    `pad_token_id`, whatever the mask says. Where there is none a row has length 1."""
    real, pad = inputs["attention_mask"], model.document.get("pad_token_id")
    if pad is not None and "classes" in model.heads:
      real = inputs["input_ids"] != pad
    columns = np.arange(1, real.shape[1] + 1, dtype=np.int32)
    return inputs | {"length": np.maximum((columns * real).max(axis=1), 1)}

  def run(
    self, params: DecoderModel, batch: dict[str, Any], compute: Compute, architecture: str
  ) -> dict[str, jax.Array]:
    hidden = params(batch, compute)
    if "lm" in self.heads_of(params, architecture):
      return {"logits": params.token_logits(hidden)}
    return tuned_outputs(params, hidden, batch) or {"last_hidden_state": hidden}
