"""The base class of families of encoders: options, names of a layer, inputs and outputs."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.family import Family, Fields, Outputs, Published
from plm_jax.export.heads import SIZED, size_of, tuned_outputs
from plm_jax.export.names import Entry, linear, norm, table
from plm_jax.export.options import Options
from plm_jax.models.compute import Compute
from plm_jax.models.encoder import Encoder, EncoderModel

# Within a layer: ours -> BERT's in transformers, which RoBERTa and ELECTRA copied.
BERT_LAYER = {
  "attention/query": "attention.self.query",
  "attention/key": "attention.self.key",
  "attention/value": "attention.self.value",
  "attention/output": "attention.output.dense",
  "attention_norm": "attention.output.LayerNorm",
  "feed_forward/up": "intermediate.dense",
  "feed_forward/down": "output.dense",
  "feed_forward_norm": "output.LayerNorm",
}

# Field of ours -> (option, transformers' default).
BERT_OPTIONS = {
  "layers": ("num_hidden_layers", 12),
  "width": ("hidden_size", 768),
  "heads": ("num_attention_heads", 12),
  "hidden": ("intermediate_size", 3072),
  "vocab_size": ("vocab_size", 30522),
  "positions": ("max_position_embeddings", 512),
  "segments": ("type_vocab_size", 2),
  "activation": ("hidden_act", "gelu"),
  "dropout": ("hidden_dropout_prob", 0.1),
  "attention_dropout": ("attention_probs_dropout_prob", 0.1),
  "classifier_dropout": ("classifier_dropout", None),
  "norm_eps": ("layer_norm_eps", 1e-12),
  "initializer_range": ("initializer_range", 0.02),
  "tied": ("tie_word_embeddings", True),
}
# Fields that are the same in all encoders of BERT's kind; fields of a head only with that head.
BERT_ALWAYS = {
  "kv_heads": None,
  "head_width": None,
  "position": "learned",
  "window": None,
  "norm": "layer",
  "norm_at": "post",
  "gated": False,
  "attention_bias": True,
  "feed_forward_bias": True,
  "output_bias": None,
  "attention_scale": None,
  "hidden_dropout": 0.0,
  "attention": "bidirectional",
  "embedding": None,
  "first_position": 0,
  "sharing": "none",
  "groups": 1,
  "inner_layers": 1,
  "head_activation": None,
  "head_bias": True,
  "first_norm": True,
  "pooler_activation": "tanh",
  "classifier": "pooler",
}
_OF_HEADS = {"head_activation": "mlm", "pooler_activation": "pooler", "classifier": "classes"}


class EncoderFamily(Family):
  """BERT's family; the others are variations of it."""

  config: type[Encoder]
  inputs = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
  options: Mapping[str, tuple[str, Any]] = BERT_OPTIONS
  always: Mapping[str, Any] = BERT_ALWAYS
  buffers: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
  tokens = "embeddings.word_embeddings"
  layer = "encoder.layer.{}."
  layer_names: Mapping[str, str] = BERT_LAYER
  project = ""  # of the mapping after factorised tables
  # Dense, norm, bias and decoder of the masked-LM head.
  mlm: tuple[str, str, str, str]
  pooler = "pooler.dense"
  top: Mapping[str, str]  # the linear map of each other head
  sentence_logits = ""  # of the sentence head in pretraining
  pretraining = "experiments/bert.py:no_nsp"  # with the sentence head; without it
  masked = "experiments/bert.py:no_nsp"

  # --- options

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Encoder, dict[str, int]]:
    fields = self.adapt(options, self.fields_of(options), heads)
    options.finish(self.silent)
    labels = options.labels()
    if {"span", "sop"} & set(heads) and labels != 2:
      raise UserError(f"{options.where} has {labels} labels; this architecture always has 2.")
    return self.config(**fields), {head: labels if head in SIZED else 0 for head in heads}

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    """The fields of our configuration."""
    return fields

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    for field, needed in self.always.items():
      value = getattr(config, field)
      if field == "head_activation":  # None is the activation of the layers
        value, needed = value or config.activation, needed or config.activation
      if field == "dropout" and value != needed:
        print(self.unwritten_dropout(value), file=sys.stderr)
      elif value != needed and _OF_HEADS.get(field) in (None, *heads):
        raise self.never(field, value, needed)
    return self.options_of(config) | {self.options["hidden"][0]: config.width_of_feed_forward}

  # --- names

  def body(self, config: Encoder) -> list[Entry]:
    entries = table("embed/token", self.tokens)
    entries += table("embed/position", "embeddings.position_embeddings")
    if config.segments:
      entries += table("embed/segment", "embeddings.token_type_embeddings")
    entries += norm("embed/norm", "embeddings.LayerNorm")
    if config.embedding:
      entries += linear("embed/project", self.project)
    for ours, theirs in self.layer_names.items():
      make = norm if ours.endswith("norm") else linear
      entries += make(f"blocks/{ours}", self.layer + theirs)
    return entries

  def head(self, config: Encoder, heads: Collection[str]) -> list[Entry]:
    entries = []
    if "pooler" in heads:
      entries += linear("pooler", self.pooler_name(heads))
    if "mlm" in heads:
      dense, norm_name, bias, decoder = self.mlm
      entries += linear("mlm/dense", dense) + norm("mlm/norm", norm_name)
      entries += [Entry("mlm/bias", bias if config.tied else f"{decoder}.bias")]
      entries += [] if config.tied else table("mlm/decoder", decoder)
    for ours, theirs in self.top.items():
      if ours.split("/")[0] in heads:
        entries += linear(ours, theirs)
    return entries

  def pooler_name(self, heads: Collection[str]) -> str:
    """In the body, unless it belongs to a head."""
    return self.base + self.pooler

  def detect(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    """The architecture, or with its second head that for pretraining; a pooler may be missing."""
    heads = self.architectures[architecture]
    pooler = f"{self.base}{self.pooler}.weight" in tensors
    for wider, more in self.architectures.items():
      extra = more - heads - {"pooler"}
      complete = all(f"{self.top.get(head)}.weight" in tensors for head in extra)
      if heads == {"mlm"} < more and pooler and complete:
        return wider, more
    return architecture, heads if pooler or heads != {"pooler"} else frozenset()

  def copies(self, config: Encoder, heads: Collection[str]) -> dict[str, str]:
    if "mlm" not in heads or not config.tied:
      return {}
    _, _, bias, decoder = self.mlm
    tokens = f"{self.base}{self.tokens}.weight"
    own = {} if bias == f"{decoder}.bias" else {f"{decoder}.bias": bias}
    return {f"{decoder}.weight": tokens, **own}

  def spare(self, config: Encoder, heads: Collection[str]) -> dict[str, str]:
    """With an untied decoder, transformers also stores the bias to which it would be tied."""
    _, _, bias, decoder = self.mlm
    unread = "mlm" in heads and not config.tied and bias != f"{decoder}.bias"
    return {bias: f"{decoder}.bias"} if unread else {}

  # --- numbers

  def heads_of(self, params: EncoderModel, architecture: str | None = None) -> dict[str, int]:
    heads = [head for head in params.HEADS if getattr(params, head) is not None]
    return {head: size_of(params, head) for head in heads}

  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    batch = {"input_ids": ids, "attention_mask": mask, "length": mask.sum(axis=1, dtype=np.int32)}
    batch["segment_ids"] = inputs.get("token_type_ids", np.zeros_like(ids))
    if "position_ids" in inputs:
      batch["position_ids"] = inputs["position_ids"]
    return batch

  def experiment(self, heads: Collection[str]) -> str:
    return self.pretraining if {"nsp", "sop"} & set(heads) else self.masked

  def limits(self, config: Encoder) -> dict[str, int]:
    return {
      "input_ids": config.vocab_size,
      "token_type_ids": config.segments,
      "position_ids": config.positions + config.first_position,
    }

  def run(self, params: EncoderModel, batch: dict, compute: Compute, architecture: str) -> Outputs:
    hidden = params(batch, compute)
    heads = self.heads_of(params)
    beside = self.sentence_logits if "mlm" in heads else "logits"
    tokens = "prediction_logits" if "pooler" in heads else "logits"
    makes = {
      "mlm": lambda: {tokens: params.token_logits(hidden)},
      "nsp": lambda: {beside: params.next_sentence_logits(hidden, batch)},
      "sop": lambda: {beside: params.sentence_order_logits(hidden, batch)},
      "rtd": lambda: {"logits": params.replaced_logits(hidden)},
    }
    outputs = tuned_outputs(params, hidden, batch)
    for head in heads.keys() & makes.keys():
      outputs |= makes[head]()
    if not self.architectures[architecture] - {"pooler"}:  # a class without a head
      outputs["last_hidden_state"] = hidden
      if params.pooler is not None:
        outputs["pooler_output"] = params.pool(hidden, batch)
    return outputs
