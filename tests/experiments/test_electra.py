"""ELECTRA's rows change what they name, train through the one loop, and give an encoder away."""

import dataclasses
import functools
import tempfile

import jax
import numpy as np
import pytest

from experiments import electra
from plm_jax import cli, overrides
from plm_jax.data.draws import Draws
from plm_jax.data.tokenizers import WordPiece
from plm_jax.decode.fill_mask import Blank, fill
from plm_jax.experiment import BUDGETS
from plm_jax.models.electra import BASE, LARGE, SMALL, Electra
from plm_jax.objectives.replaced_mlm import ReplacedMLM
from plm_jax.objectives.rtd import RTD, GeneratorMLM
from plm_jax.sharding import MeshShape
from plm_jax.train.checkpoint import restore_parameters
from plm_jax.train.loop import Data
from plm_jax.train.report import Results, results
from tests import toy_run
from tests.data.toy_store import toy_vocab
from tests.toy_run import ONE_STRETCH, TOY

ROWS = [
  reference.partition(":")[2]
  for reference, _ in cli.list_experiments("experiments")
  if reference.startswith("experiments/electra.py:")
]
SIZE = {f"model.{name}" for name in ("layers", "width", "heads", "embedding", "generator_width")}
SCALE = {"global_batch", "steps", "optim.peak", "data.length"}

# Row -> the fields in which it may differ from base(budget), and no others.
MAY = {
  "base": set(),
  "small": SIZE | SCALE,
  "large": SIZE | SCALE | {"objectives.mlm.rate"},
  "base_faithful": {"optim.bias_correction", "optim.decay_under_warmup"},
  "electra_15": {"objectives.rtd.positions"},
  "replace_mlm": {"objectives"},
  "all_tokens_mlm": {"objectives"},
  "bert": {"objectives", "model"},
  **{f"generator_{share}": {"model.generator_width"} for share in ("quarter", "half", "equal")},
}


def row(name, budget="paper"):
  return getattr(electra, name)(budget)


def changed(name, budget):
  return {path for path, _, _ in overrides.diff(row(name, budget), row("base", budget))}


def test_the_table_of_rows_is_complete():
  assert set(ROWS) == set(MAY)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_base_only_in_what_it_names(name, budget):
  wrong = [
    path
    for path in changed(name, budget)
    if not any(path == may or path.startswith(may + ".") for may in MAY[name])
  ]
  assert not wrong


@pytest.mark.parametrize("name", [name for name in ROWS if MAY[name]])
def test_a_row_that_names_a_change_makes_it(name):
  assert changed(name, "paper")


def test_sizes_and_recipes_are_those_published():
  for name, model in (("base", BASE), ("small", SMALL), ("large", LARGE)):
    assert row(name).model == model
  base, small, large = row("base"), row("small"), row("large")
  assert (base.global_batch, base.steps, base.optim.peak) == (256, 766_000, 2e-4)
  assert (small.global_batch, small.steps, small.optim.peak) == (128, 1_000_000, 5e-4)
  assert (large.global_batch, large.steps, large.objectives[0].rate) == (2048, 400_000, 0.25)
  assert [o.weight for o in base.objectives] == [1.0, 50.0]


@pytest.mark.parametrize("budget", BUDGETS)
def test_bert_s_row_is_the_discriminator_without_a_generator(budget):
  assert row("bert", budget).model == row("base", budget).model.encoder


@pytest.mark.parametrize("table", [electra.table_5, electra.generator_sizes])
def test_arms_of_a_table_have_equal_steps_and_data(table):
  for budget in BUDGETS:
    runs = [arm.experiment(budget) for arm in table().arms]
    assert len({(run.steps, run.global_batch, run.data) for run in runs}) == 1


# --- learning -------------------------------------------------------------------------------------

WORDS, COLUMNS = 12, 16
# A generator of one dimension has no state that its norm leaves: it is a unigram model, the weakest
# of the paper's figure on generator sizes, and leaves the discriminator something to find.
LEARNER = dataclasses.replace(
  TOY,
  model=Electra(
    vocab_size=5 + WORDS, layers=1, width=32, heads=2, positions=COLUMNS, generator_width=1 / 32,
    initializer_range=0.1, dropout=0.0, attention_dropout=0.0,
  ),
  objectives=(GeneratorMLM(), RTD()),
  data=dataclasses.replace(TOY.data, length=COLUMNS, tokenizer=WordPiece(vocab_size=5 + WORDS)),
  optim=dataclasses.replace(TOY.optim, peak=1e-2, warmup=10, b2=0.98),
  global_batch=32,
  steps=160,
  schedule=dataclasses.replace(TOY.schedule, log=40, evaluate=0, save=50),
)  # fmt: skip


def about_one_word(step, experiment=LEARNER):
  """Rows about one word each, which most tokens are; the others are any word."""
  rows = experiment.global_batch
  rng = np.random.default_rng(step)
  topic = rng.integers(5, 5 + WORDS, (rows, 1))
  anything = rng.integers(5, 5 + WORDS, (rows, COLUMNS))
  ids = np.where(rng.random((rows, COLUMNS)) < 0.95, topic, anything).astype(np.int32)
  ids[:, 0], ids[:, -1] = 2, 3
  batch = {
    "input_ids": ids,
    "segment_ids": np.zeros_like(ids),
    "length": np.full(rows, COLUMNS, np.int32),
    "pair_label": np.zeros(rows, np.int32),
    "row_weight": np.ones(rows, np.float32),
  }
  draws = Draws(0, 0, np.arange(rows) + step * rows)
  for objective in experiment.objectives:
    batch = objective.corrupt(batch, draws, toy_vocab(5 + WORDS))
  return batch


