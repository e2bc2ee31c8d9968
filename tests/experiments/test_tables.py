"""The tables of all papers: their arms are rows, and a published number is written once."""

import re

import pytest

from experiments import bert
from plm_jax import cli
from plm_jax.ablate.planned import planned
from plm_jax.ablate.references import reference_of
from plm_jax.ablate.table import Arm, list_rows
from plm_jax.errors import UserError
from plm_jax.experiment import BUDGETS, Experiment

TABLES = [reference for reference, _ in cli.list_experiments("experiments", returns="Table")]


def arms_of(reference):
  return cli.load_experiment(reference, returns="Table")().arms


def numbers_in(text):
  """Decimal numbers (6.90 is 6.9) and counts in millions (65M)."""
  found = re.findall(r"\d+\.\d+|\d+M\b", text)
  return {x if x.endswith("M") else float(x) for x in found}


@pytest.mark.parametrize("reference", TABLES)
def test_no_published_number_is_both_in_an_arm_and_in_the_docstring_of_its_row(reference):
  for arm in arms_of(reference):
    # ALBERT's docstrings have SQuAD's exact match, which may be equal to some score of the arm.
    docstring = re.sub(r"SQuAD EM [\d.]+, [\d.]+", "", arm.experiment.__doc__)
    published = " ".join(map(str, arm.published.values()))
    assert not numbers_in(docstring) & numbers_in(published), arm.name


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("reference", TABLES)
def test_every_arm_of_a_table_is_a_row_of_an_experiment_file(reference, budget):
  for arm in arms_of(reference):
    row = cli.load_experiment(reference_of(arm), budget=budget)
    assert isinstance(row(), Experiment)
    assert row() == arm.experiment(budget)


@pytest.mark.parametrize("reference", TABLES)
def test_every_table_says_what_it_asks_and_can_run_at_laptop(reference):
  table = cli.load_experiment(reference, returns="Table")()
  assert table.question.endswith("?") or table.blocks  # a mechanism has a lesson instead
  if not table.blocks:  # those tables have a size of their own
    _, _, experiments = planned(reference, budget="laptop", seeds=1)
    assert [*experiments] == [arm.name for arm in table.arms]


def test_the_name_of_an_arm_follows_from_that_of_its_row():
  assert Arm.of(bert.no_nsp).name == "no-nsp"
  assert Arm.of(bert.table_8_80_10_10).name == "80-10-10"
  assert Arm.of(bert.table_6_l3_h768_a12, capitals=("L", "A")).name == "L3-h768-A12"
  assert Arm.of(bert.base, name="bert-base").name == "bert-base"


def test_the_numbers_of_an_arm_stand_under_its_columns():
  arm = Arm.of(bert.no_nsp, 83.9, None, "92.60", columns=("MNLI-m", "QNLI", "SST-2"), F1=87.9)
  assert arm.published == {"MNLI-m": 83.9, "SST-2": "92.60", "F1": 87.9}
  assert arm.numbers == "MNLI-m 83.9, SST-2 92.60, F1 87.9"
  for numbers in ((83.9,), (83.9, 84.9, 86.5)):
    with pytest.raises(UserError, match=rf"no-nsp has {len(numbers)} numbers for the columns"):
      Arm.of(bert.no_nsp, *numbers, columns=("MNLI-m", "QNLI"))


def test_the_list_of_rows_has_their_published_numbers():
  rows = dict(list_rows("experiments"))
  assert rows.keys() == dict(cli.list_experiments("experiments")).keys()
  assert rows["experiments/bert.py:no_nsp"] == (
    'Table 5, "No NSP". Published in BERT, Table 5: '
    "MNLI-m 83.9, QNLI 84.9, MRPC 86.5, SST-2 92.6, SQuAD 87.9."
  )
  assert "DistilBERT, Table 1: GLUE 79.5." in rows["experiments/bert.py:base"]
  assert rows["experiments/electra.py:generator_half"].count("Published") == 1  # in its docstring
