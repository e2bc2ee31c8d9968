"""The ways to a smaller run, by their names on the command line."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from plm_jax.compression.calibrated import calibrated
from plm_jax.compression.forms import FORMS, stored_as
from plm_jax.compression.heads import check_heads, importance, most_important, without_heads
from plm_jax.compression.layers import check_layers, every_other, with_layers
from plm_jax.compression.pruning import pruned
from plm_jax.errors import UserError
from plm_jax.models.distilbert import layer_selection
from plm_jax.runs import Run
from plm_jax.shrinking.subjects import Subject

FULL = "full"  # the run as it was
KNOWN = "bf16, int8, static8, w8, w4, prune50, heads50, layers3, distil"
_TEXTS = {
  "bf16": "parameters in bfloat16",
  "int8": "int8 weights and activations, products in int32",
  "static8": "int8 weights and activations, whose scales were measured before",
  "w8": "int8 weights alone",
  "w4": "int4 weights in groups of 64, int8 tables",
}


class Way(NamedTuple):
  """A way. check: a `UserError` for a run that lacks it. make: the smaller run in memory. trains:
  whether it is trained on. sudden: whether it is scored before that too. sparse: whether zeros stay
  zero. taught: whether the original teaches it. form: of the parameters."""

  name: str
  text: str
  check: Callable[[Run], Any]
  make: Callable[[Subject], Run]
  trains: bool = False
  sudden: bool = False
  sparse: bool = False
  taught: bool = False
  form: str | None = None


def way_of_full() -> Way:
  """The run as it was, without an optimiser's state: the baseline of the others."""
  return Way(FULL, "as it was, float32", lambda run: None, lambda subject: subject.run)


def way(name: str) -> Way:
  """The way of a name. Errors: `UserError`, with a list, for an unknown one."""
  if name in FORMS:
    form = functools.partial(stored_as, name)
    make = lambda subject: with_params(subject.run, form(subject.run.params))  # noqa: E731
    if name == "static8":
      make = calibrated_run
    return Way(name, _TEXTS[name], lambda run: jax.eval_shape(form, run.params), make, form=name)
  if name == "distil":
    text = "half of the layers, taught by the run itself"
    make = lambda subject: chosen_layers(subject.run, half_of_layers(subject.run))  # noqa: E731
    return Way(name, text, half_of_layers, make, trains=True, taught=True)
  if match := re.fullmatch(r"(prune|heads)([1-9][0-9]?)", name):
    kind, share = match[1], int(match[2]) / 100
    if kind == "prune":
      text = f"the smallest {share:.0%} of the weights of every matrix are 0"
      prune = functools.partial(pruned, share=share)
      make = lambda subject: with_params(subject.run, prune(subject.run.params))  # noqa: E731
      check = lambda run: jax.eval_shape(prune, run.params)  # noqa: E731
      return Way(name, text, check, make, trains=True, sudden=True, sparse=True)
    text = f"without the least important {share:.0%} of the heads of every layer"
    check = functools.partial(heads_kept, share=share)
    make = functools.partial(fewer_heads, share=share)
    return Way(name, text, check, make, trains=True, sudden=True)
  if match := re.fullmatch(r"layers([1-9][0-9]*)", name):
    kept = int(match[1])
    choose = functools.partial(layers_kept, kept=kept)
    make = lambda subject: chosen_layers(subject.run, choose(subject.run))  # noqa: E731
    return Way(name, f"{kept} of the layers, at equal distances", choose, make, trains=True)
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


def calibrated_run(subject: Subject) -> Run:
  loss, batches = subject.loss()
  return with_params(subject.run, calibrated(subject.run.params, batches, loss))


def heads_kept(run: Run, share: float) -> int:
  """The heads that stay in a layer. Errors: `UserError` if the model's heads cannot go, or none or
  all would."""
  heads = check_heads(run.experiment.model, run.params)
  kept = heads - round(share * heads)
  if kept in (0, heads):
    raise UserError(f"heads{share * 100:.0f} leaves {kept} of {heads} heads in a layer")
  return kept


def fewer_heads(subject: Subject, share: float) -> Run:
  run, model = subject.run, subject.run.experiment.model
  kept, (loss, batches) = heads_kept(run, share), subject.loss()
  scores_LN = importance(run.params, check_heads(model, run.params), batches, loss)
  model, params = without_heads(model, run.params, most_important(scores_LN, kept))
  return with_params(run, params, model)


def chosen_layers(run: Run, chosen: list[int]) -> Run:
  model, params = with_layers(run.experiment.model, run.params, chosen)
  return with_params(run, params, model)


def layers_kept(run: Run, kept: int) -> list[int]:
  return every_other(check_layers(run.experiment.model, run.params), kept)


def half_of_layers(run: Run) -> list[int]:
  """The layers of a student that starts from its teacher's, as DistilBERT."""
  layers = check_layers(run.experiment.model, run.params)
  if layers < 2:
    raise UserError("distil halves the layers, and the model has one")
  if not hasattr(run.experiment.data, "teacher_logits"):
    raise UserError(
      f"distil learns from the classes of a fine-tuned run, which {run.path} does not have; leave "
      "it out, or take layers"
    )
  return layer_selection(layers, layers // 2)
