"""BERT in transformers (models/bert, 5.23)."""

from collections.abc import Mapping

from plm_jax.export.encoders import EncoderFamily
from plm_jax.export.heads import named
from plm_jax.models.bert import Bert


class BertFamily(EncoderFamily):
  """transformers' BERT has the exact GELU unless config.json names another activation."""

  model_type = "bert"
  config = Bert
  base = "bert."
  architectures = named(
    BertForPreTraining="pooler mlm nsp",
    BertForMaskedLM="mlm",
    BertForNextSentencePrediction="pooler nsp",
    BertForSequenceClassification="pooler classes",
    BertForTokenClassification="token_classes",
    BertForQuestionAnswering="span",
    BertModel="pooler",
  )
  # In the config.json of the multilingual and Chinese checkpoints; no code reads them.
  silent = (
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
  )
  mlm = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
    "cls.predictions.decoder",
  )
  top: Mapping[str, str] = {
    "nsp": "cls.seq_relationship",
    "classes": "classifier",
    "token_classes": "classifier",
    "span": "qa_outputs",
  }
  sentence_logits = "seq_relationship_logits"
  pretraining = "experiments/bert.py:base"


FAMILY = BertFamily()
