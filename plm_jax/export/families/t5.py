"""T5 and T5 1.1 in transformers (models/t5, 5.23)."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.heads import SIZED, named, rate_before_classes
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.export.options import ACTIVATIONS, Options, activation_name
from plm_jax.export.seq2seq import Seq2SeqFamily
from plm_jax.models.encoder_decoder import EncoderDecoder
from plm_jax.models.t5 import T5

OPTIONS = {
  "layers": ("num_layers", 6),
  "decoder_layers": ("num_decoder_layers", None),
  "width": ("d_model", 512),
  "heads": ("num_heads", 8),
  "head_width": ("d_kv", 64),
  "hidden": ("d_ff", 2048),
  "vocab_size": ("vocab_size", 32128),
  "relative_buckets": ("relative_attention_num_buckets", 32),
  "relative_distance": ("relative_attention_max_distance", 128),
  "norm_eps": ("layer_norm_epsilon", 1e-6),
  "dropout": ("dropout_rate", 0.1),
  "classifier_dropout": ("classifier_dropout", 0.0),
}
ALWAYS = {
  "kv_heads": None,
  "window": None,
  "decoder_heads": None,
  "decoder_hidden": None,
  "position": "relative",
  "norm": "rms",
  "norm_at": "pre",
  "embedding_norm": False,
  "embedding_scale": False,
  "attention_bias": False,
  "feed_forward_bias": False,
  "output_bias": None,
  "attention_scale": 1.0,
  "final_dropout": True,
  "arrangement": "two_stacks",
}
ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
TIED = "one table"  # from a file's tensors, not from config.json
ALONE = "no decoder"  # from the class


class T5Family(Seq2SeqFamily):
  """`tie_word_embeddings` only sets whether logits are scaled, as in transformers; the output has a
  separate table if the file has one."""

  model_type = "t5"
  config = T5
  architectures = named(
    T5ForConditionalGeneration="lm",
    T5ForSequenceClassification="classes",
    T5ForTokenClassification="token_classes",
    T5ForQuestionAnswering="span",
    T5EncoderModel="",
    T5Model="",
  )
  alone = ("T5ForTokenClassification", "T5EncoderModel")
  shifts = ("T5ForSequenceClassification", "T5ForQuestionAnswering")
  ids: Mapping[str, int] = {"pad_token_id": 0, "eos_token_id": 1}
  # Cross-attention has it but does not read it.
  buffers = ("EncDecAttention.relative_attention_bias.weight",)
  options = OPTIONS
  always = ALWAYS
  silent = ("initializer_factor", "n_positions")  # initial weights; no limit
  pretraining = "experiments/t5.py:base"

  def detect(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    heads = self.architectures[architecture]
    heads = heads | {ALONE} if architecture in self.alone else heads
    return architecture, heads if "lm_head.weight" in tensors else heads | {TIED}

  def base_of(self, heads: Collection[str]) -> str:
    return "transformer." if {"classes", "token_classes"} & set(heads) else ""

  def start(self, ids_BS: np.ndarray, document: Mapping[str, Any]) -> np.ndarray:
    """Padding if config.json gives no start token, as in the whole family."""
    start = document.get("decoder_start_token_id")
    start = self.special("pad_token_id", document) if start is None else start
    return super().start(ids_BS, {**document, "decoder_start_token_id": start})

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[T5, dict[str, int]]:
    fields = self.fields_of(options) | gated_activation(options)
    # transformers 5 writes `scale_decoder_outputs`, which then decides.
    scales = options.take("scale_decoder_outputs", options.take("tie_word_embeddings", True))
    alone = ALONE in heads
    options.fixed("is_encoder_decoder", True, *([False] if alone else []))
    options.finish(self.silent)
    if alone:
      fields |= {"arrangement": "encoder", "decoder_layers": None}
    fields["attention_dropout"] = fields["hidden_dropout"] = fields["dropout"]
    tied = scales or TIED in heads
    labels = options.labels()
    if "span" in heads and labels != 2:
      raise UserError(f"{options.where} has {labels} labels; this architecture always has 2.")
    sizes = {h: labels if h in SIZED else 0 for h in heads if h not in (TIED, ALONE)}
    return T5(**fields, tied=tied, logit_scale=scales), sizes

  def document_of(self, config: EncoderDecoder, heads: Mapping[str, int]) -> dict[str, Any]:
    self.check_always(config)
    if not config.dropout == config.attention_dropout == config.hidden_dropout:
      raise UserError(
        "model.dropout, .attention_dropout and .hidden_dropout differ, and cannot be exported: "
        "transformers' t5 has one rate for all."
      )
    if config.logit_scale and not config.tied:
      raise UserError("model.logit_scale with model.tied=false cannot be exported to t5.")
    document = self.options_of(config)
    gated = "gated-" if config.gated else ""
    name = activation_name(config.activation)
    document["feed_forward_proj"] = gated + ("gelu" if gated and name == "gelu_new" else name)
    document["num_decoder_layers"] = config.decoder_layers or config.layers
    return document | {
      "classifier_dropout": rate_before_classes(config),
      "d_ff": config.width_of_feed_forward,
      "d_kv": config.width_of_heads,
      "is_encoder_decoder": config.arrangement != "encoder",
      "tie_word_embeddings": config.logit_scale,
    }

  def body(self, config: EncoderDecoder) -> list[Entry]:
    entries = table("token", "shared")
    for side, sublayers in sides(config):
      ours, layer = f"{side}_stack", f"{side}.block.{{}}.layer."
      entries += table(
        f"{ours}/bias/relative", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
      )
      blocks = f"{ours}/blocks"
      attentions = [("attention", "0.SelfAttention", 0), ("cross", "1.EncDecAttention", 1)]
      for name, theirs, at in attentions[: sublayers - 1]:
        for own, its in ATTENTION.items():
          entries += linear(f"{blocks}/{name}/{own}", f"{layer}{theirs}.{its}", bias=False)
        entries += norm(f"{blocks}/{name}_norm", f"{layer}{at}.layer_norm", bias=False)
      last = f"{layer}{sublayers - 1}."
      ups = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
      for own, its in {**ups, "down": "wo"}.items():
        entries += linear(f"{blocks}/feed_forward/{own}", f"{last}DenseReluDense.{its}", bias=False)
      entries += norm(f"{blocks}/feed_forward_norm", f"{last}layer_norm", bias=False)
      entries += norm(f"{ours}/norm", f"{side}.final_layer_norm", bias=False)
    return entries

  def copies(self, config: EncoderDecoder, heads: Collection[str]) -> dict[str, str]:
    base = self.base_of(heads)
    token = f"{base}shared.weight"
    copies = {f"{base}{side}.embed_tokens.weight": token for side, _ in sides(config)}
    return copies | ({"lm_head.weight": token} if config.tied and "lm" in heads else {})

  def longest(self, config: EncoderDecoder) -> None:
    return None


def sides(config: EncoderDecoder) -> list[tuple[str, int]]:
  """The model's stacks, and the number of sublayers in their layers."""
  return [("encoder", 2), ("decoder", 3)][: 1 if config.arrangement == "encoder" else 2]


def gated_activation(options: Options) -> dict[str, Any]:
  """The fields of `feed_forward_proj`: in `gated-gelu`, and only there, gelu is the tanh GELU."""
  project = options.take("feed_forward_proj", "relu")
  gated, _, name = project.rpartition("-")
  known = ACTIVATIONS | ({"gelu": "gelu_tanh"} if gated else {})
  if gated not in ("", "gated") or name not in known:
    raise UserError(
      f"{options.where} sets feed_forward_proj={project!r}, which this project does not support."
    )
  fields = {"gated": bool(gated), "activation": known[name]}
  # transformers also writes these two, which then decide.
  again = options.activation("dense_act_fn", "gelu_new" if project == "gated-gelu" else name)
  if (options.take("is_gated_act", bool(gated)), again) != tuple(fields.values()):
    raise UserError(
      f"{options.where} sets feed_forward_proj={project!r} and something else by dense_act_fn or "
      "is_gated_act; keep one of them."
    )
  return fields


FAMILY = T5Family()
