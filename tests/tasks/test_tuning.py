"""The options of fine-tuning: selection of the best parameters, freezing, adversarial steps."""

import json

import jax
import numpy as np
import pytest

from plm_jax.data.pipeline import iterate
from plm_jax.errors import UserError
from plm_jax.models.parameters import named
from plm_jax.runs import Run
from plm_jax.tasks import finetuning
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import global_shapes, model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.train.loop import compile_experiment
from tests.tasks.test_finetuning import SETTINGS, batches_of, equal


@pytest.fixture(scope="module")
def planned(source, recipe, table, tmp_path_factory):
  path = tmp_path_factory.mktemp("tuning")
  return plan(source, recipe, Classify(source=str(table)), SETTINGS, path, path)


def with_options(planned, name, *settings):
  return planned._replace(path=planned.path / name, settings=[*planned.settings, *settings])


def scores_in(place):
  lines = (place / "selection.jsonl").read_text().splitlines()
  return {record["step"]: record["score"] for record in map(json.loads, lines)}


PATIENT = ("tuning.patience=2", "tuning.every=2", "steps=40", "optim.peak=0.03")


@pytest.fixture(scope="module")
def patient(planned):
  """A run that ended early: a large learning rate, two evaluations of patience."""
  chosen = with_options(planned, "patient", *PATIENT)
  return chosen, model_cell(chosen, "pretrained", 60, 0, "toy"), chosen.path / "pretrained-60-0"


@pytest.mark.slow
def test_training_ends_after_patience_and_the_best_parameters_are_kept(patient):
  chosen, cell, place = patient
  scores = scores_in(place)
  best = max(scores, key=lambda step: (scores[step], -step))
  assert list(scores) == list(range(0, best + 5, 2))  # two evaluations after the best one
  assert best + 4 < 40 and cell.dev["accuracy"] == scores[best]
  assert Run.load(place).step == best
  task, model = load(place)
  predictions = task.predict(model, chosen.splits.test)
  assert task.score(chosen.splits.test, predictions) == cell.test


@pytest.mark.slow
def test_a_killed_selection_ends_like_one_that_was_not(patient, monkeypatch):
  chosen, cell, place = patient
  again = chosen._replace(path=chosen.path / "killed")
  stop = max(scores_in(place)) - 1  # after the best step, before the end

  def dies(batches, start, _, workers):
    return iterate(batches, start, stop, workers)

  with monkeypatch.context() as patched:
    patched.setattr(finetuning, "iterate", dies)
    with pytest.raises(StopIteration):
      model_cell(again, "pretrained", 60, 0, "toy")
  assert model_cell(again, "pretrained", 60, 0, "toy") == cell
  killed = again.path / place.name
  for file in ("metrics.jsonl", "selection.jsonl", "scores.json"):
    assert (killed / file).read_bytes() == (place / file).read_bytes()
  (killed / "scores.json").unlink()  # killed between training and test: nothing is trained again
  monkeypatch.setattr(finetuning, "iterate", lambda *_: iter(()))
  monkeypatch.setattr(finetuning, "Data", lambda training, dev: finetuning_data(dev))
  assert model_cell(again, "pretrained", 60, 0, "toy") == cell


def finetuning_data(dev):
  """Held-out batches, and a training stream that must not be read."""

  class Never:
    waited = 0.0

    def __next__(self):
      raise AssertionError("a step was trained")

    def close(self):
      pass

  from plm_jax.train.loop import Data

  return Data(lambda start: Never(), dev)


def compiled(planned, *settings):
  chosen = with_options(planned, "none", *settings)
  return compile_experiment(chosen.experiment(60, 0), global_shapes(batches_of(planned, 0)))


@pytest.mark.slow
def test_frozen_parameters_have_no_optimiser_state_and_do_not_change(planned):
  free, held = (
    compiled(planned, *settings) for settings in ((), ("tuning.freeze=embed/*,blocks/*",))
  )
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
  params = held.abstract.params
  frozen = [x for path, x in named(params) if path.startswith(("embed/", "blocks/"))]
  saved = size(free.abstract.opt_state) - size(held.abstract.opt_state)
  assert saved == 2 * size(frozen) > 0
  before = held.create()
  first = jax.tree.map(np.array, before.params)
  batch = jax.device_put(batches_of(planned, 0)(0))
  after = held.step(held.step(before, batch), batch).params
  for (path, old), (_, new) in zip(named(first), named(after)):
    assert np.array_equal(old, new) == path.startswith(("embed/", "blocks/")), path


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    (["tuning.freeze=embd/*"], r"embd/\* fits no parameter; the model has blocks/\*, classes/\*"),
    (["tuning.freeze=*"], "leaves no parameter to train"),
    (["tuning.patience=-1"], "must be at least 0"),
    (["tuning.freeze=embed/*", "tuning.adversarial=1"], "adversarial moves the token table"),
  ],
)
def test_options_that_make_no_training_are_named(planned, settings, said):
  with pytest.raises(UserError, match=said):
    compiled(planned, *settings)


@pytest.mark.slow
def test_an_adversarial_step_adds_the_gradient_after_a_step_of_the_tables(planned):
  """By hand, with plain gradient descent: the update is the sum of both gradients."""
  from plm_jax.models.dropout import Noise
  from plm_jax.train.step import forward, with_attack

  experiment = planned.experiment(60, 0)
  params = experiment.init_parameters(jax.random.key(1))
  batch, noise = batches_of(planned, 0)(0), Noise.create(jax.random.key(2), "hash")

  def loss_fn(params, batch, noise):
    terms, _ = forward(params, batch, experiment.objectives, experiment.compute, noise)
    return terms["class/loss"][0] / 16, terms

  value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, _), grads = value_and_grad(params, batch, noise)
  table = grads.embed.token.table[...]
  step = 0.5 * table / np.linalg.norm(table)
  moved = jax.tree.map(lambda x: x, params)
  moved.embed.token.table = moved.embed.token.table + step
  (_, _), more = value_and_grad(moved, batch, noise)
  (attacked_loss, _), both = with_attack(value_and_grad, 0.5)(params, batch, noise)
  assert attacked_loss == loss
  for ours, one, two in zip(*map(jax.tree.leaves, (both, grads, more))):
    np.testing.assert_allclose(ours, one + two, rtol=1e-4, atol=1e-6)
  assert not equal(both, grads)
