"""ALBERT's rows change what they name, at every budget, and its tables say what the paper says."""

from dataclasses import replace

import pytest

from experiments import albert
from plm_jax.ablate.table import NotWorse
from plm_jax.data.tokenizers import Unigram
from plm_jax.experiment import BUDGETS
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.sop import SOP
from plm_jax.optim.adamw import LAMB, AdamW
from tests import toy_run
from tests.experiments.rows import beyond, changed, parameters, rows_of

ROWS = rows_of("albert")
SIZE = {"model.layers", "model.width", "model.heads"}
PAIRS = {"objectives", "data.segments.next"}
DROPOUT = {"model.dropout", "model.attention_dropout"}
TABLES = (3, 4, 5, 8, 11, 12)

# Row -> the fields in which it may differ from base(budget), and no others.
MAY = {
  "base": set(),
  "large": SIZE,
  "xlarge": SIZE,
  "xxlarge": SIZE,
  "base_faithful": {
    *("optim.bias_correction", "optim.decay_under_warmup", "objectives.mlm.masking"),
    *("objectives.mlm.copies", "objectives.mlm.max_predictions"),
  },
  **{n: {"model.embedding"} for n in ROWS if n.startswith("table_3_all_shared")},
  **{n: {"model.embedding", "model.sharing"} for n in ROWS if n.startswith("table_3_not_shared")},
  **{n: {"model.embedding", "model.sharing"} for n in ROWS if n.startswith("table_4_e768")},
  **{n: {"model.sharing"} for n in ROWS if n.startswith("table_4_e128")},
  **{n: PAIRS for n in ROWS if n.startswith("table_5_")},
  "table_8_dropout": SIZE | {"steps"},
  "table_8_no_dropout": SIZE | {"steps"} | DROPOUT,
  **{n: SIZE for n in ROWS if n.startswith(("table_11_", "table_12_"))},
}
THE_BASE = {"base", "table_3_all_shared_e128", "table_4_e128_all_shared", "table_5_sop"}


def row(name, budget="paper"):
  return getattr(albert, name)(budget)


def of(table):
  return [name for name in ROWS if name.startswith(f"table_{table}_")]


def test_the_table_of_rows_is_complete():
  assert set(ROWS) == set(MAY)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_base_only_in_what_it_names(name, budget):
  found = changed(row(name, budget), row("base", budget))
  assert not beyond(found, MAY[name])
  assert bool(found) == (name not in THE_BASE)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_rows_of_a_table_differ_from_each_other_in_its_subject_alone(budget):
  subjects = {
    3: {"model.embedding", "model.sharing"},
    4: {"model.embedding", "model.sharing"},
    5: PAIRS,
    8: DROPOUT,
    11: {"model.layers"},
    12: {"model.width", "model.heads"},
  }
  for table, subject in subjects.items():
    first, *others = (row(name, budget) for name in of(table))
    for other in others:
      found = changed(other, first)
      assert found and not beyond(found, subject)


def test_the_recipe_is_the_published_one():
  base = row("base")
  assert base.optim == LAMB(peak=1.76e-3, warmup=3_125, decay=0.01)
  assert (base.global_batch, base.steps, base.data.length) == (4096, 125_000, 512)
  assert base.objectives == (MLM(unit="ngram", max_ngram=3), SOP())
  assert base.data.tokenizer == Unigram(vocab_size=30_000, lowercase=True)
  faithful = row("base_faithful")
  assert not faithful.optim.bias_correction and faithful.optim.decay_under_warmup
  assert (faithful.objectives[0].max_predictions, faithful.objectives[0].copies) == (20, 40)
  assert isinstance(row("base", "small").optim, AdamW)


@pytest.mark.parametrize(
  ("name", "published"),
  [("base", 11_813_810), ("large", 17_847_474), ("xlarge", 59_021_490), ("xxlarge", 223_158_450)],
)
def test_the_sizes_are_those_of_the_released_models(name, published):
  assert parameters(row(name), 30_000) == published


@pytest.mark.parametrize("budget", ["paper", "small"])
def test_depth_costs_nothing_and_width_embedding_and_less_sharing_cost_in_their_order(budget):
  counts = {n: parameters(row(n, budget), 4096) for n in ROWS if n.startswith("table_")}
  assert len({counts[name] for name in of(11)}) == 1
  ascending = [of(12), of(3)[:4], of(3)[4:]]
  for e in ("e768", "e128"):
    parts = ("all_shared", "shared_ffn", "shared_attention", "not_shared")
    ascending.append([f"table_4_{e}_{part}" for part in parts])
  for names in ascending:
    values = [counts[name] for name in names]
    assert values == sorted(set(values)), names


def test_depths_and_widths_keep_their_order_at_small():
  layers = [row(name, "small").model.layers for name in of(11)]
  widths = [row(name, "small").model.width for name in of(12)]
  for values in (layers, widths):
    assert values == sorted(set(values))


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_every_row_of_its_name_with_all_columns(table):
  built = getattr(albert, f"table_{table}")()
  assert [arm.experiment.__name__ for arm in built.arms] == of(table)
  assert all(set(arm.published) == set(built.columns) for arm in built.arms)


def test_only_tables_whose_differences_are_beyond_noise_claim_that_an_arm_is_better():
  claims = {table: getattr(albert, f"table_{table}")().claims for table in TABLES}
  bold = {t for t, made in claims.items() if any(not isinstance(c, NotWorse) for c in made)}
  assert bold == {4, 5, 11}


def tiny(name):
  """A row with a toy model on the toy language."""
  experiment = row(name, "smoke")
  toy = toy_run.TOY
  sizes = {"layers": 2, "width": 16, "heads": 2, "positions": 32, "embedding": 8}
  return replace(
    experiment,
    model=replace(experiment.model, **sizes),
    data=replace(toy.data, segments=experiment.data.segments),
    optim=replace(experiment.optim, warmup=1),
    global_batch=8,
    steps=4,
    mesh=toy.mesh,
    compute=replace(toy.compute, layers="scan"),
    schedule=toy.schedule,
  )


@pytest.mark.parametrize("name", ["table_4_e128_shared_ffn", "table_5_nsp", "table_5_none"])
@pytest.mark.slow
def test_rows_train_through_the_one_loop(name, tmp_path):
  experiment = tiny(name)
  _, records = toy_run.run(tmp_path / "run", experiment)
  last = records[-1]
  assert last["step"] == 4 and {f"{o.name}/loss" for o in experiment.objectives} <= set(last)


@pytest.mark.slow
def test_lamb_trains_through_the_one_loop(tmp_path):
  experiment = replace(tiny("base"), optim=LAMB(peak=1e-2, warmup=1).paper_faithful())
  _, records = toy_run.run(tmp_path / "run", experiment)
  first, last = (r["mlm/loss"] for r in records if r["split"] == "train" and "mlm/loss" in r)
  assert last < first