class Stream:
  """Batches from a step on; raises `Cut` at step `stop`."""

  waited = 0.0

  def __init__(self, step, stop=None, change=lambda batch: batch):
    self._step, self._stop, self._change = step, stop, change

  def __next__(self):
    if self._step == self._stop:
      raise Cut
    self._step += 1
    return self._change(about_one_word(self._step - 1))

  def close(self):
    pass


class Cut(Exception):
  pass


HELD_OUT = [about_one_word(10_000 + i) for i in range(4)]


def train(experiment=LEARNER, folder=None, **stream):
  folder = folder or tempfile.mkdtemp(prefix="electra_")
  data = Data(lambda start: Stream(start, **stream), HELD_OUT)
  return folder, *toy_run.run(folder, experiment, data)


@functools.cache
def learned():
  return train()


# [CLS] and [SEP] are never replaced. Who knows that and nothing else has this AUC.
KNOWS_SPECIALS = 0.5 + 0.5 * 2 / (COLUMNS - 2)


@pytest.mark.slow
def test_the_discriminator_finds_what_does_not_fit_its_row():
  _, _, records = learned()
  first, last = records[0], records[-1]
  assert abs(first["rtd/auc"] - 0.5) < 0.15
  constant = RTD().baseline(None, [], last).scores
  assert last["rtd/auc"] > KNOWS_SPECIALS + 0.2
  assert last["rtd/loss"] < 0.7 * constant["loss"]
  assert (
    last["mlm/loss"] > np.log(WORDS) - 0.1
  )  # the generator is the unigram model it is said to be


@pytest.mark.slow
def test_a_discriminator_whose_rows_say_nothing_knows_no_more_than_specials():
  """The negative: words in random order over all rows, so that nothing tells a replaced one."""

  def mixed(batch):
    rng = np.random.default_rng(batch["sample_seeds"].sum())
    inner = batch["input_ids"][:, 1:-1]
    return batch | {"input_ids": shuffled(batch, rng.permutation(inner.size))}

  def shuffled(batch, order):
    ids = batch["input_ids"].copy()
    ids[:, 1:-1] = ids[:, 1:-1].ravel()[order].reshape(ids[:, 1:-1].shape)
    return ids

  _, _, records = train(change=mixed)
  assert records[-1]["rtd/auc"] < KNOWS_SPECIALS + 0.1


@pytest.mark.slow
def test_the_report_says_the_reference_of_both_objectives():
  _, _, records = learned()
  said = results(Results(LEARNER, records, np.ones(5 + WORDS, int), HELD_OUT))
  assert "RTD auc" in said and "constant" in said and "MLM perplexity" in said


@pytest.mark.slow
def test_blanks_are_filled_by_the_generator():
  _, state, _ = learned()
  blank = Blank(np.array([2, 7, 4, 7, 3], np.int32), 2, 7)
  [best] = fill(state.params.masked_lm(), [blank], LEARNER.compute)
  assert len(best) == 5
  np.testing.assert_allclose([f.probability for f in best], 1 / WORDS, atol=0.06)


@pytest.mark.slow
def test_its_discriminator_is_taken_from_the_checkpoint_alone():
  folder, state, _ = learned()
  config = dataclasses.replace(state.params.config.encoder)
  fresh = jax.jit(lambda key: config.init(key, {"classes": 2}))(jax.random.key(5))
  back = restore_parameters(
    folder, fresh, allow_missing=("pooler/*", "classes/*"), within=LEARNER.model.encoder_path
  )
  assert back.unused == [] and all(
    name.split("/")[0] in ("pooler", "classes") for name in back.fresh
  )
  theirs = state.params.encoder()
  for part in ("embed", "blocks"):
    jax.tree.map(np.testing.assert_array_equal, getattr(back.params, part), getattr(theirs, part))


@pytest.mark.slow
@pytest.mark.parametrize(
  "objectives",
  [
    (GeneratorMLM(), RTD()),
    (GeneratorMLM(), ReplacedMLM(positions="all", copy=True)),
  ],
)
def test_rows_train_on_text_in_bfloat16_and_micro_batches(objectives, tmp_path):
  experiment = dataclasses.replace(
    TOY,
    model=Electra(layers=1, width=16, heads=2, embedding=8, positions=32, generator_width=0.25),
    objectives=objectives,
    data=dataclasses.replace(TOY.data, segments=ONE_STRETCH),
    mesh=MeshShape(data=2),
    compute=dataclasses.replace(TOY.compute, dtype="bfloat16", micro_batches=2),
    steps=3,
  )
  _, records = toy_run.run(tmp_path, experiment)
  assert np.isfinite(records[-1][f"{objectives[1].name}/loss"])


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
  _, whole, records = learned()
  with pytest.raises(Cut):
    train(folder=tmp_path, stop=70)
  _, again, after = train(folder=tmp_path)
  toy_run.assert_equal(whole.params, again.params)
  assert records == after
