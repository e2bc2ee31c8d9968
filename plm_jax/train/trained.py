"""A run's newest parameters, without the text that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax

from plm_jax.data.tokenizers import Tokenizer
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.train.checkpoint import restore_parameters
from plm_jax.train.start import Source, continued_from


class Trained(NamedTuple):
  source: Source
  params: Any
  step: int  # of the checkpoint

  @property
  def config(self):
    """The model that fine-tuning and evaluation take: of ELECTRA the discriminator."""
    return self.source.experiment.model.encoder

  @property
  def tokenizer(self) -> Tokenizer:
    return self.source.tokenizer

  @property
  def compute(self) -> Compute:
    return self.source.experiment.compute


def load(path: str | Path) -> Trained:
  """The newest good checkpoint in a run's directory, on one device. Errors: `UserError` where there
  is none, and for models that predict no tokens."""
  source = continued_from(path)
  if classes := source.experiment.heads.get("classes"):
    raise UserError(
      f"{source.path} was fine-tuned to tell {classes} classes apart, and predicts no tokens; "
      f"python -m plm_jax.convert {source.path} DST makes a classifier of transformers of it"
    )
  key = jax.random.key(0)
  shapes = jax.eval_shape(source.experiment.init_parameters, key)
  public = source.document.get("public")
  if public is not None:
    model = source.experiment.model
    stored = jax.eval_shape(lambda key: model.init(key, public["heads"]), key)
    if jax.tree.structure(stored) != jax.tree.structure(shapes):
      raise UserError(
        f"{source.path} is a {public['architecture']}, which has no head that predicts tokens; "
        "convert a checkpoint that has one, or train one with run_pretrain.py --from"
      )
  restored = restore_parameters(source.path, shapes)
  return Trained(source, restored.params, int(restored.folder.name))
