"""ELECTRA in transformers (models/electra, 5.23): a discriminator, or a generator with an MLM."""

from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.export.encoders import BERT_ALWAYS, BERT_OPTIONS, EncoderFamily
from plm_jax.export.family import Fields
from plm_jax.export.heads import named
from plm_jax.export.options import Options
from plm_jax.models.electra import ElectraEncoder
from plm_jax.models.encoder import Encoder

OWN = {
  "embedding": ("embedding_size", 128),
  "width": ("hidden_size", 256),
  "heads": ("num_attention_heads", 4),
  "hidden": ("intermediate_size", 1024),
}


class ElectraFamily(EncoderFamily):
  """Classes and the masked-LM head have the exact GELU, whatever activation the layers have."""

  model_type = "electra"
  config = ElectraEncoder
  base = "electra."
  architectures = named(
    ElectraForPreTraining="rtd",
    ElectraForMaskedLM="mlm",
    ElectraForSequenceClassification="pooler classes",
    ElectraForTokenClassification="token_classes",
    ElectraForQuestionAnswering="span",
    ElectraModel="",
  )
  options = BERT_OPTIONS | OWN
  always = {name: value for name, value in BERT_ALWAYS.items() if name != "embedding"} | {
    "classifier": "dropout_pooler",
    "pooler_activation": "gelu_erf",
    "head_activation": "gelu_erf",
  }
  # How sequences are summarised for multiple choice, which is refused.
  silent = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
  project = "embeddings_project"
  mlm = (
    "generator_predictions.dense",
    "generator_predictions.LayerNorm",
    "generator_lm_head.bias",
    "generator_lm_head",
  )
  top: Mapping[str, str] = {
    "rtd/dense": "discriminator_predictions.dense",
    "rtd/score": "discriminator_predictions.dense_prediction",
    "classes": "classifier.out_proj",
    "token_classes": "classifier",
    "span": "qa_outputs",
  }

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    same = fields["embedding"] == fields["width"]
    return fields | ({"embedding": None} if same else {})

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    document = super().document_of(config, heads)
    return document | {"embedding_size": config.embedding or config.width}

  def pooler_name(self, heads: Collection[str]) -> str:
    return "classifier.dense"


FAMILY = ElectraFamily()
