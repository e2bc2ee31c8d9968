"""Training few parameters: devices, micro-batches and precision as for any model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.experiment import Tuning
from plm_jax.models.albert import Albert
from plm_jax.models.electra import Electra
from plm_jax.models.lstm import Lstm
from plm_jax.models.parameters import named
from plm_jax.objectives.mlm import MLM
from plm_jax.peft.bitfit import BitFit
from plm_jax.peft.lora import Lora
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.state import stored
from tests.train.test_step import TOY, program_of, toy_batch

ALL = dataclasses.replace(TOY, objectives=(MLM(rate=0.3),), peft=Lora(rank=2, targets=("*",)))


def trained(experiment, steps=2):
  program = program_of(experiment)
  first = jax.device_get(program_of(ALL).create().params) if experiment.peft == ALL.peft else None
  state = program.create()
  if first is not None:
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract.params)
    state = dataclasses.replace(state, params=jax.device_put(first, shardings))
  before = jax.device_get(state.params)
  for step in range(steps):
    state = program.step(state, to_global(toy_batch(step, experiment), program.mesh))
  return before, jax.device_get(state)


@pytest.mark.slow
def test_eight_devices_and_micro_batches_train_as_one_device():
  _, one = trained(ALL)
  mesh, compute = (
    MeshShape(data=2, fsdp=2, tensor=2),
    dataclasses.replace(TOY.compute, micro_batches=2),
  )
  _, many = trained(dataclasses.replace(ALL, mesh=mesh, compute=compute))
  for (path, a), (_, b) in zip(named(one.params), named(many.params), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "peft"),
  [
    (TOY.model, Lora(rank=2, dropout=0.2, dora=True)),
    (
      Albert(vocab_size=48, layers=2, width=16, heads=4, positions=24, embedding=8),
      Prefix(length=2, hidden=4),
    ),
    (dataclasses.replace(TOY.model, positions=24), Prompt(length=3)),
    (TOY.model, BitFit()),
  ],
  ids=["dora", "albert", "prompt", "bitfit"],
)
def test_a_step_in_bfloat16_moves_what_is_trained_and_nothing_else(model, peft):
  compute = dataclasses.replace(TOY.compute, dtype="bfloat16", layers="scan")
  before, after = trained(dataclasses.replace(ALL, model=model, peft=peft, compute=compute))
  assert jnp.isfinite(after.metrics["loss"]).all() and int(after.first_bad) == 0
  moved = {
    path: not np.array_equal(x, y)
    for (path, x), (_, y) in zip(named(before), named(after.params), strict=True)
  }
  assert not [path for path, m in moved.items() if m and path.startswith("base/")]
  of_method = [path for path in moved if not path.startswith("base/")]
  assert of_method and all(moved[path] for path in of_method if "key/bias" not in path), moved


def test_the_moments_and_the_checkpoint_are_as_small_as_the_added_parameters():
  state = program_of(ALL).create()

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  added = count(state.params.added) + count(state.params.trained)
  assert added < 0.4 * count(state.params)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sum(x.size for x in moments) == 2 * added
  assert count(stored(state, ALL.omitted).params) == added


def test_composite_and_recurrent_models_take_it_too():
  electra = Electra(layers=1, width=64, heads=1, vocab_size=48, positions=16, generator_width=1.0)
  lstm = Lstm(layers=2, width=8, vocab_size=48, positions=16)
  heads = {"mlm": 0, "rtd": 0}, {"lm": 0}
  for model, names, targets, count in (
    (electra, heads[0], ("query",), 2),
    (lstm, heads[1], ("input", "recurrent"), 2),
  ):
    base = jax.eval_shape(lambda key, m=model, n=names: m.init(key, n), jax.random.key(0))
    added = jax.eval_shape(Lora(targets=targets).init, jax.random.key(1), base)
    assert len(added) == count, list(added)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"tuning": Tuning(freeze=("embed/*",))}, "freezes the whole base, so tuning.freeze"),
    ({"peft": Prompt(length=3)}, "data.length=16 and 3 positions of peft=Prompt are more than"),
  ],
)
def test_settings_that_exclude_each_other_are_refused(change, sentence):
  with pytest.raises(UserError, match=sentence):
    dataclasses.replace(ALL, **change)
