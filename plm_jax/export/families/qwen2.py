"""Qwen2 in transformers (models/qwen2, 5.24): LLaMA's names, with biases."""

from typing import Any

from plm_jax.export.families.llama import ALWAYS, OPTIONS, LlamaFamily
from plm_jax.export.heads import named
from plm_jax.export.options import Options
from plm_jax.models.qwen2 import Qwen2

DEFAULTS = {
  "kv_heads": ("num_key_value_heads", 32),
  "hidden": ("intermediate_size", 22016),
  "vocab_size": ("vocab_size", 151936),
  "positions": ("max_position_embeddings", 32768),
}
BIASES = {"attention_bias": True, "output_bias": False, "feed_forward_bias": False}


class Qwen2Family(LlamaFamily):
  """Windows are not read: the published models do not use theirs."""

  model_type = "qwen2"
  config = Qwen2
  architectures = named(
    Qwen2ForCausalLM="lm",
    Qwen2ForSequenceClassification="classes",
    Qwen2ForTokenClassification="token_classes",
    Qwen2ForQuestionAnswering="span",
    Qwen2Model="",
  )
  options = {name: option for name, option in OPTIONS.items() if name not in BIASES} | DEFAULTS
  always = ALWAYS | BIASES
  silent = ("sliding_window", "max_window_layers")  # without use_sliding_window

  def window_of(self, options: Options, fields: dict[str, Any]) -> None:
    options.fixed("use_sliding_window", False)
    options.fixed("layer_types", None, ["full_attention"] * fields["layers"])


FAMILY = Qwen2Family()
