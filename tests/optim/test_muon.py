"""Muon is optax's for kernels of layers, and AdamW for all other parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from plm_jax.errors import UserError
from plm_jax.models.parameters import map_roles, role
from plm_jax.optim.adamw import AdamW
from plm_jax.optim.muon import Muon, orthogonal
from plm_jax.sharding import MeshShape
from tests import toy_run

RECIPE = {"peak": 1e-2, "warmup": 2, "clip": 0.0, "decay": 0.1}
# .2 sqrt(max(inputs, outputs)) by the shape of a stack.
LARGER = {
  (2, 12, 3, 4): 0.2 * 12**0.5, (2, 3, 4, 12): 0.2 * 12**0.5,
  (2, 12, 40): 0.2 * 40**0.5, (2, 40, 12): 0.2 * 40**0.5,
}  # fmt: skip


def tree(layers=2, seed=0, size=0.3):
  draw = lambda *shape: jnp.asarray(  # noqa: E731
    np.random.default_rng([seed, *shape]).normal(0, size, shape), jnp.float32
  )
  attention = {
    "query": {"kernel": draw(layers, 12, 3, 4), "bias": draw(layers, 3, 4)},
    "output": {"kernel": draw(layers, 3, 4, 12)},
  }
  feed_forward = {"up": {"kernel": draw(layers, 12, 40)}, "down": {"kernel": draw(layers, 40, 12)}}
  return {
    "token": {"table": draw(50, 12)},
    "blocks": {"attention": attention, "feed_forward": feed_forward},
    "pooler": {"kernel": draw(12, 12)},
  }


def updated(transform, params, steps=4):
  state, update = transform.init(params), jax.jit(transform.update)
  for step in range(steps):
    updates, state = update(tree(seed=step, size=10.0**step), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_kernels_of_layers_move_as_by_optax_and_all_others_as_by_adamw():
  found, state = updated(Muon(**RECIPE).transform(10), tree())
  adam, _ = updated(AdamW(**RECIPE).transform(10), tree())
  ends = {"query": ((1,), (2, 3)), "output": ((1, 2), (3,)), "up": (1, 2), "down": (1, 2)}

  def axes(kernels):
    numbers = optax.contrib.MuonDimensionNumbers
    return map_roles(lambda path, role, x: numbers(*ends[path.split("/")[-2]]), kernels)

  # Its own momentum is corrected for its bias, and that of Jordan's code is not.
  theirs = optax.chain(
    optax.trace(0.95, nesterov=True),
    optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=axes),
    optax.stateless(lambda u, _: map_roles(lambda path, role, x: x * LARGER[x.shape], u)),
    optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(AdamW(**RECIPE).learning_rate(10)),
  )
  kernel = map_roles(lambda path, role, x: "blocks" in path and path.endswith("kernel"), tree())
  muon, _ = updated(optax.masked(theirs, kernel), tree())
  jax.tree.map(
    lambda x, is_kernel, muon, adam: np.testing.assert_allclose(
      x, muon if is_kernel else adam, rtol=1e-4, atol=1e-6
    ),
    *(found, kernel, muon, adam),
  )
  assert len(jax.tree.leaves(state[1].m)) == 4  # of these no second moment, of others no first
  assert len(jax.tree.leaves(state[1].rest.mu)) == 3


@pytest.mark.parametrize("shape", [(2, 30, 10), (2, 10, 30)])
def test_an_update_has_equal_singular_values_of_the_size_of_adamw_s(shape):
  kind = role("blocks/feed_forward/up/kernel")
  u = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  found = np.asarray(orthogonal("blocks/feed_forward/up/kernel", kind, u), np.float64)
  left, _, right = np.linalg.svd(np.asarray(u, np.float64), full_matrices=False)
  values = np.diagonal(left.mT @ found @ right.mT, axis1=1, axis2=2) / (0.2 * 30**0.5)
  assert values.min() > 0.65 and values.max() < 1.25
  assert np.sqrt(np.square(found).mean()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does(tmp_path):
  one = dataclasses.replace(toy_run.TOY, optim=Muon(peak=1e-2, warmup=3), steps=6)
  mesh = dataclasses.replace(one, mesh=MeshShape(data=2, fsdp=2, tensor=2))
  (a, _), (b, _) = (toy_run.run(tmp_path / str(at), run) for at, run in enumerate((one, mesh)))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), a.params, b.params)


def test_nonsense_is_refused():
  with pytest.raises(UserError, match=r"optim\.momentum=1\.5"):
    Muon(momentum=1.5)
