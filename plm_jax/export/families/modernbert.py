"""ModernBERT in transformers (models/modernbert, 5.24)."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.errors import UserError
from plm_jax.export.encoders import BERT_ALWAYS, EncoderFamily
from plm_jax.export.family import Fields
from plm_jax.export.heads import named, rate_before_classes
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.export.options import Options, activation_name
from plm_jax.models.encoder import Encoder
from plm_jax.models.modernbert import ModernBert

OPTIONS = {
  "layers": ("num_hidden_layers", 22),
  "width": ("hidden_size", 768),
  "heads": ("num_attention_heads", 12),
  "hidden": ("intermediate_size", 1152),
  "vocab_size": ("vocab_size", 50368),
  "positions": ("max_position_embeddings", 8192),
  "activation": ("hidden_activation", "gelu"),
  "attention_dropout": ("attention_dropout", 0.0),
  "hidden_dropout": ("mlp_dropout", 0.0),
  "classifier_dropout": ("classifier_dropout", 0.0),
  "norm_eps": ("norm_eps", 1e-5),
  "initializer_range": ("initializer_range", 0.02),
  "tied": ("tie_word_embeddings", True),
  "attention_bias": ("attention_bias", False),
  "feed_forward_bias": ("mlp_bias", False),
  "head_bias": ("classifier_bias", False),
}
READ = ("window", "head_activation", "norm", *OPTIONS)
ALWAYS = {name: value for name, value in BERT_ALWAYS.items() if name not in READ}
ALWAYS |= {"position": "rotary", "segments": 0, "dropout": 0.0, "rope_scaling": None}
ALWAYS |= {"norm_at": "pre", "gated": True, "first_norm": False, "classifier": "mean"}
WHOLE, NEAR = "full_attention", "sliding_attention"  # kinds of layers
LAYER = {
  "attention/query": "attn.Wqkv#0/3",
  "attention/key": "attn.Wqkv#1/3",
  "attention/value": "attn.Wqkv#2/3",
  "attention/output": "attn.Wo",
  "feed_forward/gate": "mlp.Wi#0/2",
  "feed_forward/up": "mlp.Wi#1/2",
  "feed_forward/down": "mlp.Wo",
}


class ModernBertFamily(EncoderFamily):
  """`local_attention` counts the tokens on both sides. Older files have `global_rope_theta` and
  `local_rope_theta` in place of `rope_parameters`, and `global_attn_every_n_layers` in place of
  `layer_types`."""

  model_type = "modernbert"
  config = ModernBert
  base = "model."
  architectures = named(ModernBertForMaskedLM="mlm", ModernBertModel="")
  inputs = ("input_ids", "attention_mask", "position_ids")
  options = OPTIONS
  always = ALWAYS
  # Of classes, of training, of kernels on a GPU; both eps of old files are the same.
  silent = (
    *("classifier_pooling", "sparse_prediction", "sparse_pred_ignore_index", "layer_norm_eps"),
    *("initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile"),
    "repad_logits_with_grad",
  )
  tokens = "embeddings.tok_embeddings"
  masked = "experiments/roberta.py:base"
  mlm = ("head.dense", "head.norm", "decoder.bias", "decoder")
  top: Mapping[str, str] = {}

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    options.fixed("decoder_bias", True)
    options.fixed("embedding_dropout", 0.0)
    options.fixed("rope_scaling", None)
    fields["norm"] = "layer" if options.take("norm_bias", False) else "unbiased"
    fields["head_activation"] = options.activation("classifier_activation", "gelu")
    old = {WHOLE: ("global_rope_theta", 160_000.0), NEAR: ("local_rope_theta", 10_000.0)}
    rope = options.take("rope_parameters", None) or {}
    whole, near = (
      theta_of(rope.get(kind), options.take(*old[kind]), options.where) for kind in old
    )
    seen, every = options.take("local_attention", 128), every_of(options, fields["layers"])
    if every == 1:
      return fields | {
        "rope_theta": whole,
        "window": None,
        "global_every": 0,
        "local_rope_theta": None,
      }
    local = {"window": seen // 2, "global_every": every, "local_rope_theta": near}
    return fields | {"rope_theta": whole} | local

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    if config.norm == "rms":
      raise self.never("norm", config.norm, "unbiased")
    every = 1 if config.window is None else config.global_every
    if not every:
      raise UserError(
        "model.global_every=0 cannot be exported: transformers' first layer sees all."
      )
    near = config.local_rope_theta or config.rope_theta
    thetas = {WHOLE: config.rope_theta, NEAR: near}
    return super().document_of(config, heads) | {
      "classifier_dropout": rate_before_classes(config),
      "norm_bias": config.norm == "layer",
      "classifier_activation": activation_name(config.head_activation or config.activation),
      "layer_types": [NEAR if layer % every else WHOLE for layer in range(config.layers)],
      "local_attention": 2 * (config.window or 64),
      "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
      },
    }

  def body(self, config: Encoder) -> list[Entry]:
    bias = config.norm == "layer"
    entries = table("embed/token", self.tokens) + norm("embed/norm", "embeddings.norm", bias)
    for ours, theirs in LAYER.items():
      name, _, part = theirs.partition("#")
      with_bias = config.attention_bias if "attention" in ours else config.feed_forward_bias
      for entry in linear(f"blocks/{ours}", f"layers.{{}}.{name}", with_bias):
        entries.append(entry._replace(theirs=entry.theirs + "#" * bool(part) + part))
    first = norm("blocks/attention_norm", "layers.{}.attn_norm", bias)
    entries += [entry._replace(later=True) for entry in first]
    entries += norm("blocks/feed_forward_norm", "layers.{}.mlp_norm", bias)
    return entries + norm("norm", "final_norm", bias)

  def head(self, config: Encoder, heads: Collection[str]) -> list[Entry]:
    if "mlm" not in heads:
      return []
    entries = linear("mlm/dense", "head.dense", config.head_bias)
    entries += norm("mlm/norm", "head.norm", config.norm == "layer")
    entries += [Entry("mlm/bias", "decoder.bias")]
    return entries + ([] if config.tied else table("mlm/decoder", "decoder"))


def theta_of(rope: Any, default: float, where: str) -> float:
  """The base of the angles of a kind of layers. Errors: `UserError` for angles that are scaled."""
  rope = {} if rope is None else rope
  if not isinstance(rope, dict) or type(rope.get("rope_theta", default)) not in (int, float):
    raise UserError(f"{where} sets rope_parameters to {rope!r} for a kind of layers; expected an "
                    "object with the number rope_theta.")  # fmt: skip
  if rope.keys() - {"rope_theta", "rope_type"} or rope.get("rope_type", "default") != "default":
    raise UserError(f"{where} sets {rope!r} for the rope, which this project does not support.")
  return float(rope.get("rope_theta", default))


def every_of(options: Options, layers: int) -> int:
  """Every n-th layer, from the first, sees the whole row. Errors: `UserError` for other layers."""
  every, kinds = options.take("global_attn_every_n_layers", 3), options.document.get("layer_types")
  options.fixed("layer_types", kinds)
  if kinds is not None:
    whole = [i for i, kind in enumerate(kinds) if kind == WHOLE] if isinstance(kinds, list) else []
    every = whole[1] if len(whole) > 1 else max(layers, 2)
    if kinds != [NEAR if layer % every else WHOLE for layer in range(layers)]:
      raise UserError(
        f"{options.where} sets layer_types={kinds!r}; expected {WHOLE} in the first and then in "
        f"every n-th of {layers} layers, and {NEAR} in the others."
      )
  if every < 1:
    raise UserError(
      f"{options.where} sets global_attn_every_n_layers={every}; expected at least 1."
    )
  return every


FAMILY = ModernBertFamily()
