"""A plan says exactly what lies on a device, and what a step costs at least."""

import dataclasses
import json
import sys

import jax
import pytest

from plm_jax import cli
from plm_jax.commands import plan as command
from plm_jax.errors import UserError
from plm_jax.experiment_flags import chosen_experiment
from plm_jax.planning.choosing import Placement
from plm_jax.planning.devices import Device, Target, known, pretended, target_of
from plm_jax.planning.page import page
from plm_jax.planning.plan import plan
from plm_jax.planning.state_bytes import tensors
from plm_jax.planning.without_effect import without_effect
from plm_jax.sharding import MeshShape
from plm_jax.train import loop, memory
from plm_jax.train.example_batch import example_batch
from tests.decode.test_commands import own_flags

FAMILIES = {
  "bert": "experiments/bert.py:tiny",
  "gpt": "experiments/gpt.py:tiny",
  "t5": "experiments/t5.py:tiny",
  "lstm": "experiments/lstm.py:tiny",
}
MESHES = {
  "data": MeshShape(data=8),
  "fsdp": MeshShape(data=2, fsdp=4),
  "tensor": MeshShape(data=2, fsdp=2, tensor=2),
}
CUBE = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
SMALL = ["model.layers=2", "model.width=32", "global_batch=16"]


def experiment_of(family: str, *settings: str):
  return chosen_experiment(None, FAMILIES[family], "smoke", [*SMALL, *settings], None)[0]


def chips(count: int, memory: float) -> Target:
  """Devices with the numbers of a TPU v5e and another memory."""
  device = dataclasses.replace(target_of("v5e-4").device, memory=int(memory))
  return Target(f"v5e-{count}", device, count)


@pytest.mark.parametrize(
  "family", ["gpt", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bert", "t5", "lstm"))]
)
def test_the_bytes_of_a_plan_are_those_of_the_state_on_a_device(family):
  experiment = experiment_of(family)
  on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  create, shapes = loop.planned_state(experiment, example_batch(experiment))
  made = jax.jit(create, out_shardings=on_one, compiler_options=loop.once())()
  for shape in MESHES.values():
    state = jax.device_put(made, loop.shardings_of(loop.placed_on(shape.build(), shapes)))
    expected = Placement(dataclasses.replace(experiment, mesh=shape), target_of("cpu:8")).stored
    assert expected.parameters == held(state.params) > 0
    assert expected.moments == held(state.opt_state) > 0
    assert expected.gradients == expected.parameters
    assert (
      expected.rest == held(dataclasses.replace(state, params=None, opt_state=None, key=None)) + 8
    )


def held(tree) -> int:
  """Bytes on the first device."""
  shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
  return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0])


def test_every_parameter_is_listed_with_the_axis_that_splits_it():
  placement = Placement(experiment_of("bert", *CUBE), target_of("cpu:8"))
  listed = {tensor.path: tensor for tensor in tensors(placement.state)}
  assert sum(tensor.size for tensor in listed.values()) == placement.stored.parameters
  kernel = listed["blocks/feed_forward/up/kernel"]
  assert kernel.split == ("", "fsdp", "tensor")
  assert kernel.size == 4 * 2 * 32 * kernel.shape[-1] // 4


def test_frozen_parameters_have_no_gradients():
  stored = Placement(experiment_of("bert", "tuning.freeze=embed/*"), target_of("cpu:8")).stored
  assert 0 < stored.gradients < stored.parameters


# --- the mesh ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_split_first_then_the_state_and_a_row_last():
  experiment = experiment_of("bert")
  on_data = Placement(experiment, chips(8, 1))
  with pretended(on_data.target.device):
    need = on_data.needed(on_data.parts[-1])
  enough = plan("toy", experiment, chips(8, need), "arithmetic")
  assert enough.mesh == {"data": 8, "fsdp": 1, "tensor": 1}
  assert enough.mesh_reason.startswith("data first")
  tight = plan("toy", experiment, chips(8, 0.9 * need), "arithmetic")
  assert tight.mesh == {"data": 4, "fsdp": 2, "tensor": 1} and tight.memory.fits
  assert tight.mesh_reason.startswith("fsdp, since data=8, fsdp=1, tensor=1 needs")
  few = plan("toy", experiment_of("bert", "global_batch=4"), chips(8, need), "arithmetic")
  assert few.mesh == {"data": 4, "fsdp": 1, "tensor": 2}
  none = plan("toy", experiment, chips(2, 1e4), "arithmetic")
  assert not none.memory.fits and none.largest == 0 and "no mesh fits" in none.mesh_reason


def test_a_batch_is_split_until_it_fits():
  experiment = experiment_of("gpt", "mesh.data=1")
  whole = Placement(experiment, chips(1, 1))
  with pretended(whole.target.device):
    needed = {parts: whole.needed(parts) for parts in (1, 2, 16)}
  # A trace that is repeated may keep some hundred bytes more.
  half = plan("toy", experiment, chips(1, 1.01 * needed[2]), "arithmetic")
  assert half.micro_batches == 2 and half.largest == 8 and half.memory.fits
  tokens = [line for line in page(half).splitlines() if "micro-batches of" in line]
  assert tokens == [" " * 24 + "in 2 micro-batches of 8"]
  assert needed[1] > needed[2] > needed[16]


