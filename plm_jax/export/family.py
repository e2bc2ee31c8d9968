"""What is to be known of a family of published models, and how its file is found."""

from __future__ import annotations

import abc
import importlib
import pkgutil
import types
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from plm_jax.errors import UserError
from plm_jax.export import families
from plm_jax.export.names import Entry
from plm_jax.export.options import Options
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters


class Published(Protocol):
  """The part of a `Pretrained` (plm_jax/export/pretrained.py) that a family reads."""

  config: Model
  architecture: str | None
  document: Mapping[str, Any]

  @property
  def heads(self) -> dict[str, int]: ...


class Family(abc.ABC):
  """A family's options, names and outputs, in both directions.

  model_type: as in config.json. config: our class. base: what stands before the names of a body
  ("bert."). architectures: transformers' classes and the heads of ours that they consist of; the
  first that fits is written. inputs: the names that `run` takes. buffers: ends of the names of
  tensors of older releases that are no parameters. ids: those of special tokens where config.json
  does not say them. pretraining: the experiment that goes on where such a checkpoint ends.
  """

  model_type: str
  config: type
  base = ""
  architectures: Mapping[str, frozenset[str]]
  inputs: tuple[str, ...]
  buffers: tuple[str, ...] = ()
  ids: Mapping[str, int] = types.MappingProxyType({})
  pretraining: str

  @abc.abstractmethod
  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Model, dict[str, int]]:
    """Our configuration, and the heads with their sizes. Errors: `UserError` naming an option."""

  @abc.abstractmethod
  def document_of(self, config: Model, heads: Mapping[str, int]) -> dict[str, Any]:
    """The options of config.json. Errors: `UserError` naming a field that transformers lacks."""

  def never(self, field: str, found: Any, needed: Any) -> UserError:
    """What to raise for a field that differs from what all of the family have."""
    return UserError(
      f"model.{field}={found} cannot be exported: transformers' {self.model_type} always has "
      f"{field}={needed}."
    )

  def found(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    """What a file with these tensors (named as in one with heads) holds: class and heads."""
    return architecture, self.architectures[architecture]

  def base_of(self, heads: Collection[str]) -> str:
    """What a model with these heads writes before the names of its body."""
    return self.base

  @abc.abstractmethod
  def body(self, config: Model) -> list[Entry]:
    """The names of what all architectures have, without what `base_of` tells."""

  @abc.abstractmethod
  def head(self, config: Model, heads: Collection[str]) -> list[Entry]:
    """The names of what stands on top."""

  @abc.abstractmethod
  def copies(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor -> the one that it is tied to, in the names of a file with heads."""

  def spare(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor that a file has although nothing reads it -> what is written in its place."""
    return {}

  @abc.abstractmethod
  def heads_of(self, params: Parameters, architecture: str | None = None) -> dict[str, int]:
    """The heads of a model in the guise of an architecture, with their sizes."""

  def fits(self, config: Model, architecture: str) -> bool:
    """Whether a class is one of such models, where its heads do not tell."""
    return True

  def inputs_of(self, config: Model) -> tuple[str, ...]:
    """The names that `run` takes."""
    return self.inputs

  @abc.abstractmethod
  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """A batch of ours from transformers' inputs, which have been checked. Errors: `UserError` for
    what transformers could not run either."""

  @abc.abstractmethod
  def limits(self, config: Model) -> dict[str, int]:
    """How many ids there are of each input."""

  def longest(self, config: Model) -> int | None:
    """How long a row may be; None is any length."""
    return config.positions

  def experiment(self, heads: Collection[str]) -> str:
    """The experiment that goes on where such a checkpoint ends."""
    return self.pretraining

  @abc.abstractmethod
  def run(
    self, params: Parameters, batch: dict, compute: Compute, architecture: str
  ) -> dict[str, jax.Array]:
    """Outputs by transformers' names."""


def family_of_type(model_type: Any, where: str) -> Family:
  """The family that a config.json names. Errors: `UserError` naming those there are."""
  known = {name.replace("_", "-"): name for name in _names()}
  if not isinstance(model_type, str) or model_type not in known:
    raise UserError(
      f"{where} is of the family {model_type!r}, which this project does not know; it has "
      f"{', '.join(known)}."
    )
  return _load(known[model_type])


def family_of_config(config: Model) -> Family:
  """The family of our configuration. Errors: `UserError` where transformers has none."""
  known = {}
  for family in map(_load, _names()):
    known.setdefault(family.config, family)  # XLM-R is a RoBERTa: the first is taken
  for kind in type(config).__mro__:
    if kind in known:
      return known[kind]
  raise UserError(f"transformers has no {type(config).__name__}, so it cannot be exported.")


def _names() -> list[str]:
  return [module.name for module in pkgutil.iter_modules(families.__path__)]


def _load(name: str) -> Family:
  return importlib.import_module(f"{families.__name__}.{name}").FAMILY
