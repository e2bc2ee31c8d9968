"""The rows of Vaswani's, T5's and BART's tables change what they name, at every budget."""

import dataclasses
import inspect
from types import SimpleNamespace

import jax
import pytest

from experiments import bart, t5, vaswani
from plm_jax.ablate.planned import experiments_of
from plm_jax.ablate.table import Table
from plm_jax.errors import UserError
from plm_jax.experiment import BUDGETS
from plm_jax.optim.adafactor import Adafactor
from plm_jax.optim.adamw import AdamW
from plm_jax.peft.lora import Lora
from plm_jax.train.example_batch import example_batch
from tests import toy_run
from tests.experiments.rows import beyond, changed, parameters, rows_of

FILES = {"vaswani": vaswani, "t5": t5, "bart": bart}
ROWS = [(file, name) for file in FILES for name in rows_of(file)]
SIZE = {"model.layers", "model.width", "model.heads", "model.hidden"}
FIRST_RUN = {"model", "optim", "global_batch", "steps", "schedule", "data.length"}
SPANS = {"data.length", "objectives"}

# Row -> the fields in which it may differ from base(budget), and no others.
MAY = {
  ("vaswani", "big"): SIZE | {"model.dropout", "steps", "optim.peak"},
  **{("vaswani", f"table_3_heads_{n}"): {"model.heads"} for n in (1, 16, 32)},
  ("vaswani", "table_3_keys_16"): {"model.head_width"},
  ("vaswani", "table_3_layers_2"): {"model.layers"},
  ("vaswani", "table_3_d1024"): {"model.width", "model.hidden", "optim.peak"},
  ("vaswani", "table_3_ff_4096"): {"model.hidden"},
  ("vaswani", "table_3_no_dropout"): {"model.dropout"},
  ("vaswani", "table_3_no_smoothing"): {"objectives.seq2seq.label_smoothing"},
  ("vaswani", "table_3_smoothing_20"): {"objectives.seq2seq.label_smoothing"},
  ("vaswani", "table_3_learned_positions"): {"model.position"},
  ("t5", "tiny"): FIRST_RUN | SPANS,
  ("vaswani", "translation"): {"data.source", "data.segments", "objectives"},
  ("t5", "text_to_text"): {"optim", "steps", *("data.source", "data.segments", "data.length")}
  | {"objectives"},
  ("t5", "v11_base"): {"model"} | SPANS,
  **{("t5", n): {"model.arrangement", "objectives"} for n in rows_of("t5") if "table_2" in n},
  **{("t5", n): {"model.layers", "objectives"} for n in rows_of("t5") if "six_layers" in n},
  **{("t5", n): {"objectives"} for n in rows_of("t5") if n.startswith(("table_4", "table_5"))},
  **{("t5", n): {"objectives.seq2seq.rate"} for n in rows_of("t5") if n.startswith("table_6")},
  **{("t5", n): SPANS for n in rows_of("t5") if n.startswith("table_7")},
  ("bart", "large"): SIZE | {"global_batch", "steps"},
  ("bart", "mbart_large"): SIZE
  | {"model", "global_batch", "steps", "objectives", "data.tokenizer"},
  ("bart", "tiny"): FIRST_RUN,
  **{("bart", n): {"objectives"} for n in rows_of("bart") if n.startswith("table_1")},
}
THE_BASE = {
  *(("t5", f"table_{n}") for n in ("2_enc_dec_denoising", "5_replace_spans", "6_15", "7_iid")),
  ("bart", "table_1_infilling_and_shuffling"),
  *((file, "base") for file in FILES),
}
TABLES = [
  (f, n) for f, m in FILES.items() for n in vars(m) if n.startswith("table_") and n[-1].isdigit()
]
TABLES = [(f, n) for f, n in TABLES if (f, n) not in ROWS]


def row(file, name, budget="paper"):
  return getattr(FILES[file], name)(budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("file", "name"), ROWS)
def test_a_row_differs_from_base_only_in_what_it_names(file, name, budget):
  found = changed(row(file, name, budget), row(file, "base", budget))
  assert not beyond(found, MAY.get((file, name), set()))
  assert bool(found) == ((file, name) not in THE_BASE)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(("file", "name"), ROWS)
def test_every_row_makes_its_batches_and_has_a_place_for_them(file, name, budget):
  experiment = row(file, name, budget)
  experiment = dataclasses.replace(experiment, global_batch=2)
  batch = example_batch(experiment)
  longest = max(batch["input_ids"].shape[1], batch["decoder_input_ids"].shape[1])
  assert longest <= experiment.model.positions
  if file == "t5" and budget == "paper" and name != "text_to_text":
    assert batch["input_ids"].shape[1] in (511, 512)


