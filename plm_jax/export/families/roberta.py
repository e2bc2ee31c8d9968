"""RoBERTa in transformers (models/roberta, 5.23)."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.encoders import BERT_ALWAYS, EncoderFamily
from plm_jax.export.family import Fields, Published
from plm_jax.export.heads import named
from plm_jax.export.options import Options
from plm_jax.models.encoder import Encoder
from plm_jax.models.roberta import Roberta

TOP = {"classes": "classifier.out_proj", "token_classes": "classifier", "span": "qa_outputs"}
ALWAYS = {name: value for name, value in BERT_ALWAYS.items() if name != "first_position"}
ALWAYS |= {"classifier": "dropout_pooler", "head_activation": "gelu_erf"}


class RobertaFamily(EncoderFamily):
  """Positions count from `pad_token_id + 1`, over tokens that are not padding, whatever the
  attention mask; the masked-LM head has the exact GELU, whatever activation the layers have."""

  model_type = "roberta"
  config = Roberta
  base = "roberta."
  architectures = named(
    RobertaForMaskedLM="mlm",
    RobertaForSequenceClassification="pooler classes",
    RobertaForTokenClassification="token_classes",
    RobertaForQuestionAnswering="span",
    RobertaModel="pooler",
  )
  always = ALWAYS
  masked = "experiments/roberta.py:base"
  mlm = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
  top = TOP

  def adapt(self, options: Options, fields: Fields, heads: Collection[str]) -> Fields:
    padding = options.take("pad_token_id", 1)
    rows = fields["positions"]
    if padding < 0 or rows <= padding + 1:
      raise UserError(
        f"{options.where} sets pad_token_id={padding} and max_position_embeddings={rows}; "
        "positions count from the former + 1, so the latter must be larger than that."
      )
    return fields | {"first_position": padding + 1, "positions": rows - padding - 1}

  def document_of(self, config: Encoder, heads: Mapping[str, int]) -> dict[str, Any]:
    if not config.first_position:
      raise UserError("model.first_position=0 cannot be exported: RoBERTa's padding has one.")
    return super().document_of(config, heads) | {
      "max_position_embeddings": config.positions + config.first_position,
      "pad_token_id": config.first_position - 1,
    }

  def pooler_name(self, heads: Collection[str]) -> str:
    return "classifier.dense" if "classes" in heads else super().pooler_name(heads)

  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    padding = model.config.first_position - 1
    real = inputs["input_ids"] != padding
    counted = np.cumsum(real, axis=1, dtype=np.int32) * real + padding
    return super().batch(model, {"position_ids": counted, **inputs})


FAMILY = RobertaFamily()
