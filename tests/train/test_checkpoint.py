import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from plm_jax.errors import UserError
from plm_jax.sharding import MeshShape, parameter_shardings
from plm_jax.train.checkpoint import Checkpoints, restore_parameters
from plm_jax.train.integrity import damage, write_manifest
from plm_jax.train.stored_arrays import quiet_orbax

ROOT = Path(__file__).resolve().parents[2]


class Leaf(nnx.Module):
  def __init__(self, seed, **shapes):
    draw = np.random.default_rng(seed)
    for name, shape in shapes.items():
      setattr(self, name, nnx.Param(jnp.asarray(draw.normal(size=shape), jnp.float32)))


class Model(nnx.Module):
  """Named as a small BERT's parameters are; `heads` are the names of the heads on top."""

  def __init__(self, seed, heads=("nsp",), width=16):
    self.token = Leaf(seed, table=(31, width))
    self.blocks = Leaf(seed)
    self.blocks.attention = Leaf(seed)
    self.blocks.attention.query = Leaf(seed, kernel=(2, width, 4, 4), bias=(2, 4, 4))
    for name in heads:
      setattr(self, name, Leaf(seed, kernel=(width, 2), bias=(2,)))


def make_state(seed=0, impl="threefry2x32"):
  params = Model(seed)
  return {
    "step": jnp.int32(seed),
    "params": params,
    "opt_state": optax.adamw(1e-3).init(params),
    "key": jax.random.split(jax.random.key(seed, impl=impl), 3),
    "half": jnp.full((3,), seed, jnp.bfloat16),
    "row": np.arange(3, dtype=np.int32),
  }


def split_over(state, mesh):
  """The state's shapes with their places on `mesh`."""
  known = {name: value for name, value in state.items() if name not in ("half", "row")}
  shardings = parameter_shardings(known, mesh)
  replicated = parameter_shardings({"any": jnp.int32(0)}, mesh)["any"]
  shardings |= {"half": replicated, "row": replicated}
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
  )


def assert_same(found, expected):
  def same(a, b):
    assert a.dtype == b.dtype
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

  jax.tree.map(same, found, expected)


def three_checkpoints(folder):
  with Checkpoints(folder, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step), {"position": step})
  return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return three_checkpoints(tmp_path_factory.mktemp("prepared") / "checkpoints")


@pytest.fixture
def run(prepared, tmp_path):
  """A fresh copy of three checkpoints, and the sentences reported about them."""
  shutil.copytree(prepared, tmp_path / "checkpoints")
  sentences = []
  return Checkpoints(tmp_path / "checkpoints", report=sentences.append), sentences


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_comes_back_as_it_was_with_its_random_keys(tmp_path, impl):
  state, meta = make_state(5, impl), {"position": 7, "config": {"name": "ünï"}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, state, meta)
    found, found_meta, step = checkpoints.restore(make_state(5, impl))
  assert (found_meta, step) == (meta, 5)
  assert_same(found, state)
  assert_same(jax.random.split(found["key"][0]), jax.random.split(state["key"][0]))
  assert jax.tree.structure(found) == jax.tree.structure(state)


@pytest.mark.parametrize("target", [(1, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 4)])
def test_a_checkpoint_of_eight_devices_restores_on_another_mesh(tmp_path, target):
  mesh = MeshShape(data=4, fsdp=2).build()
  state = jax.device_put(
    make_state(1), jax.tree.map(lambda s: s.sharding, split_over(make_state(1), mesh))
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
  shape = MeshShape(**dict(zip(("data", "fsdp", "tensor"), target)))
  abstract = split_over(make_state(1), shape.build(jax.devices()[: np.prod(target)]))
  found = Checkpoints(tmp_path).restore(abstract)[0]
  assert_same(found, make_state(1))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(abstract)):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path):
  spoil = jax.jit(lambda x: x * 0 - 7, donate_argnums=0)
  for mesh in (MeshShape(fsdp=8).build(), MeshShape().build(jax.devices()[:1])):
    sharding = parameter_shardings({"token": {"table": jnp.ones((512, 512))}}, mesh)
    expected = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
      for step in range(4):
        state = jax.device_put({"token": {"table": expected + step}}, sharding)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        checkpoints.save(step, state, {})
        for _ in range(3):
          state = jax.tree.map(spoil, state)
        found = checkpoints.restore(template)[0]
        np.testing.assert_array_equal(found["token"]["table"], expected + step)
    shutil.rmtree(tmp_path)


def test_a_directory_may_be_given_by_way_of_its_parent(tmp_path):
  (tmp_path / "inner").mkdir()
  with Checkpoints(tmp_path / "inner/../run") as checkpoints:
    checkpoints.save(1, {"x": jnp.ones(3)}, {})
  assert Checkpoints(tmp_path / "run").latest_good() == 1


