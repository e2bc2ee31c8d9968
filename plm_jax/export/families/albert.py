"""ALBERT in transformers (models/albert, 5.23)."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.errors import UserError
from plm_jax.export.encoders import BERT_ALWAYS, BERT_OPTIONS, EncoderFamily
from plm_jax.export.family import Fields
from plm_jax.export.heads import named, rate_before_classes
from plm_jax.export.names import Entry, linear, norm
from plm_jax.export.options import Options
from plm_jax.models.albert import Albert
from plm_jax.models.encoder import Encoder

OWN = {
  "embedding": ("embedding_size", 128),
  "groups": ("num_hidden_groups", 1),
  "inner_layers": ("inner_group_num", 1),
}
DEFAULTS = {
  "vocab_size": ("vocab_size", 30000),
  "width": ("hidden_size", 4096),
  "heads": ("num_attention_heads", 64),
  "hidden": ("intermediate_size", 16384),
  "activation": ("hidden_act", "gelu_new"),
  "dropout": ("hidden_dropout_prob", 0.0),
  "attention_dropout": ("attention_probs_dropout_prob", 0.0),
  "classifier_dropout": ("classifier_dropout_prob", 0.1),
}


class AlbertFamily(EncoderFamily):
  """Groups of shared layers, and a mapping after the tables even if E is the width."""

  model_type = "albert"
  config = Albert
  base = "albert."
  architectures = named(
    AlbertForPreTraining="pooler mlm sop",
    AlbertForMaskedLM="mlm",
    AlbertForSequenceClassification="pooler classes",
    AlbertForTokenClassification="token_classes",
    AlbertForQuestionAnswering="span",
    AlbertModel="pooler",
  )
  options = BERT_OPTIONS | DEFAULTS | OWN
  always = {k: v for k, v in BERT_ALWAYS.items() if k not in OWN} | {"sharing": "all"}
  # In the config.json of the released checkpoints; no code reads them.
  silent = ("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks")
  project = "encoder.embedding_hidden_mapping_in"
  layer = "encoder.albert_layer_groups.{}.albert_layers.{}."
  layer_names: Mapping[str, str] = {
    "attention/query": "attention.query",
    "attention/key": "attention.key",
    "attention/value": "attention.value",
    "attention/output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward/up": "ffn",
    "feed_forward/down": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
  }
  mlm = ("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder")
  pooler = "pooler"
  top: Mapping[str, str] = {
    "sop": "sop_classifier.classifier",
    "classes": "classifier",
    "token_classes": "classifier",
    "span": "qa_outputs",
  }
  sentence_logits = "sop_logits"
  pretraining = "experiments/albert.py:base"
  masked = "experiments/albert.py:table_5_none"

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    layers, groups = fields["layers"], fields["groups"]
    rounded = [int(i / (layers / groups)) for i in range(layers)] if min(layers, groups) > 0 else []
    if rounded != [i * groups // layers for i in range(layers)]:
      raise UserError(
        f"{options.where} sets num_hidden_groups={groups} for num_hidden_layers={layers}, which "
        "transformers divides with a rounding error that this project does not repeat."
      )
    return fields

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    own = {"classifier_dropout_prob": rate_before_classes(config)}
    return super().document_of(config, heads) | own

  def body(self, config: Encoder) -> list[Entry]:
    """With one layer in each group, our arrays have no axis for it."""
    entries = [e for e in super().body(config) if not e.ours.startswith("blocks/")]
    inner = config.inner_layers > 1
    blocks = "blocks/inner/" if inner else "blocks/"
    layer = self.layer if inner else self.layer.replace("layers.{}", "layers.0")
    for ours, theirs in self.layer_names.items():
      make = norm if ours.endswith("norm") else linear
      entries += make(blocks + ours, layer + theirs)
    return entries


FAMILY = AlbertFamily()
