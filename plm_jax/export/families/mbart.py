"""mBART in transformers (models/mbart, 5.23): BART with its norms before the sublayers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from plm_jax.export.families import bart
from plm_jax.export.families.bart import ALWAYS, OLD, BartFamily
from plm_jax.models.bart import MBart

ARCHITECTURES = {f"M{name}": heads for name, heads in bart.ARCHITECTURES.items()}


class MBartFamily(BartFamily):
  """BART's names. The decoder begins with the source's last token, the code of its language."""

  model_type = "mbart"
  config = MBart
  architectures = ARCHITECTURES
  shifts = tuple(ARCHITECTURES)
  labels = 2
  always = ALWAYS | {"norm_at": "pre"}
  pretraining = "experiments/bart.py:mbart_large"
  old = OLD | {"normalize_before": True, "add_final_layer_norm": True}

  def start(self, ids_BS: np.ndarray, document: Mapping[str, Any]) -> np.ndarray:
    real_B = (ids_BS != self.special("pad_token_id", document)).sum(axis=1)
    return np.take_along_axis(ids_BS, real_B[:, None] - 1, axis=1)


FAMILY = MBartFamily()
