"""GPT-2 in transformers (models/gpt2, 5.23)."""

from collections.abc import Mapping

from plm_jax.export.decoders import ALWAYS as DECODER_ALWAYS
from plm_jax.export.decoders import DecoderFamily
from plm_jax.export.heads import named
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.models.decoder import Decoder
from plm_jax.models.gpt import Gpt2

OPTIONS = {
  "layers": ("n_layer", 12),
  "width": ("n_embd", 768),
  "heads": ("n_head", 12),
  "hidden": ("n_inner", None),
  "vocab_size": ("vocab_size", 50257),
  "positions": ("n_positions", 1024),
  "activation": ("activation_function", "gelu_new"),
  "norm_eps": ("layer_norm_epsilon", 1e-5),
  "dropout": ("resid_pdrop", 0.1),
  "attention_dropout": ("attn_pdrop", 0.1),
  "inverse_layer_scale": ("scale_attn_by_inverse_layer_idx", False),
  "initializer_range": ("initializer_range", 0.02),
  "tied": ("tie_word_embeddings", True),
}
ALWAYS = DECODER_ALWAYS | {
  "position": "learned",
  "rope_scaling": None,
  "kv_heads": None,
  "head_width": None,
  "norm": "layer",
  "norm_at": "pre",
  "gated": False,
  "attention_bias": True,
  "feed_forward_bias": True,
  "output_bias": None,
}
TWICE = {"embd_pdrop": "dropout"}


def fused(config: Decoder, layer: str) -> list[Entry]:
  """A layer's names: queries, keys and values are one tensor; all linear maps are convolutions."""
  entries = []
  for part, name in enumerate(("query", "key", "value")):
    at = f"#{part}/3"
    entries.append(Entry(f"blocks/attention/{name}/kernel", f"{layer}attn.c_attn.weight{at}", True))
    entries.append(Entry(f"blocks/attention/{name}/bias", f"{layer}attn.c_attn.bias{at}"))
  entries += linear("blocks/attention/output", f"{layer}attn.c_proj", convolution=True)
  entries += norm("blocks/attention_norm", f"{layer}ln_1")
  entries += linear("blocks/feed_forward/up", f"{layer}mlp.c_fc", convolution=True)
  entries += linear("blocks/feed_forward/down", f"{layer}mlp.c_proj", convolution=True)
  return entries + norm("blocks/feed_forward_norm", f"{layer}ln_2")


class Gpt2Family(DecoderFamily):
  """Positions are counted over padding too, as in transformers, unless `position_ids` are given."""

  model_type = "gpt2"
  config = Gpt2
  base = "transformer."
  architectures = named(
    GPT2LMHeadModel="lm",
    GPT2ForSequenceClassification="classes",
    GPT2ForTokenClassification="token_classes",
    GPT2ForQuestionAnswering="span",
    GPT2Model="",
  )
  top: Mapping[str, str] = {"token_classes": "classifier", "span": "qa_outputs"}
  buffers = (".attn.bias", ".attn.masked_bias")
  options = OPTIONS
  always = ALWAYS
  twice = TWICE
  # Of multiple choice; of attention's dtype, always float32 here; the causal mask's old size.
  silent = (
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("summary_first_dropout", "reorder_and_upcast_attn", "n_ctx"),
  )
  tokens = "wte"
  pretraining = "experiments/gpt.py:gpt2_small"

  def adapt(self, options, fields):
    options.fixed("scale_attn_weights", True)
    return fields

  def body(self, config: Decoder) -> list[Entry]:
    entries = table("token", "wte") + table("position", "wpe")
    return entries + fused(config, "h.{}.") + norm("norm", "ln_f")


FAMILY = Gpt2Family()
