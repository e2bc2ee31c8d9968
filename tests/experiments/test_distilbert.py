"""DistilBERT's rows change what they name; a student learns from the run that its row names."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import distilbert
from plm_jax import cli, overrides
from plm_jax.errors import UserError
from plm_jax.experiment import BUDGETS
from plm_jax.experiment_flags import with_teacher
from plm_jax.models.bert import Bert
from plm_jax.models.distilbert import DistilBert, Distilled
from plm_jax.models.electra import Electra
from plm_jax.models.parameters import head_patterns
from plm_jax.objectives.distillation import Cosine, Distillation
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.rtd import RTD, GeneratorMLM
from plm_jax.runs import RunInfo, initial_parameters, taught_parameters, teacher_of
from plm_jax.sharding import MeshShape
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example, Examples, Splits
from plm_jax.tasks.finetuning import FinetunePlan
from plm_jax.train.checkpoint import restore_parameters
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment, evaluate, fit
from plm_jax.train.workdir import Workdir
from tests import toy_run
from tests.toy_run import ONE_STRETCH, TOY

ROWS = [
  reference.partition(":")[2]
  for reference, _ in cli.list_experiments("experiments")
  if reference.startswith("experiments/distilbert.py:")
]
# Row -> the fields in which it may differ from base(budget), and no others.
MAY = {
  "base": set(),
  "base_faithful": {"objectives"},
  "no_distillation": {"objectives"},
  "no_cosine": {"objectives"},
  "no_mlm": {"objectives.mlm.weight"},
  "random_start": {"model.start"},
}


def row(name, budget="paper"):
  return getattr(distilbert, name)(budget)


def changed(name, budget):
  return {path for path, _, _ in overrides.diff(row(name, budget), row("base", budget))}


def test_the_table_of_rows_is_complete():
  assert set(ROWS) == set(MAY)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_base_in_what_it_names_and_in_nothing_else(name, budget):
  assert changed(name, budget) == MAY[name]


def test_the_recipe_is_that_of_the_repository_s_readme():
  base = row("base")
  assert {o.name: o.weight for o in base.objectives} == {"mlm": 2, "distillation": 5, "cosine": 1}
  assert base.objectives[1].temperature == 2
  assert base.model.encoder == DistilBert()
  assert (base.optim.peak, base.optim.clip, base.optim.decay) == (5e-4, 5.0, 0.0)
  assert base.optim.warmup == round(0.05 * base.steps)


@pytest.mark.parametrize(
  ("name", "left"),
  [
    ("no_distillation", {"mlm", "cosine"}),
    ("no_cosine", {"mlm", "distillation"}),
    ("base_faithful", {"mlm", "distillation", "cosine"}),
  ],
)
def test_a_row_without_a_loss_keeps_the_others_and_their_weights(name, left):
  weights = {o.name: o.weight for o in row("base").objectives}
  assert {o.name: o.weight for o in row(name).objectives} == {n: weights[n] for n in left}


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_student_fits_the_teacher_of_its_budget(budget):
  from experiments import bert

  model = row("base", budget).model
  teacher = bert.base(budget).model
  assert dataclasses.replace(model, teacher_model=teacher).layers == teacher.layers // 2
  assert model.teacher == "runs/bert_base" + ("" if budget == "small" else f"_{budget}")


def test_a_teacher_that_is_not_there_is_a_sentence_with_the_command_that_makes_it(tmp_path):
  experiment = row("base", "smoke")
  model = dataclasses.replace(experiment.model, teacher=str(tmp_path / "none"))
  with pytest.raises(UserError) as refused:
    teacher_of(dataclasses.replace(experiment, model=model), "smoke")
  for part in ("experiments/bert.py:base --budget=smoke --workdir=", "--set=model.teacher=DIR"):
    assert part in str(refused.value)


# --- a student on the toy language ----------------------------------------------------------------

CHEAP = {"width": 32, "heads": 2, "positions": 32, "dropout": 0.0, "attention_dropout": 0.0}
TAUGHT = dataclasses.replace(
  TOY,
  model=Bert(layers=2, **CHEAP, initializer_range=0.1),
  objectives=(MLM(),),
  data=dataclasses.replace(TOY.data, segments=ONE_STRETCH),
  optim=dataclasses.replace(TOY.optim, peak=5e-3, warmup=20, b2=0.98),
  global_batch=32,
  steps=100,
  schedule=dataclasses.replace(TOY.schedule, log=50, evaluate=0, save=100, evaluation_rows=64),
)
LEARNS = (MLM(weight=2.0), Distillation(), Cosine())


def trained(experiment, initial=None, folder=None):
  """(directory, program, state, records) of a run that run_pretrain.py could have made."""
  folder = Path(folder or tempfile.mkdtemp(prefix="distilbert_"))
  prepared = toy_run.prepared()
  experiment = experiment.resolve(prepared.tokenizer.vocab.size)
  mesh = experiment.mesh
  devices = jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor]
  program = compile_experiment(experiment, example_batch(experiment), devices)
  with Workdir(folder) as workdir:
    workdir.write_config(experiment, {"reference": "toy.py:toy", "initial": None, "text": {}})
    prepared.tokenizer.save(folder / "tokenizer")
    given = initial(program) if initial else None
    data = toy_run.data(experiment)
    state, records = fit(program, data, workdir, initial=given, quiet=True)
  return folder, program, state, records


@functools.cache
def teacher():
  return trained(TAUGHT)


def student(**model):
  path = teacher()[0]
  distilled = Distilled(layers=1, **CHEAP, initializer_range=0.1, teacher=str(path), **model)
  experiment = dataclasses.replace(TAUGHT, model=distilled, objectives=LEARNS, steps=60)
  return with_teacher(experiment, teacher_of(experiment), [])


@functools.cache
def distilled(start="teacher"):
  return trained(student(start=start), taught_parameters)


@pytest.mark.slow
def test_a_student_comes_near_its_teacher():
  _, _, _, records = distilled()
  _, _, _, taught = teacher()
  first, last = records[0], records[-1]
  # What the teacher knows beyond a model that looks at nothing, in nats.
  worth = taught[0]["mlm/loss"] - taught[-1]["mlm/loss"]
  assert worth > 1.5
  assert last["mlm/loss"] < taught[-1]["mlm/loss"] + 0.1 * worth
  assert last["distillation/loss"] < 0.5 * first["distillation/loss"]
  assert last["cosine/loss"] < first["cosine/loss"]
  assert last["distillation/agreement"] > 0.8


@pytest.mark.slow
def test_a_student_that_starts_from_its_teacher_is_ahead_of_one_at_random():
  ours, other = distilled()[3], distilled("random")[3]
  assert ours[0]["distillation/loss"] < other[0]["distillation/loss"]
  assert ours[-1]["distillation/loss"] < other[-1]["distillation/loss"]


@pytest.mark.slow
def test_the_teacher_is_the_run_s_and_stays_as_it_is():
  _, _, state, _ = distilled()
  theirs = teacher()[2].params
  for part in ("embed", "blocks", "mlm"):
    ours = getattr(state.params.teacher, part)
    jax.tree.map(np.testing.assert_array_equal, ours, getattr(theirs, part))
  start = state.params.student.embed.position.table[...]
  np.testing.assert_array_equal(start, theirs.embed.position.table[...])
  moved = state.params.student.embed.token.table[...]
  assert not np.array_equal(moved, theirs.embed.token.table[...])


@pytest.mark.slow
def test_no_moments_are_kept_for_the_teacher():
  _, program, _, _ = distilled()
  sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (
    program.abstract.params.teacher, program.abstract.params.student, program.abstract.opt_state
  )]  # fmt: skip
  assert sizes[2] < 2 * sizes[1] < 2 * (sizes[0] + sizes[1])


@pytest.mark.slow
def test_a_distillation_goes_on_where_it_was_even_if_its_teacher_is_gone(tmp_path):
  """The teacher is in the checkpoint."""
  _, whole, state, records = distilled()
  experiment = whole.experiment
  half = dataclasses.replace(experiment.schedule, save=30)
  experiment = dataclasses.replace(experiment, schedule=half)
  folder = tmp_path / "run"

  class Cut(Exception):
    pass

  class Stream:
    waited = 0.0

    def __init__(self, inner, left):
      self._inner, self._left = inner, left

    def __next__(self):
      self._left -= 1
      if self._left < 0:
        raise Cut
      return next(self._inner)

    def close(self):
      self._inner.close()

  data = toy_run.data(experiment)
  cut = data._replace(training=lambda start: Stream(data.training(start), 45))
  program = dataclasses.replace(whole, experiment=experiment)
  with Workdir(folder) as workdir, pytest.raises(Cut):
    fit(program, cut, workdir, initial=taught_parameters(whole), quiet=True)
  with Workdir(folder) as workdir:
    again, after = fit(program, data, workdir, initial=None, quiet=True)
  jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
  assert after == records


@pytest.mark.slow
def test_fine_tuning_starts_from_the_student_alone():
  folder, _, state, _ = distilled()
  source = RunInfo.read(folder)
  model = source.experiment.model
  assert type(model.encoder) is DistilBert
  config = model.encoder
  fresh = jax.jit(lambda key: config.init(key, {"classes": 3}))(jax.random.key(9))
  back = restore_parameters(
    source.path, fresh, head_patterns(), head_patterns(), within=model.encoder_path
  )
  jax.tree.map(np.testing.assert_array_equal, back.params.blocks, state.params.student.blocks)
  assert {name.split("/")[0] for name in back.unused} == {"mlm"}
  assert {name.split("/")[0] for name in back.fresh} == {"pooler", "classes"}


@pytest.mark.slow
def test_pretraining_goes_on_from_a_student_as_from_any_encoder():
  folder, _, state, _ = distilled()
  source = RunInfo.read(folder)
  plain = dataclasses.replace(
    TAUGHT, model=source.experiment.model.encoder, data=source.experiment.data
  )
  program = compile_experiment(plain, example_batch(plain), jax.devices()[:1])
  params = initial_parameters(program, source)
  jax.tree.map(np.testing.assert_array_equal, params.mlm, state.params.student.mlm)
  scores = evaluate(program, params, toy_run.data(plain).evaluation)
  assert scores["mlm/loss"] < 3


@pytest.mark.slow
def test_a_run_whose_encoder_predicts_no_tokens_cannot_teach(tmp_path):
  experiment = dataclasses.replace(
    TAUGHT,
    model=Electra(layers=1, **CHEAP, generator_width=0.5),
    objectives=(GeneratorMLM(), RTD()),
    steps=1,
    optim=dataclasses.replace(TAUGHT.optim, warmup=1),
  )
  with Workdir(tmp_path) as workdir:
    vocab = toy_run.prepared().tokenizer
    workdir.write_config(experiment.resolve(vocab.vocab.size), {"initial": None, "text": {}})
    vocab.save(tmp_path / "tokenizer")
  model = dataclasses.replace(student().model, teacher=str(tmp_path), teacher_model=None)
  with pytest.raises(UserError, match="has no masked-LM head"):
    teacher_of(dataclasses.replace(TAUGHT, model=model))


@pytest.mark.slow
def test_a_composite_starts_from_its_own_kind_only():
  folder, program, _, _ = distilled()
  encoder = RunInfo(path=folder, experiment=teacher()[1].experiment, tokenizer=None)
  with pytest.raises(UserError, match="holds a Bert, from which a Distilled cannot start"):
    initial_parameters(program, encoder)


@pytest.mark.slow
def test_fine_tuning_s_model_is_the_student(tmp_path):
  from experiments.finetune import recipe

  source = RunInfo.read(distilled()[0])
  task = Classify(labels=("a", "b", "c"), length=8)
  splits = Splits(*3 * [Examples([Example(("x",), "a")], [(np.array([5]),)])])
  plan = FinetunePlan(source, recipe, ["optim.layer_decay=0.8"], task, splits, tmp_path)
  chosen = plan.experiment(None, 0)
  assert isinstance(chosen.model, DistilBert) and not isinstance(chosen.model, Distilled)
  assert chosen.optim.layer_decay == 0.8


@pytest.mark.slow
def test_a_student_trains_in_bfloat16_on_eight_devices(tmp_path):
  experiment = student()
  experiment = dataclasses.replace(
    experiment,
    mesh=MeshShape(data=2, fsdp=2, tensor=2),
    compute=dataclasses.replace(TOY.compute, dtype="bfloat16"),
    optim=dataclasses.replace(experiment.optim, warmup=1),
    steps=1,
  )
  _, _, _, records = trained(experiment, taught_parameters, tmp_path / "run")
  assert np.isfinite(records[-1]["distillation/loss"])
