"""LLaMA in transformers (models/llama, 5.23)."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.errors import UserError
from plm_jax.export.decoders import ALWAYS as DECODER_ALWAYS
from plm_jax.export.decoders import DecoderFamily
from plm_jax.export.heads import named
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.export.options import Options
from plm_jax.models.decoder import Decoder
from plm_jax.models.llama import Llama
from plm_jax.models.positions import LinearScaling, Llama3Scaling, RopeScaling

OPTIONS = {
  "layers": ("num_hidden_layers", 32),
  "width": ("hidden_size", 4096),
  "heads": ("num_attention_heads", 32),
  "kv_heads": ("num_key_value_heads", None),
  "head_width": ("head_dim", None),
  "hidden": ("intermediate_size", 11008),
  "vocab_size": ("vocab_size", 32000),
  "positions": ("max_position_embeddings", 2048),
  "activation": ("hidden_act", "silu"),
  "norm_eps": ("rms_norm_eps", 1e-6),
  "attention_dropout": ("attention_dropout", 0.0),
  "attention_bias": ("attention_bias", False),
  "feed_forward_bias": ("mlp_bias", False),
  "initializer_range": ("initializer_range", 0.02),
  "tied": ("tie_word_embeddings", False),
}
ALWAYS = DECODER_ALWAYS | {
  "position": "rotary",
  "norm": "rms",
  "norm_at": "pre",
  "gated": True,
  "inverse_layer_scale": False,
  "output_bias": None,
  "dropout": 0.0,
}
LAYER = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/output": "self_attn.o_proj",
  "feed_forward/gate": "mlp.gate_proj",
  "feed_forward/up": "mlp.up_proj",
  "feed_forward/down": "mlp.down_proj",
}
# transformers' rope_type -> our class, with the names of its fields there.
SCALINGS = {
  "linear": (LinearScaling, {"factor": "factor"}),
  "llama3": (
    Llama3Scaling,
    {
      "factor": "factor",
      "low_freq_factor": "low_freq_factor",
      "high_freq_factor": "high_freq_factor",
      "original_positions": "original_max_position_embeddings",
    },
  ),
}


class LlamaFamily(DecoderFamily):
  """Rotary positions are in `rope_parameters`; older files have `rope_theta` and `rope_scaling`."""

  model_type = "llama"
  config = Llama
  base = "model."
  architectures = named(
    LlamaForCausalLM="lm",
    LlamaForSequenceClassification="classes",
    LlamaForTokenClassification="token_classes",
    LlamaForQuestionAnswering="span",
    LlamaModel="",
  )
  top: Mapping[str, str] = {"token_classes": "score", "span": "qa_outputs"}
  buffers = ("rotary_emb.inv_freq",)
  options = OPTIONS
  always = ALWAYS
  silent = ("pretraining_tp",)  # the tensor parallelism of its training
  tokens = "embed_tokens"
  pretraining = "experiments/llama.py:base"

  def base_of(self, heads: Collection[str]) -> str:
    return "transformer." if "span" in heads else self.base

  def adapt(self, options: Options, fields: dict[str, Any]) -> dict[str, Any]:
    theta = options.take("rope_theta", 10_000.0)
    old, new = options.take("rope_scaling", None), options.take("rope_parameters", None)
    options.fixed("partial_rotary_factor", 1.0)
    if new and old and new != old:
      raise UserError(
        f"{options.where} sets rope_parameters and rope_scaling, which differ; keep one of them."
      )
    rope = dict(new or old or {})
    for name, value in rope.items():
      if name not in ("type", "rope_type") and type(value) not in (int, float):
        raise UserError(f"{options.where} sets {name}={value!r} for the rope; expected a number.")
    theta = float(rope.pop("rope_theta", theta))
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
      raise UserError(f"{options.where} sets partial_rotary_factor, which is not supported.")
    width, heads = fields["width"], fields["heads"]
    if fields["head_width"] is not None and fields["head_width"] * heads == width:
      fields["head_width"] = None
    if fields["kv_heads"] == heads:
      fields["kv_heads"] = None
    fields["window"] = self.window_of(options, fields)
    return fields | {"rope_theta": theta, "rope_scaling": scaling_of(rope, options.where)}

  def window_of(self, options: Options, fields: dict[str, Any]) -> int | None:
    """Our window of every layer."""
    options.fixed("sliding_window", None)
    options.fixed("use_sliding_window", False)

  def document_of(self, config: Decoder, heads: Mapping[str, int]) -> dict[str, Any]:
    document = super().document_of(config, heads)
    document["intermediate_size"] = config.width_of_feed_forward
    document["num_key_value_heads"] = config.kv_heads or config.heads
    document["head_dim"] = config.width_of_heads
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    for kind, (scaling, names) in SCALINGS.items():
      if isinstance(config.rope_scaling, scaling):
        fields = dataclasses.asdict(config.rope_scaling)
        rope |= {"rope_type": kind, **{names[field]: value for field, value in fields.items()}}
    return document | {"rope_parameters": rope}

  def body(self, config: Decoder) -> list[Entry]:
    entries = table("token", "embed_tokens") + norm("norm", "norm", bias=False)
    for ours, theirs in LAYER.items():
      bias = config.attention_bias if "attention" in ours else config.feed_forward_bias
      bias = (
        bias if ours != "attention/output" or config.output_bias is None else config.output_bias
      )
      entries += linear(f"blocks/{ours}", "layers.{}." + theirs, bias)
    entries += norm("blocks/attention_norm", "layers.{}.input_layernorm", bias=False)
    return entries + norm(
      "blocks/feed_forward_norm", "layers.{}.post_attention_layernorm", bias=False
    )


def scaling_of(rope: dict[str, Any], where: str) -> RopeScaling | None:
  """Our scaling of the angles. Errors: `UserError` for an unknown kind."""
  old = rope.pop("type", "default")
  kind = rope.pop("rope_type", old)
  if kind == "default":
    return None
  if not isinstance(kind, str) or kind not in SCALINGS:
    raise UserError(
      f"{where} sets rope_type={kind!r}, which this project does not support; it has default, "
      f"{', '.join(SCALINGS)}."
    )
  scaling, names = SCALINGS[kind]
  fields = {ours: rope.pop(theirs) for ours, theirs in names.items() if theirs in rope}
  if rope:
    raise UserError(f"{where} sets {min(rope)} for rope_type={kind!r}, which is not known.")
  missing = [theirs for ours, theirs in names.items() if ours not in fields]
  if missing:
    raise UserError(f"{where} sets rope_type={kind!r} without {missing[0]}.")
  return scaling(**fields)


FAMILY = LlamaFamily()
