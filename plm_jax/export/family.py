"""The interface of a family of published models, and the look-up of its file."""

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
from plm_jax.export.options import Options, activation_name
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model, Parameters
from plm_jax.models.recording import all_states

Fields = dict[str, Any]
"""Fields of one of our configurations."""
Outputs = dict[str, jax.Array]
"""Outputs by transformers' names."""


class Published(Protocol):
  """The part of a `Pretrained` (plm_jax/export/pretrained.py) that a family reads."""

  config: Model
  architecture: str | None
  document: Mapping[str, Any]

  @property
  def heads(self) -> dict[str, int]: ...


class Family(abc.ABC):
  """A family's options, names and outputs, in both directions.

  model_type: as in config.json. config: our class. base: the prefix of the names of a body
  ("bert."). architectures: transformers' class -> our heads in it; the first that fits is written.
  options: field of ours -> (option, transformers' default). always: the fields that are the same in
  the whole family. silent: entries of config.json that no code reads. activations: names that
  differ from the other families'. inputs: the names that `run` takes. buffers: suffixes of older
  releases' tensors that are not parameters. ids: special tokens that config.json may omit.
  pretraining: the experiment that continues the training of such a checkpoint.
  """

  model_type: str
  config: type
  base = ""
  architectures: Mapping[str, frozenset[str]]
  options: Mapping[str, tuple[str, Any]]
  always: Mapping[str, Any]
  silent: tuple[str, ...] = ()
  activations: Mapping[str, str] = types.MappingProxyType({})
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

  def fields_of(self, options: Options) -> Fields:
    """The fields of `always` and of `options`."""
    fields = {name: options.take(*option) for name, option in self.options.items()}
    if "activation" in fields:
      fields["activation"] = options.activation(*self.options["activation"], self.activations)
    return {**self.always, **fields}

  def options_of(self, config: Model) -> dict[str, Any]:
    """The entries of config.json for `options`."""
    document = {theirs: getattr(config, ours) for ours, (theirs, _) in self.options.items()}
    if "activation" in self.options:
      name = self.options["activation"][0]
      document[name] = activation_name(config.activation, self.activations)
    return document

  def never(self, field: str, value: Any, needed: Any) -> UserError:
    """The error for a field that differs from the value that the whole family has."""
    return UserError(
      f"model.{field}={value} cannot be exported: transformers' {self.model_type} always has "
      f"{field}={needed}."
    )

  def unwritten_dropout(self, rate: float) -> str:
    """The note for a rate that changes no output and has no entry in config.json."""
    return (
      f"note: model.dropout={rate} is not written: transformers' {self.model_type} has none in "
      "training either"
    )

  def detect(self, architecture: str, tensors: Collection[str]) -> tuple[str, frozenset[str]]:
    """The class and the heads of a file with these tensors (names as in a file with heads)."""
    return architecture, self.architectures[architecture]

  def base_of(self, heads: Collection[str]) -> str:
    """The prefix of the names of the body in a model with these heads."""
    return self.base

  @abc.abstractmethod
  def body(self, config: Model) -> list[Entry]:
    """The names of the body, which all architectures have, without the prefix `base_of`."""

  @abc.abstractmethod
  def head(self, config: Model, heads: Collection[str]) -> list[Entry]:
    """The names of the heads."""

  @abc.abstractmethod
  def copies(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor -> the tensor that it is tied to, named as in a file with heads."""

  def spare(self, config: Model, heads: Collection[str]) -> dict[str, str]:
    """Tensor of a file that nothing reads -> the tensor that is written in its place."""
    return {}

  @abc.abstractmethod
  def heads_of(self, params: Parameters, architecture: str | None = None) -> dict[str, int]:
    """The heads of a model as an architecture has them, with their sizes."""

  def fits(self, config: Model, architecture: str) -> bool:
    """Whether a class fits a model, if its heads alone do not decide this."""
    return True

  def inputs_of(self, config: Model) -> tuple[str, ...]:
    """The names that `run` takes."""
    return self.inputs

  @abc.abstractmethod
  def batch(self, model: Published, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our batch from checked inputs. Errors: `UserError` if transformers cannot run them either."""

  @abc.abstractmethod
  def limits(self, config: Model) -> dict[str, int]:
    """The number of ids of each input."""

  def longest(self, config: Model) -> int | None:
    """The longest row; None is any length."""
    return config.positions

  def experiment(self, heads: Collection[str]) -> str:
    """The experiment that continues the training of such a checkpoint."""
    return self.pretraining

  @abc.abstractmethod
  def run(self, params: Parameters, batch: dict, compute: Compute, architecture: str) -> Outputs:
    """The outputs of an architecture."""

  def layers(self, params: Parameters, batch: dict, compute: Compute) -> dict[str, list[jax.Array]]:
    """The states and attention weights of every layer, by transformers' names."""
    states, weights = all_states(params, batch, compute)
    return {"hidden_states": states, "attentions": weights}


def family_of_type(model_type: Any, where: str) -> Family:
  """The family that a config.json names. Errors: `UserError` listing all families."""
  known = {name.replace("_", "-"): name for name in _names()}
  if not isinstance(model_type, str) or model_type not in known:
    raise UserError(
      f"{where} is of the family {model_type!r}, which this project does not know; it has "
      f"{', '.join(known)}."
    )
  return _load(known[model_type])


def family_of_config(config: Model) -> Family:
  """The family of our configuration. Errors: `UserError` if transformers has none."""
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
