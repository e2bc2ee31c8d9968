"""The ways to a smaller run, by their names on the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

from plm_jax.compression.forms import FORMS, stored_as
from plm_jax.compression.heads import check_heads, importance, most_important, without_heads
from plm_jax.compression.layers import check_layers, every_other, with_layers
from plm_jax.compression.pruning import pruned
from plm_jax.errors import UserError
from plm_jax.models.distilbert import layer_selection
from plm_jax.runs import Run
from plm_jax.shrinking.subjects import Subject

FULL = "full"  # the run as it was
KNOWN = "bf16, int8, w8, w4, prune50, heads50, layers3, distil"
_TEXTS = {
  "bf16": "parameters in bfloat16",
  "int8": "int8 weights and activations, products in int32",
  "w8": "int8 weights alone",
  "w4": "int4 weights in groups of 64, int8 tables",
}


class Way(NamedTuple):
  """A way. make: the smaller run in memory. trains: whether it is trained on afterwards. sudden:
  whether it is also scored before that. sparse: whether zeros stay zero then. taught: whether the
  original teaches it. form: of the parameters."""

  name: str
  text: str
  make: Callable[[Subject], Run]
  trains: bool = False
  sudden: bool = False
  sparse: bool = False
  taught: bool = False
  form: str | None = None


def way_of_full() -> Way:
  """The run as it was, without an optimiser's state: the baseline of the others."""
  return Way(FULL, "as it was, float32", lambda subject: subject.run)


def way(name: str) -> Way:
  """The way of a name. Errors: `UserError`, with a list, for an unknown one."""
  if name in FORMS:
    return Way(name, _TEXTS[name], lambda subject: in_form(subject.run, name), form=name)
  if name == "distil":
    text = "half of the layers, taught by the run itself"
    return Way(name, text, half_of_layers, trains=True, taught=True)
  if match := re.fullmatch(r"(prune|heads)([1-9][0-9]?)", name):
    kind, share = match[1], int(match[2]) / 100
    if kind == "prune":
      text = f"the smallest {share:.0%} of the weights of every matrix are 0"
      make = lambda subject: with_params(subject.run, pruned(subject.run.params, share))  # noqa: E731
      return Way(name, text, make, trains=True, sudden=True, sparse=True)
    text = f"without the least important {share:.0%} of the heads of every layer"
    return Way(name, text, lambda subject: fewer_heads(subject, share), trains=True, sudden=True)
  if match := re.fullmatch(r"layers([1-9][0-9]*)", name):
    kept = int(match[1])
    text = f"{kept} of the layers, at equal distances"
    return Way(name, text, lambda subject: fewer_layers(subject.run, kept), trains=True)
  raise UserError(
    f"--ways has {name!r}, which is no way; the ways are {KNOWN}, with other numbers too"
  )


def ways(names: str) -> list[Way]:
  """The ways of a list with commas, each once."""
  return [way(name.strip()) for name in dict.fromkeys(names.split(","))]


def with_params(run: Run, params, model=None) -> Run:
  """The run with other parameters, and with another model if one is given."""
  experiment = run.experiment
  if model is not None:
    experiment = dataclasses.replace(experiment, model=model)
  return dataclasses.replace(run, params=params, experiment=experiment)


def in_form(run: Run, form: str) -> Run:
  return with_params(run, stored_as(form, run.params))


def fewer_heads(subject: Subject, share: float) -> Run:
  """Errors: `UserError` if the model's heads cannot go, or none or all would."""
  run = subject.run
  heads = check_heads(run.experiment.model, run.params)
  kept = heads - round(share * heads)
  if kept in (0, heads):
    raise UserError(f"heads{share * 100:.0f} leaves {kept} of {heads} heads in a layer")
  loss, batches = subject.loss()
  scores_LN = importance(run.params, heads, batches, loss)
  model, params = without_heads(run.experiment.model, run.params, most_important(scores_LN, kept))
  return with_params(run, params, model)


def fewer_layers(run: Run, kept: int) -> Run:
  chosen = every_other(check_layers(run.experiment.model, run.params), kept)
  return with_params(run, *reversed(with_layers(run.experiment.model, run.params, chosen)))


def half_of_layers(subject: Subject) -> Run:
  """A student that starts from half of its teacher's layers, chosen as DistilBERT's."""
  run = subject.run
  layers = check_layers(run.experiment.model, run.params)
  if layers < 2:
    raise UserError("distil halves the layers, and the model has one")
  if not hasattr(run.experiment.data, "teacher_logits"):
    raise UserError(
      f"distil learns from the classes of a fine-tuned run, which {run.path} does not have; leave "
      "it out, or take layers"
    )
  chosen = layer_selection(layers, layers // 2)
  return with_params(run, *reversed(with_layers(run.experiment.model, run.params, chosen)))
