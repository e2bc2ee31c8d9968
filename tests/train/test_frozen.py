"""Parameters under frozen paths take part in the forward pass and in nothing else."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from plm_jax.models.bert import Bert
from plm_jax.models.parameters import path_name
from plm_jax.sharding import MeshShape, to_global
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.state import merge_frozen, trainable
from tests.train.test_step import TOY, program_of, toy_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfFrozen(Bert):
  """BERT whose embeddings stay as they are."""

  @property
  def frozen(self):
    return ("embed/*",)


def frozen(experiment=TOY):
  fields = {f.name: getattr(experiment.model, f.name) for f in dataclasses.fields(experiment.model)}
  return dataclasses.replace(experiment, model=HalfFrozen(**fields))


@functools.cache
def after_steps(experiment, steps=3):
  program = program_of(experiment)
  state = program.create()
  for step in range(steps):
    state = program.step(state, to_global(toy_batch(step), program.mesh))
  return jax.device_get(dataclasses.replace(state, key=0))


def named(tree):
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.slow
def test_frozen_parameters_stay_bit_for_bit_and_the_others_move():
  before, after = named(program_of().create().params), named(after_steps(frozen()).params)
  for name, value in after.items():
    same = np.array_equal(value, before[name])
    assert same == name.startswith("embed/"), name


@pytest.mark.slow
def test_the_first_update_of_the_others_is_that_of_a_free_model():
  """Without the clip, which joins all gradients in one norm. Two programs may round differently, by
  far less than an update."""
  free = dataclasses.replace(TOY, optim=dataclasses.replace(TOY.optim, clip=0.0))
  ours, others = (named(after_steps(e, 1).params) for e in (frozen(free), free))
  for name, value in ours.items():
    if not name.startswith("embed/"):
      np.testing.assert_allclose(value, others[name], rtol=1e-5, atol=2e-7, err_msg=name)


def test_frozen_parameters_have_no_moments():
  moments = named(program_of(frozen()).create().opt_state)
  assert not [name for name in moments if "embed" in name]
  assert [name for name in moments if "blocks" in name]
  assert [name for name in named(program_of().create().opt_state) if "embed" in name]


def test_the_gradient_norm_is_that_of_what_is_trained():
  program = program_of(frozen())
  batch = to_global(toy_batch(0), program.mesh)
  state = program.step(program.create(), batch)
  free = program_of().step(program_of().create(), batch)
  ours, everything = (float(s.metrics["grad_norm"][0]) for s in (state, free))
  assert 0 < ours < everything


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.slow
def test_eight_devices_train_a_half_frozen_model_as_one_does(shape):
  mesh = MeshShape(**dict(zip(("data", "fsdp", "tensor"), shape)))
  ours = after_steps(dataclasses.replace(frozen(), mesh=mesh))
  one = after_steps(frozen())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours.params, one.params)


def test_a_checkpoint_of_a_half_frozen_model_goes_on_bit_for_bit(tmp_path):
  program = program_of(frozen())
  state = program.create()
  for step in range(2):
    state = program.step(state, to_global(toy_batch(step), program.mesh))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state, {})
    checkpoints.wait()
    back, _, _ = checkpoints.restore(program.abstract)
  batch = to_global(toy_batch(2), program.mesh)
  ends = [jax.device_get(program.step(s, batch)) for s in (state, back)]
  for one, other in zip(*(jax.tree.leaves(dataclasses.replace(e, key=0)) for e in ends)):
    np.testing.assert_array_equal(one, other)


def test_splitting_and_completing_gives_the_parameters_back():
  params = program_of().create().params
  some = trainable(params, ("embed/*", "*/bias"))
  assert not {n for n in named(some) if n.startswith("embed/") or n.endswith("/bias")}
  jax.tree.map(np.testing.assert_array_equal, merge_frozen(some, params), params)
  assert optax.tree.norm(some) < optax.tree.norm(params)


@pytest.mark.slow
def test_a_subtree_of_a_checkpoint_is_restored_alone(tmp_path):
  params = program_of().create().params
  whole = {"student": params, "teacher": jax.tree.map(lambda x: x + 1, params)}
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(1, {"params": whole}, {})
  back = restore_parameters(tmp_path, params, within="teacher/")
  assert (back.fresh, back.unused) == ([], [])
  jax.tree.map(np.testing.assert_array_equal, back.params, whole["teacher"])
