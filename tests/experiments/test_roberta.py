"""RoBERTa's rows change what they name, at every budget, and train through the one loop."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import roberta
from plm_jax import cli, overrides
from plm_jax.data.pipeline import Batches, iterate
from plm_jax.data.preparation import prepare
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import BUDGETS, Intervals
from plm_jax.models.compute import Compute
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.loop import Data
from tests.toy_run import program, run, text

ROWS = [
  reference.partition(":")[2]
  for reference, _ in cli.list_experiments("experiments")
  if reference.startswith("experiments/roberta.py:")
]
FORMATS = [name for name in ROWS if name.startswith("table_2_")]
LONGER = [name for name in ROWS if name.startswith("table_4_")]
BATCHES = [name for name in ROWS if name.startswith("table_3_")]
SIZE = {"model.layers", "model.width", "model.heads"}
RECIPE = {"optim.peak", "optim.warmup", "global_batch", "steps"}
PARTS = "compute.micro_batches"  # changes no number
PAIRS = {"data.segments", "objectives"}

# Row -> the fields in which it may differ from base(budget): at any budget, and at `paper` too.
MAY = {
  "base": (set(), set()),
  "large": (SIZE, {"optim.peak", "optim.warmup"}),
  "base_faithful": ({"objectives.mlm.rules", "optim.decays"}, set()),
  "table_1_static": (PAIRS, RECIPE),
  "table_1_dynamic": (PAIRS, RECIPE),
  "table_2_segment_pair_nsp": (PAIRS, RECIPE),
  "table_2_sentence_pair_nsp": (PAIRS | {"global_batch"}, RECIPE | {"data.length"}),
  "table_2_full_sentences": (set(), RECIPE),
  "table_2_doc_sentences": ({"data.segments"}, RECIPE),
  **{name: (RECIPE | {PARTS}, set()) for name in BATCHES},
  **{name: (SIZE | {"steps", "data.source"}, {"optim.peak", "optim.warmup"}) for name in LONGER},
}
SAME_AS_BASE = {"base", "table_2_full_sentences"}  # at `small` and `smoke`


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
  assert bool(found) == (name != "base" if budget == "paper" else name not in SAME_AS_BASE)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_rows_of_table_1_differ_in_the_masking_alone(budget):
  found = changed("table_1_static", "table_1_dynamic", budget)
  assert found <= {"objectives.mlm.masking", "objectives.mlm.copies"}
  assert "objectives.mlm.masking" in found


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_rows_of_table_2_differ_in_format_and_rows_and_those_of_table_3_in_the_batch(budget):
  for name in FORMATS:
    found = changed(name, "table_2_full_sentences", budget)
    top = {p for p in found if not p.startswith("data.segments")}
    assert top <= {"objectives", "global_batch", "data.length"}
  for name in BATCHES:
    assert changed(name, "table_3_256", budget) <= RECIPE | {PARTS}


def test_the_recipe_is_the_published_one():
  for name in ROWS:
    e = row(name)
    assert (e.optim.b2, e.optim.eps, e.optim.decay, e.optim.clip) == (0.98, 1e-6, 0.01, 0.0)
    assert (e.data.tokenizer.vocab_size, e.model.dropout) == (50265, 0.1)
    assert e.data.length == (128 if "sentence_pair" in name else 512)
  assert [
    (e.global_batch, e.steps, e.optim.peak, e.optim.warmup)
    for e in map(row, ("base", "large", "table_1_dynamic", *BATCHES))
  ] == [
    (8192, 500_000, 6e-4, 24_000),
    (8192, 500_000, 4e-4, 30_000),
    (256, 1_000_000, 1e-4, 10_000),
    (256, 1_000_000, 1e-4, 10_000),
    (2048, 125_000, 7e-4, 10_000),
    (8192, 31_250, 1e-3, 2_500),
  ]


@pytest.mark.parametrize("budget", ["small", "paper"])
def test_the_rows_of_table_3_read_the_same_number_of_sequences(budget):
  read = [e.global_batch * e.steps for e in (row(name, budget) for name in BATCHES)]
  assert max(read) <= 1.01 * min(read)


def test_static_masks_are_seen_about_four_times_at_every_budget():
  # 28,451 rows are what the installed text makes; 40 epochs are the paper's.
  small, paper = row("table_1_static", "small"), row("table_1_static")
  assert 40 / paper.objectives[0].copies == 4
  epochs = small.global_batch * small.steps / 28_451
  assert 3 <= epochs / small.objectives[0].copies <= 4
  assert small.data.passes == paper.data.passes == 1  # else the same mask would meet another text


@pytest.mark.parametrize("name", ["table_1", "table_2", "table_3", "table_4"])
def test_a_table_has_every_row_of_its_name_with_all_columns(name):
  table = getattr(roberta, name)()
  arms = {arm.experiment.__name__ for arm in table.arms}
  assert arms == {row for row in ROWS if row.startswith(name + "_")}
  for arm in table.arms:
    assert set(arm.published) == set(table.columns)


# Through the loop.


def tiny(name, **changes):
  """A row with a toy model on the toy language, a byte-level vocabulary and no dropout."""
  e = row(name, "smoke")
  sizes = {"layers": 2, "width": 16, "heads": 2, "positions": 32}
  return dataclasses.replace(
    e,
    **{
      "model": dataclasses.replace(e.model, dropout=0.0, attention_dropout=0.0, **sizes),
      "data": dataclasses.replace(
        e.data,
        source=str(text()),
        tokenizer=BytePairs(vocab_size=300),
        length=32,
        held_out=0.1,
      ),
      "steps": 4,
      "schedule": Intervals(log=1, evaluation_rows=32),
      "mesh": MeshShape(data=1),
      "compute": Compute(dtype="float32"),
    }
    | changes,
  )


@functools.cache
def prepared():
  return prepare(tiny("base").data, text().parent / "cache", progress=False)


def batches_of(experiment):
  ready, e = prepared(), experiment
  return tuple(
    Batches(store, e.data, e.objectives, ready.tokenizer.vocab, e.seed, e.global_batch)
    for store in (ready.train, ready.valid)
  )


def trained(tmp_path, experiment):
  train, valid = batches_of(experiment)
  data = Data(lambda start: iterate(train, start, experiment.steps), valid.evaluation(32))
  return run(tmp_path, experiment, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base_faithful", *FORMATS])
def test_every_format_trains_through_the_one_loop(name, tmp_path):
  experiment = tiny(name)
  _, records = trained(tmp_path, experiment)
  assert np.isfinite([r["mlm/loss"] for r in records]).all()
  assert any("nsp/loss" in r for r in records) == ("nsp" in name)
  vocab, batch = prepared().tokenizer.vocab, batches_of(experiment)[0](0)
  assert (vocab.cls, vocab.sep) == (vocab.bos, vocab.eos)
  is_special = np.isin(batch["mlm_targets"][batch["mlm_weights"] > 0], [vocab.bos, vocab.eos])
  assert is_special.any() == (name == "base_faithful")


def steps_of(experiment, steps=2):
  compiled, batches = program(experiment), batches_of(experiment)[0]
  state = compiled.create()
  for step in range(steps):
    state = compiled.step(state, to_global(batches(step), compiled.mesh))
  return jax.device_get((state.params, state.metrics))


@pytest.mark.parametrize(
  "changes",
  [
    {"compute": Compute(dtype="float32", micro_batches=8)},
    {"compute": Compute(dtype="float32", micro_batches=8, layers="scan", remat=True)},
    {
      "compute": Compute(dtype="float32", micro_batches=8),
      "mesh": MeshShape(data=2, fsdp=2, tensor=2),
    },
  ],
  ids=["eight parts", "scanned", "eight devices"],
)
@pytest.mark.slow
def test_a_large_batch_in_eight_parts_makes_the_same_updates(changes):
  # Probabilistic rounding gives the rows different numbers of predictions, so that a mean over
  # parts of means over rows would be another number.
  whole = tiny("base_faithful", global_batch=64, compute=Compute(dtype="float32", micro_batches=1))
  reference, parts = steps_of(whole), steps_of(dataclasses.replace(whole, **changes))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), reference, parts
  )


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  whole = tiny("base_faithful", global_batch=64)
  low = dataclasses.replace(whole, compute=Compute(dtype="bfloat16", micro_batches=8))
  one, other = (steps_of(e)[1]["mlm/loss"] for e in (whole, low))
  assert 0 < abs(one[0] - other[0]) / one[1] < 0.02
