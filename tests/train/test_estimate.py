"""The time of a run is estimated by counting what it computes, or by timing a step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from plm_jax.experiment_flags import vocab_size_of
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.lstm import Lstm
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.train import estimate
from tests import toy_run


def resolved(**changes):
  experiment = replace(toy_run.TOY, **changes)
  return experiment.resolve(vocab_size_of(experiment))


def test_products_are_counted_in_loops_as_often_as_they_run():
  x, w = jnp.ones((5, 3)), jnp.ones((7, 3, 3))

  def loop(x, w):
    return jax.lax.scan(lambda x, w: (jax.jit(jnp.matmul)(x, w), None), x, w)[0]

  assert estimate.products(jax.make_jaxpr(loop)(x, w).jaxpr) == 7 * 2 * 5 * 3 * 3


def test_a_step_of_bert_has_the_operations_of_its_layers_and_its_output_layer():
  L, D, F, T, B = 3, 32, 128, 24, 4
  model = Bert(layers=L, width=D, heads=2, positions=T)
  data = replace(toy_run.TOY.data, length=T)
  small = resolved(model=model, data=data, objectives=(MLM(),), global_batch=B)
  layer = B * T * (8 * D * D + 4 * D * F) + 4 * B * T * T * D
  counted = estimate.step_operations(small) / (1 + estimate.BACKWARD)
  head = counted - L * layer
  assert 0 < head < 2 * B * T * D * (D + 64)
  twice = estimate.step_operations(resolved(**{**vars_of(small), "global_batch": 2 * B}))
  assert twice == 2 * estimate.step_operations(small)
  remat = replace(small, compute=Compute(remat=True))
  assert estimate.step_operations(remat) == pytest.approx(counted * (2 + estimate.BACKWARD))


def vars_of(experiment):
  return {name: getattr(experiment, name) for name in ("model", "data", "objectives")}


def test_every_kind_of_model_is_counted():
  lstm = resolved(model=Lstm(layers=2, width=16, positions=32), objectives=(CLM(),))
  rows, gates = lstm.global_batch * lstm.data.length, 2 * 16 * 4 * 16 * 2
  assert estimate.step_operations(lstm) > 3 * 2 * rows * gates


def test_a_long_step_is_counted_and_a_short_one_timed(monkeypatch):
  program = toy_run.program()
  assert estimate.timed(program).how.startswith("one timed step")
  monkeypatch.setattr(estimate, "product_rate", lambda: 1e3)
  step = estimate.timed(program)
  assert "matrix products, at 50%" in step.how
  assert step.seconds == estimate.step_operations(program.experiment) / 500


def test_a_time_is_told_in_a_readers_unit_with_what_makes_it_shorter():
  assert [estimate.spoken(s) for s in (0.1, 80, 200, 54_000, 1e6)] == [
    "about 1 seconds", "about 80 seconds", "about 3 minutes", "about 15 hours", "about 12 days"
  ]  # fmt: skip
  told = estimate.sentence(200, "guessing", "small")
  assert told.startswith(
    "about 3 minutes of training on this machine, as busy as it is now: an estimate by guessing\n"
  )
  assert "--budget=laptop" in told and "--budget" not in estimate.sentence(9, "", "laptop")
