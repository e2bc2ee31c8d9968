"""The base class of families of decoders: options, names, inputs and outputs."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.family import Family, Fields, Outputs, Published
from plm_jax.export.heads import (
  SIZED,
  rate_before_classes,
  tuned_entries,
  tuned_heads,
  tuned_outputs,
)
from plm_jax.export.names import Entry
from plm_jax.export.options import Options
from plm_jax.models.compute import Compute
from plm_jax.models.decoder import Decoder, DecoderModel

# Fields of ours that no decoder of transformers has.
ALWAYS = {"first_position": 0, "window": None, "attention_scale": None, "hidden_dropout": 0.0}
DEFAULT_DROPOUT = 0.1  # before token classes, in transformers' decoders


class DecoderFamily(Family):
  """A causal language model, a classifier on the last token of a row, or a classifier of tokens.

  twice: option -> the field that it must equal. top: the linear maps of token heads.
  """

  config: type[Decoder]
  inputs = ("input_ids", "attention_mask", "position_ids")
  twice: Mapping[str, str] = {}
  top: Mapping[str, str] = {}
  tokens: str  # the name of the token table

  # --- options

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Decoder, dict[str, int]]:
    fields = self.fields_of(options)
    for option, field in self.twice.items():
      if options.take(option, fields[field]) != fields[field]:
        raise UserError(
          f"{options.where} sets {option}={options.document[option]!r} and "
          f"{self.options[field][0]}={fields[field]!r}; this project has one rate for both."
        )
    fields = self.adapt(options, fields)
    if "token_classes" in self.top:
      fields["classifier_dropout"] = options.take("classifier_dropout", None)
      if "token_classes" in heads and fields["classifier_dropout"] is None:
        fields["classifier_dropout"] = DEFAULT_DROPOUT
    options.finish(self.silent)
    return self.config(**fields), {h: options.labels() if h in SIZED else 0 for h in heads}

  def adapt(self, options: Options, fields: Fields) -> Fields:
    """The fields of our configuration."""
    return fields

  def document_of(self, config: Decoder, heads: Mapping[str, int]) -> dict[str, Any]:
    for field, needed in self.always.items():
      if field == "dropout" and config.dropout != needed:
        print(self.unwritten_dropout(config.dropout), file=sys.stderr)
      elif getattr(config, field) != needed:
        raise self.never(field, getattr(config, field), needed)
    document = self.options_of(config)
    if "token_classes" in heads or config.classifier_dropout is not None:
      document["classifier_dropout"] = rate_before_classes(config)
    return document | {option: getattr(config, field) for option, field in self.twice.items()}

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
    """A tied table may be the language model's too; only the architecture tells."""
    if heads := tuned_heads(params):
      return heads
    return {"lm": 0} if architecture is None or self.architectures[architecture] else {}

  def limits(self, config: Decoder) -> dict[str, int]:
    return {"input_ids": config.vocab_size, "position_ids": config.positions}

  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """A row ends at its last real token. Classes are read, as in transformers, at the last token
    that is not `pad_token_id`, whatever the mask. The length is at least 1."""
    real, pad = inputs["attention_mask"], model.document.get("pad_token_id")
    if pad is not None and "classes" in model.heads:
      real = inputs["input_ids"] != pad
    columns = np.arange(1, real.shape[1] + 1, dtype=np.int32)
    return inputs | {"length": np.maximum((columns * real).max(axis=1), 1)}

  def run(self, params: DecoderModel, batch: dict, compute: Compute, architecture: str) -> Outputs:
    hidden = params(batch, compute)
    if "lm" in self.heads_of(params, architecture):
      return {"logits": params.token_logits(hidden)}
    return tuned_outputs(params, hidden, batch) or {"last_hidden_state": hidden}