@pytest.mark.parametrize(("file", "name"), TABLES)
def test_a_table_has_every_row_of_its_name(file, name):
  table = getattr(FILES[file], name)()
  assert isinstance(table, Table)
  assert all(set(table.columns) - {"params"} <= set(arm.published) for arm in table.arms)
  rows = {arm.experiment.__name__ for arm in table.arms}
  assert {n for f, n in ROWS if f == file and n.startswith(f"{name}_")} <= rows


def test_the_recipes_and_sizes_are_the_published_ones():
  base = row("t5", "base")
  assert base.optim == Adafactor() and (base.global_batch, base.steps) == (128, 2**19)
  assert base.objectives[0].rate == 0.15 and base.objectives[0].mean_span_length is None
  assert parameters(base, 32_128) == 222_903_552
  assert parameters(row("bart", "base"), 50_265) == 139_420_416
  noam = row("vaswani", "base").optim
  assert (noam.b2, noam.eps, noam.decay) == (0.98, 1e-9, 0.0)
  assert noam.peak == pytest.approx(6.99e-4, abs=1e-6)


def test_shared_layers_and_single_stacks_have_the_parameters_of_one_side():
  """P of Table 2 is that of 12 layers; cross-attention comes on top of it where there is any."""
  counts = {n: parameters(row("t5", f"table_2_{n}_denoising"), 32_128) for n in ("lm", "prefix_lm")}
  shared = parameters(row("t5", "table_2_shared_denoising"), 32_128)
  whole = parameters(row("t5", "base"), 32_128)
  assert counts["lm"] == counts["prefix_lm"] < shared < 0.65 * whole


def toy(file, name):
  """A row with a toy model on the toy language."""
  experiment, toy = row(file, name, "smoke"), toy_run.TOY
  model = dataclasses.replace(
    experiment.model, layers=1, width=16, heads=2, hidden=32, positions=32, head_width=8
  )
  tokenizer = dataclasses.replace(toy.data.tokenizer, sentinels=16)
  return dataclasses.replace(
    experiment,
    model=model,
    data=dataclasses.replace(toy.data, segments=experiment.data.segments, tokenizer=tokenizer),
    optim=dataclasses.replace(experiment.optim, warmup=1),
    global_batch=8,
    steps=3,
    mesh=toy.mesh,
    compute=toy.compute,
    schedule=toy.schedule,
  )


@pytest.mark.parametrize(
  ("file", "name"),
  [
    ("vaswani", "table_3_learned_positions"),
    ("t5", "table_2_prefix_lm_denoising"),
    ("bart", "table_1_rotation"),
  ],
)
@pytest.mark.slow
def test_rows_train_through_the_one_loop(file, name, tmp_path):
  experiment = toy(file, name)
  assert "budget" in inspect.signature(getattr(FILES[file], name)).parameters
  _, records = toy_run.run(tmp_path / "run", experiment)
  assert records[-1]["step"] == 3 and records[-1]["seq2seq/loss"] > 0


def test_a_t5_is_fine_tuned_by_the_recipe_of_every_model():
  from experiments.finetune import recipe
  from plm_jax.tasks.classify import Classify

  pretraining = row("t5", "base", "smoke")
  model = dataclasses.replace(pretraining.model, vocab_size=64, layers=1)
  task = Classify(labels=("a", "b", "c"), length=8)
  source = SimpleNamespace(config=model, document={}, experiment=pretraining)
  experiment = recipe(source, task, examples=64)
  shapes = jax.eval_shape(experiment.init_parameters, jax.random.key(0))
  assert shapes.classes.kernel.shape == (256, 3)
  assert experiment.optim == Adafactor(peak=1e-2, warmup=1, schedule="constant")
  source.document = {"untrained": True}
  random = recipe(source, task, examples=64)
  assert isinstance(random.optim, Adafactor) and random.optim.peak == pretraining.optim.peak
  source.document = {}
  assert isinstance(recipe(source, task, examples=64, peft=Lora()).optim, AdamW)


def test_spans_that_short_rows_round_to_the_same_are_refused():
  """In 35 tokens, spans of 2 and of 3 are five tokens in two spans."""
  table, settings = t5.table_7(), ["data.length=35"]
  with pytest.raises(UserError, match="the arms 2 and 3 are the same experiment"):
    experiments_of(table, "laptop", ["2", "3"], settings)
  assert len(experiments_of(table, "laptop", ["2", "3", "5", "10"], [])) == 5
