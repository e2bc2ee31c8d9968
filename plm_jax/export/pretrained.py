"""A published model: our configuration and parameters, and the rest of its directory."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from plm_jax.errors import UserError
from plm_jax.export import sentence
from plm_jax.export.family import Family, family_of_config, family_of_type
from plm_jax.models.model import Model, Parameters


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model of the project, and the other content of its published directory.

  architecture: transformers' class; None chooses it by the heads. document: a config.json, kept for
  entries without a field here (names of labels, special tokens). pooling: of a Sentence-BERT; a
  model whose classes are read from the mean always has one.
  """

  config: Model
  params: Parameters
  architecture: str | None = None
  document: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  pooling: sentence.Pooling | None = None

  def __post_init__(self):
    if self.architecture is None:
      chosen = architecture_of(self.family, self.config, self.params)
      object.__setattr__(self, "architecture", chosen)
    if self.pooling is None and has_dense(self.config, self.family.heads_of(self.params)):
      object.__setattr__(self, "pooling", sentence.Pooling())

  @property
  def heads(self) -> dict[str, int]:
    """The heads of the architecture, with their sizes."""
    return self.family.heads_of(self.params, self.architecture)

  @property
  def family(self) -> Family:
    named = self.document.get("model_type")
    return family_of_type(named, "config.json") if named else family_of_config(self.config)


def tops(heads: Collection[str]) -> set[str]:
  """The heads that transformers' bare model does not have."""
  return set(heads) - {"pooler"}


def has_dense(config: Model, heads: Collection[str]) -> bool:
  """Whether classes are read from the mean of the states, as by a Dense of sentence-transformers
  and by no class of transformers."""
  return getattr(config, "classifier", None) == "mean" and tops(heads) == {"classes"}


def architecture_of(family: Family, config: Model, params: Parameters) -> str:
  """The class with the model's heads. Errors: `UserError` if transformers has none."""
  heads = set(family.heads_of(params))
  if has_dense(config, heads):
    heads.remove("classes")
  for name, needed in family.architectures.items():
    if family.fits(config, name) and (heads == needed or not tops(heads | needed)):
      return name
  raise UserError(
    f"transformers' {family.model_type} has no class with the heads {', '.join(sorted(heads))}."
  )