@pytest.mark.slow
def test_rematerialisation_keeps_less_and_is_no_operation_of_the_model():
  kept = Placement(experiment_of("gpt", "compute.layers=scan"), chips(1, 1))
  again = Placement(experiment_of("gpt", "compute.layers=scan", "compute.remat=true"), chips(1, 1))
  assert again.kept(1) < 0.7 * kept.kept(1)
  plans = [plan("toy", p.experiment, chips(1, 1e12), "arithmetic") for p in (kept, again)]
  assert plans[0].speed.operations == plans[1].speed.operations


def test_settings_without_effect_are_named():
  dropout = ("model.dropout=0", "model.attention_dropout=0", "compute.dropout=threefry")
  placement = Placement(experiment_of("bert", *dropout, "compute.remat=true"), chips(1, 1))
  (sentence,) = without_effect(placement)
  assert sentence == "compute.dropout=threefry changes nothing: the step is that of hash"
  uneven = experiment_of("bert", "mesh.data=1", "mesh.tensor=4", "model.vocab_size=4098")
  assert any(
    "vocab 4098 is not divisible" in s for s in without_effect(Placement(uneven, chips(4, 1)))
  )


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys):
  """`call(*words) -> (exit code, stdout, stderr)` of the command."""

  def run(*words):
    with own_flags(command):
      monkeypatch.setattr(sys, "argv", ["plan", *words])
      monkeypatch.setattr(command, "keep_compilations", lambda cache: None)
      monkeypatch.setattr(jax.config, "update", lambda *_: None)
      with pytest.raises(SystemExit) as end:
        cli.run(command.main)
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err

  return run


def test_the_page_and_the_document_say_the_same(call, tmp_path):
  words = ("--budget=smoke", "--devices=v5e-16", "--by=arithmetic", "--set=global_batch=32")
  code, out, _ = call(*words, "--tensors", f"--out={tmp_path / 'plan.json'}")
  assert code == 0
  document = json.loads((tmp_path / "plan.json").read_text())
  assert json.loads(call(*words, "--json")[1]) == document
  slower = json.loads(call(*words, "--json", "--peak=1", "--bandwidth=1e6")[1])["speed"]
  assert slower["bound"] == "products"
  assert slower["seconds"] == pytest.approx(slower["operations"] / (16 * 1e12))
  assert document["mesh"] == {"data": 16, "fsdp": 1, "tensor": 1}
  assert document["memory"]["fits"] and f"{document['speed']['operations'] / 1e12:.2g} TFLOP" in out
  for words in ("16 x TPU v5e", "by                    arithmetic (as asked)", "197 TFLOP/s"):
    assert words in out
  assert "token/table" in out and len(document["tensors"]) == out.count("float32[")


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ([], "--devices=NAME is needed"),
    (["--devices=v9-8"], f"expected one of {known()}"),
    (["--devices=v5p-2"], "is not a slice of TPU v5p; there are v5p-8, v5p-16,"),
    (["--devices=h100x9"], "up to 8 GPUs"),
    (["--devices=cpu:4", "--set=mesh.data=3"], "places, but there are 4 devices"),
    (["--devices=v5e-8", "--set=mesh.fsdp=3"], "does not divide the devices"),
    (["--devices=v5e-8", "--set=mesh.data=8", "--set=global_batch=12"], "multiple of 8"),
    (["--devices=v5e-16", "--set=global_batch=3"], "no mesh over the 16 devices"),
    (["--devices=v5e-8", "--experiment=experiments/ngram.py:base"], "counts and takes no steps"),
    (["--devices=a100x1", "--by=compiler"], "--by=compiler: only the H100"),
    (["--devices=cpu:9", "--by=compiler"], "8 simulated devices"),
    (["--devices=v5e-8", "--out=nowhere/plan.json"], "its folder is not there"),
    (["--devices=v5e-8", f"--out={__file__}"], "already exists; name another file"),
    (["--devices=h100x1", "--peak=0"], "--peak=0 must be a number above 0"),
    (["--devices=cpu:4", "--bandwidth=20"], "--bandwidth say nothing of cpu:4"),
  ],
)
def test_bad_input_is_one_sentence(call, words, said):
  code, out, err = call("--budget=smoke", *words)
  assert (code, out) == (2, "") and said in err
  assert err.startswith("error: ") and err.count("\n") == 1


def test_names_of_slices_count_cores_where_cloud_tpu_does():
  assert (target_of("v5p-8").count, target_of("v5p-8").topology) == (4, "v5p:2x2x1")
  assert (target_of("v5e-256").count, target_of("v5e-256").topology) == (256, "v5e:16x16")


def test_a_refusal_of_the_compiler_is_the_answer(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much (19.00G) for HBM (15.75G).\n")

  monkeypatch.setattr(memory, "compiled_in", refuse)
  made = plan("toy", experiment_of("bert", "mesh.data=8"), target_of("cpu:8"), "compiler")
  assert not made.memory.fits and made.largest == 0 and made.memory.total is None
  assert "even one row" in made.memory.refusal and "15.75G" in page(made)


def test_a_plan_by_the_compiler_without_one_is_refused(monkeypatch):
  with pytest.raises(UserError, match="simulated devices"):
    plan("toy", experiment_of("bert"), Target("cpu:99", Device("CPU", "cpu", 1), 99), "compiler")
