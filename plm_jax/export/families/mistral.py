"""Mistral in transformers (models/mistral, 5.24): LLaMA's names, with a window."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.errors import UserError
from plm_jax.export.families.llama import ALWAYS, OPTIONS, LlamaFamily
from plm_jax.export.heads import named
from plm_jax.export.options import Options
from plm_jax.models.decoder import Decoder
from plm_jax.models.mistral import Mistral

DEFAULTS = {
  "kv_heads": ("num_key_value_heads", 8),
  "hidden": ("intermediate_size", 14336),
  "positions": ("max_position_embeddings", 131072),
}
BIASES = {"attention_bias": False, "output_bias": None, "feed_forward_bias": False}


class MistralFamily(LlamaFamily):
  """`sliding_window` counts the token itself, our `window` does not."""

  model_type = "mistral"
  config = Mistral
  architectures = named(
    MistralForCausalLM="lm",
    MistralForSequenceClassification="classes",
    MistralForTokenClassification="token_classes",
    MistralForQuestionAnswering="span",
    MistralModel="",
  )
  options = {name: option for name, option in OPTIONS.items() if name not in BIASES} | DEFAULTS
  always = {name: value for name, value in ALWAYS.items() if name != "window"} | BIASES

  def base_of(self, heads: Collection[str]) -> str:
    return self.base

  def window_of(self, options: Options, fields: dict[str, Any]) -> int | None:
    seen = options.document.get("sliding_window", 4096)
    if seen is not None and options.take("sliding_window", 4096) < 2:
      raise UserError(f"{options.where} sets sliding_window={seen}; expected at least 2, or null.")
    options.fixed("sliding_window", seen)
    return None if seen is None else seen - 1

  def document_of(self, config: Decoder, heads: Mapping[str, int]) -> dict[str, Any]:
    seen = None if config.window is None else config.window + 1
    return super().document_of(config, heads) | {"sliding_window": seen}


FAMILY = MistralFamily()