def test_numbers_that_jax_would_narrow_are_refused_before_they_are_written(tmp_path):
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="a/b is int64"):
    checkpoints.save(1, {"a": {"b": np.arange(3)}}, {})


def test_only_the_newest_are_kept_and_a_known_step_is_not_written_again(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (10, 9, 100):
      checkpoints.save(step, {"a": jnp.full(3, step)}, {})
    checkpoints.save(100, {"a": jnp.zeros(3)}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [10, 100]
    assert checkpoints.restore({"a": jnp.zeros(3, int)})[0]["a"][0] == 100
  assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "100"]


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x20
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_harm_to_any_file_is_reported_and_the_checkpoint_before_it_is_used(run, harm):
  checkpoints, sentences = run
  folder, spare = checkpoints.directory / "3", checkpoints.directory.parent / "spare"
  shutil.copytree(folder, spare)
  files = [path for path in files_of(folder) if path.stat().st_size]
  assert len(files) > 5 and damage(folder) is None
  for path in files:
    harm(path)
    assert damage(folder), path
    fresh = Checkpoints(checkpoints.directory, report=sentences.append)
    assert fresh.latest_good() == 2
    assert str(folder) in sentences[-1] and "is skipped" in sentences[-1]
    shutil.rmtree(folder)
    shutil.copytree(spare, folder)
  assert len(sentences) == len(files)
  found, meta, step = Checkpoints(checkpoints.directory).restore(make_state())
  assert (meta, step) == ({"position": 3}, 3)
  assert_same(found, make_state(3))


def test_each_byte_of_the_manifest_counts(run):
  folder = run[0].directory / "3"
  manifest = (folder / "manifest").read_bytes()
  for place in range(0, len(manifest), 7):
    harmed = bytearray(manifest)
    harmed[place] ^= 1
    (folder / "manifest").write_bytes(harmed)
    assert damage(folder) == "has a damaged manifest"


def test_a_damaged_checkpoint_is_reported_once_and_replaced_by_the_next_save(run):
  checkpoints, sentences = run
  flip(checkpoints.directory / "3" / "checkpoint.json")
  assert checkpoints.restore(make_state())[2] == checkpoints.latest_good() == 2
  assert len(sentences) == 1
  with pytest.raises(UserError, match=r"3 is damaged in checkpoint.json; restore another step"):
    checkpoints.restore(make_state(), step=3)
  with checkpoints:
    checkpoints.save(3, make_state(3), {"position": 33})
  found, meta, step = Checkpoints(checkpoints.directory).restore(make_state())
  assert (meta, step) == ({"position": 33}, 3)
  assert_same(found, make_state(3))


def test_retention_never_trades_a_good_checkpoint_for_a_damaged_one(run):
  checkpoints, _ = run
  flip(checkpoints.directory / "3" / "checkpoint.json")
  with checkpoints:  # keeps 2
    assert checkpoints.latest_good() == 2
    checkpoints.save(25, make_state(2), {})
  assert [s for s in checkpoints.steps() if not damage(checkpoints.directory / str(s))] == [2, 25]


def test_without_any_good_checkpoint_the_run_is_refused_not_begun_again(run):
  checkpoints, _ = run
  for step in (1, 2, 3):
    flip(checkpoints.directory / str(step) / "checkpoint.json")
  with pytest.raises(UserError, match=r"all checkpoints in .* are damaged \(.*move this folder"):
    checkpoints.restore(make_state())


def test_a_half_written_checkpoint_is_reported_and_the_next_save_clears_it(run):
  checkpoints, sentences = run
  half = checkpoints.directory / "4.saving"
  shutil.copytree(checkpoints.directory / "3", half)
  assert checkpoints.latest_good() == 3
  assert sentences == [f"The checkpoint {half} is incomplete and is skipped."]
  assert half.exists()  # a reader beside a running training must not touch it
  with checkpoints:
    checkpoints.save(4, make_state(4), {})
  assert not half.exists() and checkpoints.steps() == [3, 4]


def test_a_run_killed_in_its_first_save_begins_again(tmp_path):
  (tmp_path / "1.saving").mkdir()
  assert Checkpoints(tmp_path, report=lambda _: None).latest_good() is None
  assert Checkpoints(tmp_path / "none").latest_good() is None
  with pytest.raises(UserError, match="there is no checkpoint in"):
    Checkpoints(tmp_path / "none").restore({})


SAVER = """
import sys, numpy as np
from plm_jax.train.checkpoint import Checkpoints
noise = np.random.default_rng(0).normal(size=(256, 1024)).astype(np.float32)
with Checkpoints(sys.argv[1]) as checkpoints:
  first = (checkpoints.latest_good() or 0) + 1
  for step in range(first, first + 1000):
    checkpoints.save(step, {"a": noise + step, "b": noise - step}, {"position": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_of_saving_loses_at_most_the_save_that_ran(tmp_path):
  noise = np.random.default_rng(0).normal(size=(256, 1024)).astype(np.float32)
  template = {"a": jnp.asarray(noise), "b": jnp.asarray(noise)}
  last = 0
  for announced in (1, 2, 4):  # killed after so many saves were begun
    process = subprocess.Popen(
      [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    for _ in range(announced):
      begun = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    sentences = []
    checkpoints = Checkpoints(tmp_path, report=sentences.append)
    step = checkpoints.latest_good() or 0
    assert max(last, begun - 1) <= step <= begun + 1
    assert all("is incomplete" in sentence for sentence in sentences)
    if step:
      found, meta, _ = checkpoints.restore(template)
      assert meta == {"position": step}
      assert_same(found, {"a": jnp.asarray(noise + step), "b": jnp.asarray(noise - step)})
    last = step
  assert last > 0


def test_a_state_that_does_not_fit_is_refused_by_name(run):
  checkpoints, _ = run
  other = make_state() | {"extra": jnp.zeros(2), "half": jnp.zeros(3)}
  other["params"] = Model(0, width=8)
  del other["row"]
  with pytest.raises(UserError) as error:
    checkpoints.restore(other)
  sentence = str(error.value)
  assert "half should be float32[3] and is bfloat16[3]" in sentence
  assert "params/token/table should be float32[31, 8] and is float32[31, 16]" in sentence
  assert "float32[31, 16]; extra is missing; and 1 more. Use" in sentence
  with pytest.raises(UserError, match=r"extra is missing; row is not in the model"):
    state = make_state() | {"extra": jnp.zeros(2)}
    del state["row"]
    checkpoints.restore(state)


def test_a_newer_format_is_named(run):
  folder = run[0].directory / "3"
  index = json.loads((folder / "checkpoint.json").read_text())
  (folder / "checkpoint.json").write_text(json.dumps(index | {"format": 99}))
  (folder / "manifest").unlink()
  write_manifest(folder)
  with pytest.raises(UserError, match="has format 99, this plm_jax reads up to 1; update"):
    run[0].restore(make_state())


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/3"])
def test_parameters_alone_are_found_from_a_run_its_checkpoints_or_one_step(run, place):
  root = run[0].directory.parent
  model = Model(9, heads=("classes",))
  found = restore_parameters(
    root / place, model, allow_missing=["classes/*"], allow_unused=["nsp/*"]
  )
  assert found.fresh == ["classes/bias", "classes/kernel"]
  assert found.unused == ["nsp/bias", "nsp/kernel"]
  assert found.meta == {"position": 3}
  assert_same(found.params.token, Model(3).token)
  assert_same(found.params.blocks, Model(3).blocks)
  assert_same(found.params.classes, model.classes)


def test_parameters_that_nobody_allowed_to_differ_are_refused(run):
  root, new = run[0].directory, Model(9, heads=("classes",))
  with pytest.raises(UserError, match="params/classes/bias is missing"):
    restore_parameters(root, new, allow_unused=["nsp/*"])
  with pytest.raises(UserError, match="params/nsp/bias is not in the model"):
    restore_parameters(root, new, allow_missing=["classes/*"])
  with pytest.raises(UserError, match="params/token/table should be float32"):
    restore_parameters(root, Model(9, width=8))
  with pytest.raises(UserError, match="does not exist; expected a run"):
    restore_parameters(root / "nowhere", new)
  with pytest.raises(UserError, match="no finished checkpoint in"):
    restore_parameters(root / "3" / "state", new)


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    Checkpoints(tmp_path / "file") as checkpoints,
    pytest.raises(UserError, match="could not be written"),
  ):
    checkpoints.save(1, {"a": jnp.zeros(3)}, {})


LIMITED = """
import resource, sys, numpy as np
from plm_jax.errors import UserError
from plm_jax.train.checkpoint import Checkpoints
noise = np.random.default_rng(0).normal(size=(30, 256, 256)).astype(np.float32)
state = {f"a{i}": part for i, part in enumerate(noise)}  # many files are on their way at once
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, state, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
  checkpoints.save(2, state, {})
  checkpoints.close()
except UserError as error:
  print(error)
"""


@pytest.mark.slow
def test_a_full_disk_ends_in_one_sentence_and_leaves_the_checkpoint_before(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", LIMITED, str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {"PYTHONUNBUFFERED": "1"},
    check=False,
  )
  assert done.returncode == 0 and done.stderr == ""
  assert "2.saving could not be written (File too large)" in done.stdout
  # Files that were still being written may leave an incomplete one, which is never read.
  assert {"1"} <= {path.name for path in tmp_path.iterdir()} <= {"1", "2.saving"}
  assert damage(tmp_path / "1") is None


def test_of_several_files_that_cannot_be_written_one_is_told(caplog):
  """asyncio logs an error that nobody has read: a second file on a full disk."""
  quiet_orbax()
  for text, told in (("no space [os_error_code='28']", False), ("another defect", True)):
    about = {"exc_info": (ValueError, ValueError(text), None)}
    logging.getLogger("asyncio").error("Future exception was never retrieved", **about)
    assert bool(caplog.records) == told


def test_a_checkpoint_of_another_run_or_step_is_skipped(run, tmp_path):
  checkpoints, sentences = run
  folder = checkpoints.directory
  with Checkpoints(folder, keep=9, run="ours") as own:
    own.save(4, make_state(4), {})
  shutil.copytree(folder / "4", folder / "6")  # the step of another name
  with Checkpoints(tmp_path / "other", run="theirs") as others:
    others.save(5, make_state(5), {})
  shutil.copytree(tmp_path / "other" / "5", folder / "5")
  again = Checkpoints(folder, report=sentences.append, run="ours")
  assert again.latest_good() == 4
  assert ["6 is that of step 4" in sentences[0], "5 belongs to another run" in sentences[1]] == [
    1,
    1,
  ]
  with pytest.raises(UserError, match="5 belongs to another run; restore another step"):
    again.restore(make_state(), 5)
  shutil.rmtree(folder / "4")
  assert Checkpoints(folder, report=sentences.append, run="ours").latest_good() == 3  # says nothing


def test_a_link_is_neither_followed_nor_removed_with_what_it_leads_to(run, tmp_path):
  checkpoints, sentences = run
  folder = checkpoints.directory
  (folder / "3").rename(tmp_path / "elsewhere")
  (folder / "3").symlink_to(tmp_path / "elsewhere")
  (folder / "4.saving").symlink_to(tmp_path / "elsewhere")
  with checkpoints:
    assert checkpoints.latest_good() == 2
    assert "3 is a link, which is not followed and is skipped" in sentences[-1]
    checkpoints.save(3, make_state(3), {})
  assert damage(folder / "3") is None and not (folder / "3").is_symlink()
  assert damage(tmp_path / "elsewhere") is None
  for step in checkpoints.steps():
    shutil.rmtree(folder / str(step))
  (folder / "3").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
    Checkpoints(folder, report=sentences.append).latest_good()


def test_only_plain_decimal_names_are_steps(run):
  folder = run[0].directory
  for name in ("١٨", "018", "+7", "9" * 30, "1_0"):
    (folder / name).mkdir()
  (folder / "8").write_text("a file")
  assert run[0].steps() == [1, 2, 3]
  with run[0]:
    run[0].save(8, make_state(8), {})  # in the place of the file
    run[0].wait()
    assert run[0].latest_good() == 8


@pytest.mark.parametrize("name", ["lr[1e-3]", "what?", "all*"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused_before_anything_is_written(
  tmp_path, name
):
  with pytest.raises(UserError, match="choose a name without these characters"):
    Checkpoints(tmp_path / name / "checkpoints").save(1, make_state(), {})
  assert not (tmp_path / name).exists()


def test_a_checkpoint_that_cannot_be_read_back_gets_no_manifest(tmp_path, monkeypatch):
  # For a path that it takes for a pattern, Orbax writes arrays that its index lacks.
  monkeypatch.setattr("plm_jax.train.checkpoint.check_name", lambda path: None)
  with (
    pytest.raises(ValueError, match="cannot be read again: it lacks half"),
    Checkpoints(tmp_path / "a[b]") as checkpoints,
  ):
    checkpoints.save(1, make_state(), {})
  assert checkpoints.steps() == []


def test_the_logs_of_a_checkpoint_come_back_and_count_as_part_of_it(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(), {}, logs={"metrics.jsonl": "ünï\n", "spikes.jsonl": ""})
  assert Checkpoints(tmp_path).logs(1) == {"metrics.jsonl": "ünï\n", "spikes.jsonl": ""}
  flip(tmp_path / "1" / "logs" / "metrics.jsonl")
  assert damage(tmp_path / "1") == "is damaged in logs/metrics.jsonl"


def test_protected_checkpoints_stay_besides_the_newest(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.save(step, {"a": jnp.zeros(3)}, {}, protected={2})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4]
    checkpoints.remove_after(2)
    assert checkpoints.steps() == [2]


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
  broken = Model(0)
  broken.token.table.set_value(broken.token.table.get_value().at[3, 4].set(jnp.nan))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"params": broken}, {})
  with pytest.raises(UserError, match=r"params/token/table of .* numbers that are not finite"):
    restore_parameters(tmp_path, Model(0))
