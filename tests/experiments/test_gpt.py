"""GPT's, GPT-3's and LLaMA's rows change what they name, at every budget."""

import dataclasses

import jax
import pytest

from experiments import gpt, gpt3, llama
from plm_jax import cli, overrides
from plm_jax.ablate.table import Table
from plm_jax.experiment import BUDGETS
from plm_jax.train.example_batch import example_batch

FILES = {"gpt": gpt, "gpt3": gpt3, "llama": llama}
ROWS = [
  reference.removeprefix("experiments/").split(".py:")
  for reference, _ in cli.list_experiments("experiments")
  if reference.startswith(tuple(f"experiments/{file}.py:" for file in FILES))
]
SIZE = {"model.layers", "model.width", "model.heads"}
RECIPE = {"steps", "global_batch"}
# Row -> the fields in which it may differ from base, besides a rate at `paper`.
LLAMA = dict.fromkeys(("b13", "b30", "b65"), SIZE | {"optim.peak", "steps"})
GPT3 = dict.fromkeys(
  ("medium", "large", "xl", "b2_7", "b6_7", "b13", "b175"),
  SIZE | RECIPE | {"model.head_width", "optim.peak", "optim.warmup"},
)
MAY = {
  "tiny": SIZE | RECIPE | {"model", "optim", "schedule", "data.length"},
  "table_5_no_pretraining": {"optim", "steps"},
  **{f"gpt2_{s}": {"model", "data.segments"} for s in ("small", "medium", "large", "xl")},
}


def row(file, name, budget="paper"):
  return getattr(FILES[file], name)(budget)


def test_every_row_is_one_of_these():
  assert {name for _, name in ROWS} == {"base", *MAY, *LLAMA, *GPT3}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("file", "name"), ROWS)
def test_a_row_differs_from_base_only_in_what_it_names(file, name, budget):
  allowed = {"llama": LLAMA, "gpt3": GPT3}.get(file, MAY).get(name, set())
  if budget == "paper" and name.startswith("gpt2"):
    allowed = allowed | RECIPE | {"optim", "data.tokenizer", "data.length"}
  found = {p for p, _, _ in overrides.diff(row(file, name, budget), row(file, "base", budget))}
  assert not {p for p in found if not any(p == a or p.startswith(a + ".") for a in allowed)}
  assert bool(found) == (name != "base")


def test_the_sizes_are_the_published_ones():
  def count(experiment, vocab_size):
    experiment = dataclasses.replace(
      experiment, model=dataclasses.replace(experiment.model, vocab_size=vocab_size)
    )
    shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  assert count(gpt.base(), 40_478) == 116_534_784
  assert count(gpt.gpt2_xl(), 50_257) == 1_557_611_200
  d = 12_288  # of 175B: a token and a position table, 96 layers, a norm
  assert count(gpt3.b175(), 50_257) == (50_257 + 2048) * d + 96 * (12 * d**2 + 13 * d) + 2 * d
  assert count(llama.base(), 32_000) == 6_738_415_616


@pytest.mark.parametrize("table", [gpt.table_3, gpt.table_5])
def test_a_table_has_its_rows_and_can_be_measured(table):
  made = table()
  assert isinstance(made, Table) and made.claims
  assert all(len(arm.published) == len(made.columns) for arm in made.arms)


@pytest.mark.parametrize(("file", "name"), ROWS)
def test_a_step_can_be_traced(file, name):
  experiment = row(file, name, "smoke").resolve(4096)
  rows = example_batch(experiment)
  assert rows["clm_weights"].shape == (16, 64)
  params = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
  hidden = jax.eval_shape(lambda p, b: p(b, experiment.compute), params, rows)
  assert hidden.shape == (16, 64, experiment.model.width)
