"""The budgets of the commands: those of an experiment file's functions, and `laptop`.

`laptop` is `small` with a model of width 128 that trains in minutes on two cores, by Muon where a
row has AdamW or LAMB: with these, masked models are still on their plateau at the end
(docs/recipe.md). Encoder-decoders learn more slowly with Muon and keep their optimiser. A field in
which a row differs from its base is the row's own, and is kept. A teacher is that of this budget.
"""

import dataclasses
from typing import Literal, cast

from plm_jax import overrides
from plm_jax.config_tree import is_within, places
from plm_jax.errors import UserError
from plm_jax.experiment import Budget, Experiment
from plm_jax.optim.adamw import AdamW
from plm_jax.optim.muon import Muon

AnyBudget = Literal["smoke", "laptop", "small", "paper"]
BUDGETS: tuple[AnyBudget, ...] = ("smoke", "laptop", "small", "paper")
HELP = "Scale: seconds, minutes on a laptop, minutes on a GPU, or as published."
LAPTOP = (
  *("data.length=32", "global_batch=32", "steps=1800"),
  *("model.width=128", "model.heads=2", "model.initializer_range=0.05"),
  *("model.dropout=0", "model.attention_dropout=0", "model.hidden_dropout=0"),
  *("optim.peak=1.5e-3", "optim.warmup=120", "optim.schedule=wsd", "optim.b2=0.98"),
  *("schedule.log=50", "schedule.save=1000", "schedule.keep=1", "schedule.evaluate=300"),
  "schedule.evaluation_rows=512",
)


def of_rows(budget: str) -> Budget:
  """The budget that the function of a row takes. Errors: `UserError` for an unknown budget."""
  if budget not in BUDGETS:
    raise UserError(f"there is no budget {budget!r}; expected {', '.join(BUDGETS)}.")
  return cast(Budget, "small" if budget == "laptop" else budget)


def scaled(experiment: Experiment, budget: str, base: Experiment | None) -> Experiment:
  """A row at its budget. experiment, base: the row and its file's `base`, if there is one, at
  `of_rows(budget)`. Settings without a field in this experiment are left out."""
  if budget != "laptop":
    return experiment
  own = own_fields(experiment, base) if base else []
  if has_adam(experiment) and "optim" not in own:
    fields = {f.name: getattr(experiment.optim, f.name) for f in dataclasses.fields(AdamW)}
    experiment = dataclasses.replace(experiment, optim=Muon(**fields))
  known = {path for path, _ in places(experiment)}
  if "optim.b2" not in known:  # the rates of Adafactor are relative
    own.append("optim")
  if experiment.is_counted:
    own.append("steps")
  teacher = getattr(experiment.model, "teacher", None)
  further = [f"model.teacher={teacher}_laptop"] if teacher else []
  settings = ((setting.partition("=")[0], setting) for setting in (*LAPTOP, *further))
  chosen = [setting for field, setting in settings if field in known and not is_within(field, own)]
  return overrides.apply(experiment, chosen)


def own_fields(experiment: Experiment, base: Experiment) -> list[str]:
  """The fields in which a row differs from its base; of models of two classes, those of both."""
  own = [path for path, _, _ in overrides.diff(experiment, base)]
  if "model" not in own:
    return own
  ours, theirs = vars(experiment.model), vars(base.model)
  fields = [f"model.{name}" for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
  return [path for path in own if path != "model"] + fields


def has_adam(experiment: Experiment) -> bool:
  """Whether `laptop` trains it with Muon instead."""
  writes = any(objective.name == "seq2seq" for objective in experiment.objectives)
  return (
    isinstance(experiment.optim, AdamW) and not isinstance(experiment.optim, Muon) and not writes
  )
