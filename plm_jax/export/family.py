"""What is to be known of a family of published models, and how its file is found."""

from __future__ import annotations

import importlib
import pkgutil
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


class Family(Protocol):
  """A family's options, names and outputs, in both directions.

  model_type: as in config.json. config: our class. architectures: transformers' classes and the
  heads of ours that they consist of; the first that fits is written. buffers: ends of the names of
  tensors of older releases that are no parameters.
  """

  model_type: str
  config: type
  architectures: Mapping[str, frozenset[str]]
  buffers: tuple[str, ...]

  def model_of(self, options: Options, heads: Collection[str]) -> tuple[Model, dict[str, int]]:
    """Our configuration, and the heads with their sizes. Errors: `UserError` naming an option."""

  def document_of(self, config: Model, heads: Mapping[str, int]) -> dict[str, Any]:
    """The options of config.json. Errors: `UserError` naming a field that transformers lacks."""

  def found(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    """What a file with these tensors (named as in one with heads) holds: class and heads."""

  def base_of(self, heads: Collection[str]) -> str:
    """What a model with these heads writes before the names of its body ("bert.")."""

  def body(self, config: Model) -> list[Entry]:
    """The names of what all architectures have, without what `base_of` tells."""

  def head(self, config: Model, heads: Collection[str]) -> list[Entry]:
    """The names of what stands on top."""

  def copies(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor -> the one that it is tied to, in the names of a file with heads."""

  def spare(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor that a file has although nothing reads it -> what is written in its place."""

  def heads_of(self, params: Parameters, architecture: str | None = None) -> dict[str, int]:
    """The heads of a model in the guise of an architecture, with their sizes."""

  def fits(self, config: Model, architecture: str) -> bool:
    """Whether a class is one of such models, where its heads do not tell."""

  def inputs_of(self, config: Model) -> tuple[str, ...]:
    """The names that `run` takes."""

  def batch(
    self,
    config: Model,
    inputs: dict[str, np.ndarray],
    architecture: str,
    document: Mapping[str, Any],
  ) -> dict[str, Any]:
    """A batch of ours from transformers' inputs, which have been checked. document: config.json,
    for ids of special tokens. Errors: `UserError` for what transformers could not run either."""

  def limits(self, config: Model) -> dict[str, int]:
    """How many ids there are of each input."""

  def longest(self, config: Model) -> int | None:
    """How long a row may be; None is any length."""

  def experiment(self, heads: Collection[str]) -> str:
    """The experiment that goes on where such a checkpoint ends."""

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
