"""Tables with a dial: their arms, and the page of a sweep over two values."""

import dataclasses

import pytest

from experiments import mechanisms
from plm_jax import cli
from plm_jax.ablate.dials import dialled
from plm_jax.ablate.plan import PlannedRun
from plm_jax.ablate.planned import planned
from plm_jax.ablate.reporting import gather, report
from plm_jax.ablate.sweeping import sweep
from plm_jax.ablate.table import Better, Table
from plm_jax.data.controlled import open_controlled
from plm_jax.errors import UserError
from plm_jax.sharding import MeshShape
from tests.experiments.rows import changed
from tests.toy_run import TOY

TABLES = [reference for reference, _ in cli.list_experiments("experiments", "Table")]
TABLES = [reference for reference in TABLES if "mechanisms" in reference]


@pytest.mark.parametrize("reference", TABLES)
def test_arms_of_one_value_read_the_same_text_and_differ_in_their_claim(reference):
  table, plan, experiments = planned(reference)
  for arm in table.arms:
    text = open_controlled(experiments[arm.name].data.source)
    first = next(a for a in table.arms if a.dial == arm.dial)
    assert open_controlled(experiments[first.name].data.source) == text
    assert plan.settings_of(PlannedRun(arm.name, 0)) == list(arm.settings)
    for field in changed(experiments[arm.name], experiments[first.name]):
      assert field.startswith(("objectives", "data.segments", "model"))
  assert len({arm.dial for arm in table.arms}) >= 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A sweep of two tiny rows at two values, in this process."""
  out = tmp_path_factory.mktemp("dial") / "sweep"

  def low(budget="small"):
    return dataclasses.replace(TOY, mesh=MeshShape())  # over all devices

  def high(budget="small"):
    return dataclasses.replace(low(), model=dataclasses.replace(TOY.model, width=32))

  setting = "data.source=controlled:markov/{}/60"
  table = mechanisms._table(
    "A dial", "markov/{}/60", "none", dialled((low, high), setting, (0.2, 0.6)),
    (Better("mlm_loss", "high-0.6", than="low-0.6"),), "share", {"mlm_loss": "loss"}, "None.",
  )  # fmt: skip
  made = sweep(table, out, seeds=1, inline=True, cache=str(out.parent / "cache"))
  assert not made.failed
  return made


@pytest.mark.slow
def test_each_value_is_measured_on_its_own_text(finished):
  measured = gather(finished.out, finished.table)
  assert not [note for note in measured.notes if "another set" in note]
  sets = {run.arm: record["sets"]["mlm"] for run, record in measured.records.items()}
  assert sets["low-0.2"] == sets["high-0.2"] != sets["low-0.6"] == sets["high-0.6"]
  assert len(measured.values("high-0.6", "mlm_loss")) == 1
  assert "mlm_loss" not in measured.references  # the unigram models of two texts


@pytest.mark.slow
def test_the_page_draws_the_dial_beside_the_best_in_theory(finished, tmp_path):
  report(finished.out, tmp_path / "page", finished.table)
  page = (tmp_path / "page" / "report.md").read_text()
  assert "A controlled language, not real text" in page.splitlines()[2]
  best = [open_controlled(f"controlled:markov/{d}").language.best("mlm_loss") for d in (0.2, 0.6)]
  assert "| 0.2 | " in page and f"{best[0]:.4f}" in page and f"{best[1]:.4f}" in page
  assert (tmp_path / "page" / "dial.png").stat().st_size > 5_000
  assert "is best" not in page  # scores of different texts


def test_a_text_for_all_arms_makes_them_equal_and_is_refused():
  with pytest.raises(UserError, match="are the same experiment"):
    planned("experiments/mechanisms.py:two_sides", settings=["data.source=controlled:echoes/0.5"])


def test_the_arms_of_a_dial_have_names_that_claims_can_use():
  arms = dialled((mechanisms.bert, mechanisms.gpt), "steps={}", (10, 2000))
  assert [arm.name for arm in arms] == ["bert-10", "gpt-10", "bert-2000", "gpt-2000"]
  assert [arm.row for arm in arms] == ["bert", "gpt"] * 2
  assert arms[3].settings == ("steps=2000",)
  with pytest.raises(UserError, match="no arm 'bert-20'"):
    Table(title="t", source="s", arms=arms, claims=(Better("gap_loss", "bert-20", than="gpt-10"),))
