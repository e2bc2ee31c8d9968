"""DistilBERT in transformers (models/distilbert, 5.23)."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.export.encoders import BERT_ALWAYS, BERT_OPTIONS, EncoderFamily
from plm_jax.export.family import Fields
from plm_jax.export.heads import named, rate_before_classes
from plm_jax.export.options import Options
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.encoder import Encoder

NAMES = {
  "layers": ("n_layers", 6),
  "width": ("dim", 768),
  "heads": ("n_heads", 12),
  "hidden": ("hidden_dim", 3072),
  "activation": ("activation", "gelu"),
  "dropout": ("dropout", 0.1),
  "attention_dropout": ("attention_dropout", 0.1),
}
DROPOUTS = {"classes": ("seq_classif_dropout", 0.2), "span": ("qa_dropout", 0.1)}

OPTIONS = {
  name: option
  for name, option in (BERT_OPTIONS | NAMES).items()
  if name not in ("segments", "norm_eps", "classifier_dropout")
}


class DistilBertFamily(EncoderFamily):
  """No segments, a pooler only under the classes, and a fixed eps."""

  model_type = "distilbert"
  config = DistilBert
  base = "distilbert."
  architectures = named(
    DistilBertForMaskedLM="mlm",
    DistilBertForSequenceClassification="pooler classes",
    DistilBertForTokenClassification="token_classes",
    DistilBertForQuestionAnswering="span",
    DistilBertModel="",
  )
  inputs = ("input_ids", "attention_mask", "position_ids")
  options = OPTIONS
  always = BERT_ALWAYS | {"segments": 0, "norm_eps": 1e-12, "pooler_activation": "relu"}
  silent = ("sinusoidal_pos_embds", "tie_weights_")  # sinusoids are only initial values
  layer = "transformer.layer.{}."
  layer_names: Mapping[str, str] = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward/up": "ffn.lin1",
    "feed_forward/down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
  }
  mlm = ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector")
  top: Mapping[str, str] = {
    "classes": "classifier",
    "token_classes": "classifier",
    "span": "qa_outputs",
  }

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    dropouts = {head: options.take(name, default) for head, (name, default) in DROPOUTS.items()}
    chosen = next((dropouts[head] for head in heads if head in dropouts), None)
    return fields | {"classifier_dropout": chosen}

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    dropout = rate_before_classes(config)
    own = {name: dropout for head, (name, _) in DROPOUTS.items() if head in heads}
    return super().document_of(config, heads) | own

  def pooler_name(self, heads: Collection[str]) -> str:
    return "pre_classifier"


FAMILY = DistilBertFamily()
