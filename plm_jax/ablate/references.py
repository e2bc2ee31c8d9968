"""The tables and arms of a sweep by their FILE:FUNCTION, or by themselves if a cell made them."""

import inspect
from collections.abc import Callable
from pathlib import Path

from plm_jax import cli, overrides
from plm_jax.ablate.plan import CELL, ROOT
from plm_jax.ablate.table import Arm, Table
from plm_jax.budgets import AnyBudget, of_rows, scaled
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.experiment_flags import row_and_base


def table_of(table: str | Table | Callable[[], Table]) -> tuple[Table, str]:
  """The table, and its FILE:FUNCTION, or `CELL` and its title if it has none."""
  if isinstance(table, str):
    return cli.load_experiment(table, returns="Table")(), table
  rows = table if isinstance(table, Table) else table()
  reference = None if isinstance(table, Table) else file_reference(table, "Table")
  return rows, reference or f"{CELL} {rows.title}"


def at_budget(table: Table, arm: Arm, budget: AnyBudget) -> Experiment:
  """The experiment of an arm of a table, with the settings that the table has for it."""
  reference = file_reference(arm.experiment, "Experiment")
  if reference:
    experiment = row_and_base(reference, budget)[0]
  else:
    experiment = scaled(arm.experiment(of_rows(budget)), budget, None)
  return overrides.apply(experiment, table.settings_of(arm, budget))


def reference_of(arm: Arm, of_cell: bool = False) -> str:
  """`FILE:FUNCTION` by which run_pretrain.py finds the arm's experiment. of_cell: the table was
  made in this process, and so may be the experiment."""
  reference = file_reference(arm.experiment, "Experiment")
  if reference is None and not of_cell:
    raise UserError(
      f"the arm {arm.name} must be given a public function of an experiment file that is annotated "
      f"to return Experiment, not {arm.experiment!r}"
    )
  return reference or CELL


def file_reference(function: Callable, returns: str) -> str | None:
  """`FILE:FUNCTION` of a function that `cli.load_experiment` finds; None for others."""
  name = getattr(function, "__name__", "")
  try:
    file = Path(inspect.getsourcefile(function) or "")
  except TypeError:  # of an object that is no function
    return None
  if not file.is_file():  # of a cell
    return None
  if file.is_relative_to(ROOT):
    file = file.relative_to(ROOT)
  return f"{file.as_posix()}:{name}" if name in cli.experiments_of(str(file), returns) else None
