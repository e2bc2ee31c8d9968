"""BART in transformers (models/bart, 5.23)."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.export.heads import SIZED, named, rate_before_classes
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.export.options import Options
from plm_jax.export.seq2seq import Seq2SeqFamily
from plm_jax.models.bart import Bart
from plm_jax.models.encoder_decoder import EncoderDecoder

OPTIONS = {
  "layers": ("encoder_layers", 12),
  "decoder_layers": ("decoder_layers", 12),
  "width": ("d_model", 1024),
  "heads": ("encoder_attention_heads", 16),
  "decoder_heads": ("decoder_attention_heads", 16),
  "hidden": ("encoder_ffn_dim", 4096),
  "decoder_hidden": ("decoder_ffn_dim", 4096),
  "vocab_size": ("vocab_size", 50265),
  "positions": ("max_position_embeddings", 1024),
  "activation": ("activation_function", "gelu"),
  "dropout": ("dropout", 0.1),
  "classifier_dropout": ("classifier_dropout", 0.0),
  "attention_dropout": ("attention_dropout", 0.0),
  "hidden_dropout": ("activation_dropout", 0.0),
  "embedding_scale": ("scale_embedding", False),
  "initializer_range": ("init_std", 0.02),
  "tied": ("tie_word_embeddings", True),
}
ALWAYS = {
  "kv_heads": None,
  "window": None,
  "head_width": None,
  "position": "learned",
  "first_position": 2,
  "norm": "layer",
  "norm_at": "post",
  "norm_eps": 1e-5,
  "embedding_norm": True,
  "gated": False,
  "attention_bias": True,
  "feed_forward_bias": True,
  "output_bias": None,
  "attention_scale": None,
  "tied": True,
  "logit_scale": False,
  "final_dropout": False,
  "arrangement": "two_stacks",
}
# Entries of older config.json files that only repeat the architecture.
OLD = {
  "add_bias_logits": False,
  "add_final_layer_norm": False,
  "normalize_before": False,
  "normalize_embedding": True,
  "static_position_embeddings": False,
  "extra_pos_embeddings": 2,
  "encoder_layerdrop": 0.0,
  "decoder_layerdrop": 0.0,
  "is_encoder_decoder": True,
}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}

ARCHITECTURES = named(
  BartForConditionalGeneration="lm",
  BartForSequenceClassification="classes",
  BartForQuestionAnswering="span",
  BartModel="",
)


class BartFamily(Seq2SeqFamily):
  """Positions are counted over padding too; the output's bias is zero in every checkpoint."""

  model_type = "bart"
  config = Bart
  base = "model."
  architectures = ARCHITECTURES
  shifts = tuple(ARCHITECTURES)
  ids: Mapping[str, int] = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
  labels = 3  # if config.json gives no number
  buffers = ("final_logits_bias", "encoder.version", "decoder.version")
  options = OPTIONS
  always = ALWAYS
  old = OLD
  silent = ("classif_dropout", "force_bos_token_to_be_generated")
  pretraining = "experiments/bart.py:base"

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Bart, dict[str, int]]:
    fields = self.fields_of(options)
    options.fixed("tie_word_embeddings", True)  # untied, there would be four tables
    options.fixed("num_hidden_layers", fields["layers"])  # another name of the encoder's
    for name, value in self.old.items():
      options.fixed(name, value)
    options.finish(self.silent)
    sizes = {head: options.labels(self.labels) if head in SIZED else 0 for head in heads}
    return self.config(**fields), sizes

  def document_of(self, config: EncoderDecoder, heads: Mapping[str, int]) -> dict[str, Any]:
    self.check_always(config)
    hidden = config.width_of_feed_forward
    return self.options_of(config) | {
      "classifier_dropout": rate_before_classes(config),
      "decoder_layers": config.decoder_layers or config.layers,
      "decoder_attention_heads": config.decoder_heads or config.heads,
      "encoder_ffn_dim": hidden,
      "decoder_ffn_dim": config.decoder_hidden or hidden,
      "is_encoder_decoder": True,
    }

  def body(self, config: EncoderDecoder) -> list[Entry]:
    entries = table("token", "shared")
    for side in ("encoder", "decoder"):
      ours, blocks, layer = f"{side}_stack", f"{side}_stack/blocks", f"{side}.layers.{{}}."
      entries += table(f"{ours}/position", f"{side}.embed_positions")
      entries += norm(f"{ours}/embed_norm", f"{side}.layernorm_embedding")
      attentions = [("attention", "self_attn"), ("cross", "encoder_attn")]
      for name, theirs in attentions[: 1 if side == "encoder" else 2]:
        for own, its in ATTENTION.items():
          entries += linear(f"{blocks}/{name}/{own}", f"{layer}{theirs}.{its}")
        entries += norm(f"{blocks}/{name}_norm", f"{layer}{theirs}_layer_norm")
      entries += linear(f"{blocks}/feed_forward/up", f"{layer}fc1")
      entries += linear(f"{blocks}/feed_forward/down", f"{layer}fc2")
      entries += norm(f"{blocks}/feed_forward_norm", f"{layer}final_layer_norm")
      if config.norm_at == "pre":
        entries += norm(f"{ours}/norm", f"{side}.layer_norm")
    return entries

  def copies(self, config: EncoderDecoder, heads: Collection[str]) -> dict[str, str]:
    token = "model.shared.weight"
    sides = {f"model.{side}.embed_tokens.weight": token for side in ("encoder", "decoder")}
    return sides | ({"lm_head.weight": token} if "lm" in heads else {})


FAMILY = BartFamily()
