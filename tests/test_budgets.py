"""The budget `laptop`, and the commands of the tables in results/."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import plm_jax as plm
from experiments import bert, distilbert, electra, gpt, t5
from plm_jax import api, budgets, overrides
from plm_jax.ablate import planned as plans
from plm_jax.ablate.table import Arm, Table
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.optim.adamw import LAMB, AdamW
from plm_jax.optim.muon import Muon
from tests.toy_run import TOY

ROOT = Path(__file__).resolve().parents[1]


def options_of(report: Path) -> dict:
  """The flags of the sweep's command in a report."""
  (command,) = re.findall(r"^python -m plm_jax\.sweep (.*)$", report.read_text(), re.MULTILINE)
  words = [word.removeprefix("--").partition("=") for word in shlex.split(command)]
  settings = [value for name, _, value in words if name == "set"]
  return {name: value for name, _, value in words} | {"set": settings}


REPORTS = sorted((ROOT / "results").glob("*/report.md"))


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.parent.name)
def test_the_command_of_a_result_plans_its_arms(report):
  options = options_of(report)
  arms = options["arms"].split(",") if "arms" in options else []
  table, plan, experiments = plans.planned(
    options["table"], arms=arms, budget=options.get("budget", "small"), settings=options["set"]
  )
  for arm in plans.arms_of(table, arms):
    if hasattr(experiments[arm].model, "teacher"):
      continue  # a run that is not here decides its vocabulary
    name, settings = plan.references[arm], [*plan.own.get(arm, ()), *plan.settings]
    assert chosen_experiment(name, "", plan.budget, settings, 1)[0].steps == experiments[arm].steps


def test_arms_that_the_word_makes_equal_are_refused_and_the_others_named():
  arms = (Arm("dropped", replace(TOY, model=replace(TOY.model, dropout=0.3))), Arm("plain", TOY))
  cell = Table(title="Dropout", source="a cell", arms=arms)
  with pytest.raises(UserError, match=r"dropped and plain are .*--arms=dropped runs"):
    plans.planned(cell, budget="laptop")


def test_an_arm_has_the_settings_of_its_table_and_then_its_own_at_this_budget():
  wide = Arm("wide", TOY, settings=("seed=3",), laptop=("model.width=64",))
  table = Table(
    title="A", source="a cell", arms=(wide, Arm("plain", TOY)), laptop=("model.width=96",)
  )
  _, plan, at_laptop = plans.planned(table, budget="laptop", settings=["steps=400"])
  assert plan.own == {
    "wide": ["model.width=96", "seed=3", "model.width=64"],
    "plain": ["model.width=96"],
  }
  assert {name: (e.model.width, e.steps) for name, e in at_laptop.items()} == {
    "wide": (64, 400),
    "plain": (96, 400),
  }
  assert plans.planned(table, budget="small")[1].own == {"wide": ["seed=3"]}


def test_a_table_that_compares_optimisers_is_refused():
  lamb = replace(TOY, optim=LAMB(warmup=3))
  cell = Table(title="Optimisers", source="a cell", arms=(Arm("adamw", TOY), Arm("lamb", lamb)))
  with pytest.raises(UserError, match="adamw and lamb differ in their optimiser, which --budget"):
    plans.planned(cell, budget="laptop")


def test_a_field_in_which_a_row_differs_from_its_base_is_kept():
  row = replace(TOY, optim=replace(TOY.optim, peak=0.5))
  scaled = budgets.scaled(row, "laptop", TOY)
  assert scaled.optim.peak == 0.5 and scaled.optim.b2 == 0.98
  assert (scaled.data.length, scaled.model.width, scaled.steps) == (32, 128, 1800)
  wide = bert.table_6_l12_h1024_a16("small")
  assert budgets.scaled(wide, "laptop", bert.base("small")).model.width == wide.model.width


def test_of_a_model_of_another_class_the_common_fields_are_scaled():
  base = electra.base("small")
  row = budgets.scaled(electra.bert("small"), "laptop", base).model
  assert (row.width, row.heads, row.dropout) == (128, 2, 0.0)
  wide = replace(electra.bert("small"), model=replace(electra.bert("small").model, width=512))
  assert budgets.scaled(wide, "laptop", base).model.width == 512


def test_a_student_learns_from_the_teacher_of_its_budget():
  row = distilbert.base("small")
  assert budgets.scaled(row, "laptop", row).model.teacher == "runs/bert_base_laptop"
  own = replace(row, model=replace(row.model, teacher="mine"))
  assert budgets.scaled(own, "laptop", row).model.teacher == "mine"


def test_inputs_of_spans_are_as_long_as_those_of_single_tokens():
  _, _, arms = plans.planned("experiments/t5.py:table_7", budget="laptop")
  lengths = {name: arm.data.length for name, arm in arms.items()}
  assert lengths.pop("iid") == 64
  for name, length in lengths.items():
    assert arms[name].objectives[0].lengths(length)[0] == 65, "as 64 tokens and the end"


@pytest.mark.parametrize("optim", [AdamW, LAMB])
def test_adamw_and_lamb_become_muon_with_their_fields(optim):
  row = replace(TOY, optim=optim(b1=0.8, decay=0.1, warmup=1))
  scaled = budgets.scaled(row, "laptop", None)
  expected = Muon(b1=0.8, decay=0.1, peak=1.5e-3, warmup=120, schedule="wsd", b2=0.98)
  assert scaled.optim == expected


def test_settings_that_an_experiment_lacks_are_left_out():
  model = budgets.scaled(t5.tiny("small"), "laptop", None)
  assert model.global_batch == 32 and model.optim == t5.tiny("small").optim
  assert budgets.scaled(gpt.tiny("small"), "laptop", None).model.width == 128


def test_a_run_at_this_budget_has_its_own_directory_and_tells_its_diff_to_base():
  experiment, record = chosen_experiment("experiments/bert.py:no_nsp", "", "laptop", [], None)
  assert (record["name"], record["budget"]) == ("bert_no_nsp_laptop", "laptop")
  assert [line["field"] for line in record["diff"]] == ["objectives"]
  settings = [f"{path}={overrides.show(new)}" for path, _, new in overrides.diff(experiment, TOY)]
  assert any(line.startswith("optim=Muon(") for line in settings)


def test_an_unknown_budget_and_that_of_an_experiment_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)
  with pytest.raises(UserError, match="no budget 'huge'; expected smoke, laptop, small, paper"):
    plm.pretrain(budget="huge", cache=tmp_path, workdir=tmp_path / "run")
  with pytest.raises(UserError, match="no budget 'big'; expected smoke, laptop, small, paper"):
    plm.sweep("experiments/bert.py:table_5", budget="big", cache=tmp_path, out=tmp_path / "sweep")
  with pytest.raises(UserError, match="budget='paper' was given, and an Experiment has its own"):
    plm.pretrain(TOY, budget="paper", cache=tmp_path, workdir=tmp_path / "run")
  assert not (tmp_path / "run").exists() and not (tmp_path / "sweep").exists()
