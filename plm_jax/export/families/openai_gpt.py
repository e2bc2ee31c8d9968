"""GPT-1 in transformers (models/openai, 5.23)."""

from collections.abc import Mapping

from plm_jax.export.decoders import DecoderFamily
from plm_jax.export.families.gpt2 import ALWAYS, OPTIONS, TWICE, fused
from plm_jax.export.heads import named
from plm_jax.export.names import Entry, table
from plm_jax.models.decoder import Decoder
from plm_jax.models.gpt import Gpt1

OWN = {
  "vocab_size": ("vocab_size", 40478),
  "positions": ("n_positions", 512),
  "activation": ("afn", "gelu"),
}
OPTIONS_1 = {
  name: option
  for name, option in (OPTIONS | OWN).items()
  if name not in ("hidden", "inverse_layer_scale")
}


class Gpt1Family(DecoderFamily):
  """Its "gelu" is the tanh GELU; the feed-forward width is always four times the width."""

  model_type = "openai-gpt"
  config = Gpt1
  base = "transformer."
  architectures = named(
    OpenAIGPTLMHeadModel="lm", OpenAIGPTForSequenceClassification="classes", OpenAIGPTModel=""
  )
  inputs = ("input_ids", "attention_mask", "position_ids")
  buffers = (".attn.bias", "position_ids")
  options = OPTIONS_1
  always = ALWAYS | {"norm_at": "post", "inverse_layer_scale": False}
  twice = TWICE
  silent = (
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "n_ctx", "n_special", "predict_special_tokens"),
  )
  activations: Mapping[str, str] = {
    "gelu": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
  }
  tokens = "tokens_embed"
  pretraining = "experiments/gpt.py:base"

  def document_of(self, config, heads):
    if config.hidden not in (None, 4 * config.width):
      raise self.never("hidden", config.hidden, "4 * width")
    return super().document_of(config, heads)

  def body(self, config: Decoder) -> list[Entry]:
    entries = table("token", "tokens_embed") + table("position", "positions_embed")
    return entries + fused(config, "h.{}.")


FAMILY = Gpt1Family()
