import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from plm_jax.errors import UserError
from plm_jax.models.parameters import ROLES, path_name
from plm_jax.sharding import (
  DATA_PARALLEL,
  FULLY_SHARDED,
  RULES,
  TENSOR_PARALLEL,
  MeshShape,
  batch_sharding,
  kept_whole,
  parameter_shardings,
  to_global,
)


class Leaf(nnx.Module):
  def __init__(self, **shapes):
    for name, shape in shapes.items():
      setattr(self, name, nnx.Param(jnp.asarray(np.ones(shape, np.float32))))


class Group(nnx.Module):
  def __init__(self, **children):
    for name, child in children.items():
      setattr(self, name, child)


def model(vocab=32, width=16, heads=4, hidden=64, layers=2):
  """Named and shaped as a BERT's parameters are, without its computation."""
  D, N, F, L = width, heads, hidden, layers
  qkv = {
    name: Leaf(kernel=(L, D, N, D // N), bias=(L, N, D // N)) for name in ("query", "key", "value")
  }
  return Group(
    embed=Group(token=Leaf(table=(vocab, D)), norm=Leaf(gain=(D,), bias=(D,))),
    blocks=Group(
      attention=Group(**qkv, output=Leaf(kernel=(L, N, D // N, D), bias=(L, D))),
      attention_norm=Leaf(gain=(L, D), bias=(L, D)),
      feed_forward=Group(up=Leaf(kernel=(L, D, F), bias=(L, F)), down=Leaf(kernel=(L, F, D))),
    ),
    mlm=Group(dense=Leaf(kernel=(D, D)), norm=Leaf(gain=(D,)), bias=Leaf(bias=(vocab,)).bias),
  )


def specs(tree, mesh):
  found = jax.tree_util.tree_flatten_with_path(parameter_shardings(tree, mesh))[0]
  return {path_name(path): sharding.spec for path, sharding in found}


def test_one_axis_takes_the_devices_that_are_left():
  assert dict(DATA_PARALLEL.build().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(FULLY_SHARDED.build().shape) == {"data": 1, "fsdp": 8, "tensor": 1}
  assert dict(TENSOR_PARALLEL.build().shape) == {"data": 1, "fsdp": 1, "tensor": 8}
  assert dict(MeshShape(fsdp=2, tensor=2).build().shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert MeshShape().build(jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
  ("numbers", "sentence"),
  [
    ({"fsdp": 3}, r"fsdp=3.* does not divide .* there are 8 devices.* choose 1, 2, 4 or 8"),
    ({"data": 2}, r"data=2.* has 2 places, but there are 8 devices; make the product 8"),
    ({"data": 3, "fsdp": 3}, r"has 9 places, but there are 8 devices"),
    ({"fsdp": 16}, r"there are 8 devices, .* is 16"),
    ({"fsdp": -1}, r"-1 more than once"),
    ({"tensor": 0}, r"mesh.tensor = 0 was given; expected a positive"),
    ({"data": -2}, r"mesh.data = -2 was given"),
    ({"fsdp": True}, r"mesh.fsdp = True"),
    ({"fsdp": 2.0}, r"mesh.fsdp = 2.0"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_numbers_that_would(numbers, sentence):
  with pytest.raises(UserError, match=sentence):
    MeshShape(**numbers).build()


def test_a_path_loses_only_the_value_that_nnx_adds():
  tree = {"head": model().embed.norm, "value": jnp.ones(1), "list": [jnp.ones(1)]}
  paths = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}
  assert paths == {"head/gain", "head/bias", "value", "list/0"}


def test_each_parameter_lies_where_its_row_says():
  found = specs(model(), MeshShape(data=2, fsdp=2, tensor=2).build())
  assert found["embed/token/table"] == P("tensor", "fsdp")
  assert found["blocks/attention/query/kernel"] == P(None, "fsdp", "tensor")
  assert found["blocks/attention/query/bias"] == P(None, "tensor")
  assert found["blocks/attention/output/kernel"] == P(None, "tensor", None, "fsdp")
  assert found["blocks/feed_forward/up/kernel"] == P(None, "fsdp", "tensor")
  assert found["blocks/feed_forward/down/kernel"] == P(None, "tensor", "fsdp")
  assert found["blocks/attention_norm/gain"] == P()
  assert found["mlm/dense/kernel"] == P("fsdp")
  assert found["mlm/bias"] == P("tensor")


def test_the_stacked_layers_are_never_split_and_one_device_splits_nothing():
  for sizes in itertools.product((1, 2), repeat=3):
    shape = MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes)))
    found = specs(model(), shape.build(jax.devices()[: np.prod(sizes)]))
    assert all(not s or s[0] is None for name, s in found.items() if name.startswith("blocks"))
    if max(sizes[1:]) == 1:
      assert set(found.values()) == {P()}


def test_optimiser_state_lies_beside_its_parameters():
  params = model()
  optimiser = optax.MultiSteps(optax.chain(optax.clip(1.0), optax.adamw(1e-3)), 2)
  state = {
    "params": params,
    "opt_state": jax.eval_shape(optimiser.init, params),
    "key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0), 3),
    "metrics": {"mlm/loss": jnp.zeros(2)},
  }
  found = specs(state, FULLY_SHARDED.build())
  tail = "blocks/attention/query/kernel"
  same = {name: spec for name, spec in found.items() if name.endswith(tail)}
  assert len(same) == 4  # the parameter, both moments, the accumulated gradient
  assert set(same.values()) == {P(None, "fsdp")}
  others = [spec for name, spec in found.items() if "blocks" not in name and "/" not in name]
  assert others == [P(), P()] and found["metrics/mlm/loss"] == P()


def test_a_parameter_without_a_row_is_named():
  with pytest.raises(LookupError, match="params/embed/new/table has no row"):
    specs({"params": {"embed": {"new": {"table": jnp.ones((2, 2))}}}}, DATA_PARALLEL.build())
  with pytest.raises(LookupError, match=r"pooler/kernel has 3 dimensions.* names 2"):
    specs({"pooler": {"kernel": jnp.ones((2, 2, 2))}}, DATA_PARALLEL.build())


def test_every_axis_of_a_row_has_a_rule_and_no_row_uses_a_mesh_axis_twice():
  for path, role in ROLES.items():
    used = [RULES[axis] for axis in role.axes if RULES[axis]]
    assert len(used) == len(set(used)), path


def test_an_odd_vocabulary_stays_whole_and_is_reported_while_the_rest_is_split():
  params, mesh = model(vocab=31), MeshShape(data=1, fsdp=2, tensor=4).build()
  assert specs(params, mesh)["embed/token/table"] == P(None, "fsdp")
  assert specs(params, mesh)["blocks/feed_forward/up/bias"] == P(None, "tensor")
  (sentence,) = kept_whole(params, mesh)
  assert sentence.startswith("vocab 31 is not divisible by tensor=4")
  assert "embed/token/table, mlm/bias" in sentence
  assert kept_whole(model(), mesh) == []


def test_a_mesh_axis_that_splits_nothing_is_refused():
  params = model(vocab=31, width=12, heads=3, hidden=62)
  with pytest.raises(UserError, match=r"tensor=8, which divides none .*heads 3.*vocab 31"):
    kept_whole(params, TENSOR_PARALLEL.build())
  with pytest.raises(UserError, match=r"fsdp=8, which divides none of .*\(width 12\)"):
    kept_whole(params, FULLY_SHARDED.build())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_keep_their_order_and_tensor_devices_see_the_same_rows(sizes):
  mesh = MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes))).build()
  rows = np.arange(48, dtype=np.int32).reshape(16, 3)
  batch = to_global({"ids": rows, "weights": rows[:, 0].astype(np.float32)}, mesh)
  np.testing.assert_array_equal(batch["ids"], rows)
  assert batch["ids"].sharding == batch_sharding(mesh)
  shards = {s.device: s.index[0].start or 0 for s in batch["ids"].addressable_shards}
  for line in mesh.devices.reshape(-1, sizes[2]):
    assert len({shards[device] for device in line}) == 1


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
  mesh = MeshShape(fsdp=2).build()
  with pytest.raises(UserError, match=r"12 rows \(ids\) does not divide .* 4 x 2 = 8 devices"):
    to_global({"ids": np.zeros((12, 3))}, mesh)


def test_a_split_model_computes_what_one_device_computes():
  params = model()
  x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)

  def loss(params, x):
    up = jnp.tanh(x @ (params.embed.token.table[...][:16] * 0.1))
    h = jnp.tanh(up @ params.blocks.feed_forward.up.kernel[...][0])
    return jnp.mean((h @ params.blocks.feed_forward.down.kernel[...][0] * 0.1) ** 2)

  expected = jax.jit(jax.grad(loss))(params, x)
  mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
  shardings = parameter_shardings(params, mesh)
  step = jax.jit(jax.grad(loss), out_shardings=shardings)
  grads = step(jax.device_put(params, shardings), to_global({"x": x}, mesh)["x"])
  assert not grads.embed.token.table[...].sharding.is_fully_replicated
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # another order of float32 sums
