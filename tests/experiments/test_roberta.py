"""RoBERTa's rows change what they name, at every budget, and train through the one loop."""


import pytest

from experiments import roberta
from plm_jax import cli, overrides
from plm_jax.experiment import BUDGETS

ROWS = [
  reference.partition(":")[2]
  for reference, _ in cli.list_experiments("experiments")
  if reference.startswith("experiments/roberta.py:")
]
SIZE = {"model.layers", "model.width", "model.heads"}
RECIPE = {"optim.peak", "optim.warmup", "global_batch", "steps"}  # of the tables, at `paper`
PAIRS = {"data.segments", "objectives"}

# Row -> the fields in which it may differ from base(budget): at any budget, and at `paper` too.
MAY = {
  "base": (set(), set()),
  "large": (SIZE, {"optim.peak", "optim.warmup"}),
  "base_faithful": ({"objectives.mlm.rules", "optim.decays"}, set()),
  "table_1_static": (PAIRS, RECIPE),
  "table_1_dynamic": (PAIRS, RECIPE),
}


def row(name, budget="paper"):
  return getattr(roberta, name)(budget)


def changed(one, other, budget):
  return {path for path, _, _ in overrides.diff(row(one, budget), row(other, budget))}


def test_the_table_of_rows_is_complete():
  assert set(ROWS) == set(MAY)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", MAY)
def test_a_row_differs_from_base_only_in_what_it_names(name, budget):
  always, at_paper = MAY[name]
  allowed = always | at_paper if budget == "paper" else always
  found = changed(name, "base", budget)
  assert not {p for p in found if not any(p == a or p.startswith(a + ".") for a in allowed)}
  assert bool(found) == (name != "base")


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_rows_of_table_1_differ_in_the_masking_alone(budget):
  found = changed("table_1_static", "table_1_dynamic", budget)
  assert found <= {"objectives.mlm.masking", "objectives.mlm.copies"}
  assert "objectives.mlm.masking" in found


def test_the_recipe_is_the_published_one():
  base, large, table = row("base"), row("large"), row("table_1_dynamic")
  for e in (base, large, table):
    assert (e.optim.b2, e.optim.eps, e.optim.decay, e.optim.clip) == (0.98, 1e-6, 0.01, 0.0)
    assert (e.data.length, e.data.tokenizer.vocab_size, e.model.dropout) == (512, 50265, 0.1)
  published = (
    (8192, 500_000, 6e-4, 24_000),
    (8192, 500_000, 4e-4, 30_000),
    (256, 10**6, 1e-4, 10_000),
  )
  assert published == tuple(
    (e.global_batch, e.steps, e.optim.peak, e.optim.warmup) for e in (base, large, table)
  )
