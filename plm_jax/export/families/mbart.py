"""mBART in transformers (models/mbart, 5.23): BART with its norms before the sublayers."""

from __future__ import annotations

from plm_jax.export.encoders import named
from plm_jax.export.families.bart import ALWAYS, OLD, BartFamily
from plm_jax.models.bart import MBart


class MBartFamily(BartFamily):
  """Tensors are called as in BART."""

  model_type = "mbart"
  config = MBart
  architectures = named(MBartForConditionalGeneration="lm", MBartModel="")
  always = ALWAYS | {"norm_at": "pre"}
  pretraining = "experiments/bart.py:mbart_large"
  old = OLD | {"normalize_before": True, "add_final_layer_norm": True}


FAMILY = MBartFamily()
