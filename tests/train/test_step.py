"""The train step: one number whatever the devices, micro-batches and precision of the schedule."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.pipeline import Corpus
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.optim.adamw import AdamW
from plm_jax.sharding import MeshShape, to_global
from plm_jax.tasks.vector_losses import Ranking
from plm_jax.train.example_batch import example_batch
from plm_jax.train.loop import compile_experiment
from plm_jax.train.step import step_options

TOY = Experiment(
  model=Bert(vocab_size=48, layers=2, width=16, heads=4, positions=16, dropout=0.0,
             attention_dropout=0.0),
  objectives=(MLM(rate=0.3), NSP()),
  data=Corpus(length=16),
  optim=AdamW(peak=1e-2, warmup=2),
  global_batch=16,
  steps=10,
  mesh=MeshShape(data=1),
  compute=Compute(dtype="float32"),
)  # fmt: skip


def toy_batch(seed, experiment=TOY):
  """Random rows whose numbers of predictions differ, as those of real rows do."""
  rng = np.random.default_rng(seed)
  batch = example_batch(experiment)
  rows, slots = batch["mlm_positions"].shape
  return batch | {
    "input_ids": rng.integers(5, 48, batch["input_ids"].shape).astype(np.int32),
    "length": rng.integers(4, 17, rows).astype(np.int32),
    "mlm_positions": rng.integers(0, 4, (rows, slots)).astype(np.int32),
    "mlm_targets": rng.integers(5, 48, (rows, slots)).astype(np.int32),
    "mlm_weights": (rng.random((rows, slots)) < np.linspace(0.1, 1, rows)[:, None]).astype(
      np.float32
    ),
    "pair_label": rng.integers(0, 2, rows).astype(np.int32),
  }


@functools.cache
def program_of(experiment=TOY):
  """The experiment on as many devices as its mesh names."""
  m = experiment.mesh
  devices = jax.devices()[: m.data * m.fsdp * m.tensor]
  return compile_experiment(experiment, example_batch(experiment), devices)


@functools.cache
def trained(experiment, steps=3):
  program = program_of(experiment)
  state = jax.device_put(
    program_of().create(), jax.tree.map(lambda x: x.sharding, program.abstract)
  )
  for step in range(steps):
    state = program.step(state, to_global(toy_batch(step), program.mesh))
  return jax.device_get(state)


@pytest.mark.slow
def test_parameters_start_alike_on_any_mesh():
  spread = dataclasses.replace(TOY, mesh=MeshShape(data=2, fsdp=2, tensor=2))
  one, eight = (jax.device_get(program_of(e).create().params) for e in (TOY, spread))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), one, eight)


def assert_same_training(experiment, atol=2e-5):
  ours, reference = trained(experiment), trained(TOY)
  for name, value in reference.metrics.items():
    np.testing.assert_allclose(ours.metrics[name], value, rtol=1e-5, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours.params, reference.params
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape",
  [
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
    pytest.param((1, 8, 1), marks=pytest.mark.slow),
    pytest.param((2, 2, 2), marks=pytest.mark.slow),
    (1, 1, 4),
  ],
)
def test_eight_devices_train_as_one_does(shape):
  mesh = MeshShape(**dict(zip(("data", "fsdp", "tensor"), shape)))
  assert_same_training(dataclasses.replace(TOY, mesh=mesh))


@pytest.mark.parametrize("parts", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_micro_batches_do_not_change_the_number(parts):
  compute = dataclasses.replace(TOY.compute, micro_batches=parts)
  assert_same_training(dataclasses.replace(TOY, compute=compute))


@pytest.mark.slow
def test_micro_batches_and_devices_together_do_not_change_the_number():
  assert_same_training(
    dataclasses.replace(
      TOY,
      compute=dataclasses.replace(TOY.compute, micro_batches=2),
      mesh=MeshShape(data=2, fsdp=2, tensor=2),
    )
  )


@pytest.mark.slow
def test_a_loss_that_compares_rows_reads_the_whole_batch_in_micro_batches():
  ranked = dataclasses.replace(TOY, objectives=(Ranking(together=2),))
  batch = toy_batch(0) | {"text": np.arange(16, dtype=np.int32)}
  ends, memory = {}, {}
  for parts in (1, 4):
    compute = dataclasses.replace(TOY.compute, micro_batches=parts)
    program = compile_experiment(
      dataclasses.replace(ranked, compute=compute), batch, jax.devices()[:1]
    )
    state = program.step(program.create(), to_global(batch, program.mesh))
    ends[parts] = jax.device_get((state.metrics, state.params))
    memory[parts] = program.memory
  assert ends[1][0]["similar/loss"][1] == 8 and memory[4] < 0.6 * memory[1], memory
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ends[4], ends[1])


def test_the_loss_is_the_mean_over_all_predictions_and_not_a_mean_of_means():
  program = program_of()
  params, batch = program.create().params, toy_batch(0)
  whole = np.asarray(program.evaluate(params, batch, None)[0]["mlm/loss"])
  halves = [
    np.asarray(
      program.evaluate(params, {k: v[rows] for k, v in batch.items()}, None)[0]["mlm/loss"]
    )
    for rows in (slice(0, 8), slice(8, 16))
  ]
  np.testing.assert_allclose(halves[0] + halves[1], whole, rtol=1e-5)
  means = [s / c for s, c in halves]
  assert abs(np.mean(means) - whole[0] / whole[1]) > 1e-5  # the rows' counts differ on purpose


def test_rows_of_no_weight_change_nothing():
  program = program_of()
  params, batch = program.create().params, toy_batch(0)
  batch["row_weight"][8:] = 0
  batch["mlm_weights"][8:] = 0
  other = {k: v.copy() for k, v in batch.items()}
  other["input_ids"][8:] = 9
  other["pair_label"][8:] ^= 1
  jax.tree.map(
    np.testing.assert_array_equal, *(program.evaluate(params, b, None)[0] for b in (batch, other))
  )


def test_training_on_one_batch_learns_it():
  experiment = dataclasses.replace(TOY, optim=AdamW(peak=1e-2, warmup=1, schedule="constant"))
  program = program_of(experiment)
  state, batch = program.create(), to_global(toy_batch(0), program.mesh)
  first = program.evaluate(state.params, batch, None)[0]["mlm/loss"]
  for _ in range(60):
    state = program.step(state, batch)
  last = program.evaluate(state.params, batch, None)[0]["mlm/loss"]
  assert last[0] / last[1] < 0.7 * first[0] / first[1]


def test_a_loss_that_is_not_finite_is_remembered_and_changes_no_parameter():
  program = program_of()
  state = program.create()
  state = program.step(state, to_global(toy_batch(0), program.mesh))
  poisoned = toy_batch(1)
  poisoned["mlm_weights"][0, 0] = np.nan
  before = jax.device_get(state.params)
  state = program.step(state, to_global(poisoned, program.mesh))
  state = program.step(state, to_global(toy_batch(2), program.mesh))
  assert int(state.first_bad) == 2
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed():
  noisy = dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, dropout=0.5))
  program = program_of(noisy)
  batch = to_global(toy_batch(0), program.mesh)

  def losses(seed):
    state = program.create()
    state = dataclasses.replace(state, key=jax.random.key(seed))
    values = []
    for step in range(2):  # at the same parameters
      state = dataclasses.replace(state, params=program.create().params, step=jnp.int32(step))
      before = np.asarray(state.metrics["mlm/loss"])
      state = program.step(state, batch)
      values.append(float(np.asarray(state.metrics["mlm/loss"])[0] - before[0]))
    return values

  first, second = losses(1)
  assert first != second
  assert losses(1) == [first, second]
  assert losses(2) != [first, second]


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
  experiment = dataclasses.replace(TOY, global_batch=12, mesh=MeshShape(data=8))
  with pytest.raises(UserError, match="multiple of 8"):
    compile_experiment(experiment, example_batch(experiment))


def operations(program: str) -> str:
  """The operations of a compiled program, without which calls in the source led to each."""
  return re.sub(r", metadata={[^}]*}", "", program[program.index("\n%") :])


@pytest.mark.slow
def test_the_compiled_step_is_the_same_for_other_rates_and_lengths():
  other = dataclasses.replace(TOY, optim=AdamW(peak=1e-3, warmup=7), steps=50)
  one, two = (program_of(experiment).step for experiment in (TOY, other))
  assert operations(one.func.as_text()) == operations(two.func.as_text())
  assert one.keywords != two.keywords


def test_products_on_a_gpu_are_cublas_s_unless_a_flag_says_otherwise(monkeypatch):
  class Card:
    platform = "gpu"

  monkeypatch.delenv("XLA_FLAGS", raising=False)
  assert step_options() == {}
  monkeypatch.setattr(jax, "devices", lambda: [Card()])
  assert step_options() == {}  # a plan for a card that is not here
  monkeypatch.setattr(jax, "Device", Card)
  assert step_options() == {"xla_gpu_enable_triton_gemm": False}
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
  assert step_options() == {}
