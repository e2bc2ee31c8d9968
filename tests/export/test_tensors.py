"""Weights are read from both formats without torch, and a file that is no weights runs nothing."""

import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.export.tensors import check_finite, read_tensors, write_safetensors

TENSORS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
  "a.half": np.arange(4).astype(ml_dtypes.bfloat16),
  "ids": np.arange(5),
  "scalar": np.float32(3).reshape(()),
}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)


def torch_zip(path, payload: bytes, files=(), **options):
  with zipfile.ZipFile(path, "w", **options) as archive:
    archive.writestr("archive/data.pkl", payload)
    for name, data in files:
      archive.writestr(f"archive/{name}", data)


class Called:
  """A pickle of this calls `function(*arguments)`."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def state_dict(shape, strides, offset=0, storage=4):
  """The pickle of {"w": a tensor of float32 that views `storage` numbers}, as torch writes it."""
  out = io.BytesIO()
  out.write(b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(")
  out.write(
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
  )
  out.write(b"K%ctQ" % storage)
  for numbers in (offset, shape, strides):
    out.write(pickle.dumps(numbers, protocol=2)[2:-1])
  out.write(b"\x89}tRs.")
  return out.getvalue()


def test_safetensors_come_back_bit_for_bit(tmp_path):
  write_safetensors(tmp_path / "model.safetensors", TENSORS)
  assert_same(read_tensors(tmp_path), TENSORS)


def test_a_sharded_checkpoint_is_the_union_of_its_files(tmp_path):
  place = {}
  for number, (name, array) in enumerate(TENSORS.items()):
    place[name] = f"model-{number:05}.safetensors"
    write_safetensors(tmp_path / place[name], {name: array})
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": place}))
  assert_same(read_tensors(tmp_path), TENSORS)

  (tmp_path / place["ids"]).unlink()
  with pytest.raises(UserError, match=r"names model-00002\.safetensors, which is not in"):
    read_tensors(tmp_path)
  index.write_text(json.dumps({"weight_map": {"ids": "../model.safetensors"}}))
  with pytest.raises(UserError, match="not a file beside it"):
    read_tensors(tmp_path)
  index.write_text(json.dumps({"weight_map": {"other": place["scalar"]}}))
  with pytest.raises(UserError, match=r"names other, but model-00003\.safetensors does not have"):
    read_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 30, 200, -1])
def test_a_file_that_was_cut_off_is_one_sentence(kept, tmp_path):
  whole = tmp_path / "whole"
  write_safetensors(whole, TENSORS)
  (tmp_path / "model.safetensors").write_bytes(whole.read_bytes()[:kept])
  with pytest.raises(UserError, match="cut off, damaged"):
    read_tensors(tmp_path)


def test_a_flipped_byte_of_the_zip_is_one_sentence(tmp_path):
  file = tmp_path / "pytorch_model.bin"
  torch_zip(file, state_dict((2, 2), (2, 1)), [("data/0", np.arange(4, dtype="<f4").tobytes())])
  np.testing.assert_array_equal(read_tensors(tmp_path)["w"], [[0, 1], [2, 3]])
  good = file.read_bytes()
  for at in range(0, len(good), 7):
    file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
    try:  # a byte that says when a file was written changes nothing
      np.testing.assert_array_equal(read_tensors(tmp_path)["w"], [[0, 1], [2, 3]])
    except UserError as error:
      assert "damaged" in str(error) or "torch" in str(error)
    file.write_bytes(good[:at])
    with pytest.raises(UserError, match="cut off, damaged"):
      read_tensors(tmp_path)


def test_views_of_a_storage_keep_offset_and_strides(tmp_path):
  numbers = np.arange(6, dtype="<f4")
  payload = state_dict((2, 2), (1, 3), offset=1, storage=6)
  torch_zip(tmp_path / "pytorch_model.bin", payload, [("data/0", numbers.tobytes())])
  np.testing.assert_array_equal(read_tensors(tmp_path)["w"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
  ("shape", "strides", "offset"),
  [((5,), (1,), 0), ((2,), (1,), 3), ((-1,), (1,), 0), ((2,), (-1,), 1), ((1 << 40,), (0,), 0)],
)
def test_no_tensor_reaches_beyond_its_storage(shape, strides, offset, tmp_path):
  file = tmp_path / "pytorch_model.bin"
  torch_zip(file, state_dict(shape, strides, offset), [("data/0", bytes(16))])
  with pytest.raises(UserError, match="damaged"):
    read_tensors(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__])
def test_a_hostile_pickle_is_refused_and_nothing_is_executed(function, protocol, tmp_path):
  trace = tmp_path / "executed"
  call = Called(
    function, f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
  )
  payload = pickle.dumps({"weight": call}, protocol=protocol)
  torch_zip(tmp_path / "pytorch_model.bin", payload)
  with pytest.raises(UserError, match="nothing was executed"):
    read_tensors(tmp_path)
  assert not trace.exists()


HOSTILE = {
  "old instance": b"(S'true'\nios\nsystem\n.",
  "attribute of an allowed class": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
  "extension registry": b"\x80\x02\x82\x01.",
  "attributes of an allowed function": (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__)stb."
  ),
  "own kind of object": b"\x80\x02(X\x04\x00\x00\x00fileX\x01\x00\x00\x00xtQ.",
  "no table": pickle.dumps([1, 2]),
  "no tensors": pickle.dumps({"a": 1}),
  "cut off": pickle.dumps({"a": 1})[:-3],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_other_ways_in_are_closed(what, tmp_path):
  torch_zip(tmp_path / "pytorch_model.bin", HOSTILE[what])
  with pytest.raises(UserError):
    read_tensors(tmp_path)


def test_a_pickle_is_refused_before_it_makes_a_large_table(tmp_path):
  """LONG_BINPUT with a number: Python makes a table with as many places, 16 GB."""
  torch_zip(tmp_path / "pytorch_model.bin", b"\x80\x02Nr\xff\xff\xff\x3f.")
  with pytest.raises(UserError, match="numbers an object 1073741823, beyond its length"):
    read_tensors(tmp_path)


def test_tensors_share_their_storage_and_their_sizes_are_summed(tmp_path):
  """Tied tensors are one array; 4,000 names of one storage of 4 MB would be 16 GB."""
  one = state_dict((4,), (1,))
  rebuilt = one[one.index(b"ctorch._utils") : -2]
  for count in (2, 600):
    names = [b"X\x04\x00\x00\x00%04d" % i for i in range(count)]
    payload = b"\x80\x02}(" + b"".join(name + rebuilt for name in names) + b"u."
    file = tmp_path / str(count) / "pytorch_model.bin"
    file.parent.mkdir()
    size = 4 if count == 2 else 1 << 14
    payload = payload.replace(b"K\x04ctQ", b"J%sctQ" % size.to_bytes(4, "little"))
    payload = payload.replace(pickle.dumps((4,), 2)[2:-1], b"J%s\x85" % size.to_bytes(4, "little"))
    torch_zip(file, payload, [("data/0", bytes(4 * size))])
  tensors = read_tensors(tmp_path / "2")
  assert np.shares_memory(tensors["0000"], tensors["0001"])
  with pytest.raises(UserError, match="39,321,600 bytes that share few"):
    read_tensors(tmp_path / "600")


def test_weights_are_files_of_their_folder(tmp_path):
  os.mkfifo(tmp_path / "model.safetensors")
  with pytest.raises(UserError, match="is a FIFO"):
    read_tensors(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  (tmp_path / "model.safetensors").symlink_to("/etc/hostname")
  with pytest.raises(UserError, match=r"is a link to /etc/hostname, outside"):
    read_tensors(tmp_path)


def test_weights_that_are_not_finite_are_told_by_name():
  for value in (np.nan, np.inf):
    with pytest.raises(UserError, match="b in x has numbers that are not finite"):
      check_finite({"a": np.zeros(2), "b": np.array([0, value], ml_dtypes.bfloat16)}, "x")


def test_a_zip_that_would_blow_up_is_refused(tmp_path):
  file = tmp_path / "pytorch_model.bin"
  torch_zip(file, bytes(10**6), compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match="compressed"):
    read_tensors(tmp_path)


def test_a_folder_without_weights_says_what_is_expected(tmp_path):
  with pytest.raises(UserError, match=r"expected model\.safetensors or pytorch_model\.bin"):
    read_tensors(tmp_path)


def test_what_torch_saves_is_read_bit_for_bit(tmp_path):
  torch = pytest.importorskip("torch")
  state = {
    "plain": torch.randn(3, 4),
    "transposed": torch.randn(5, 6).t(),
    "slice": torch.randn(8, 3)[2:5],
    "bfloat16": torch.randn(7, 2).bfloat16(),
    "half": torch.randn(3).half(),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "scalar": torch.randn(()),
    "ids": torch.arange(5)[None],
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
  }
  state["same"] = state["plain"]
  torch.save(torch.nn.Module.state_dict(torch.nn.ParameterDict({})) | state, tmp_path / "x.bin")
  (tmp_path / "x.bin").rename(tmp_path / "pytorch_model.bin")
  found = read_tensors(tmp_path)
  assert found.keys() == state.keys()
  for name, tensor in state.items():
    wide = tensor.detach().to(torch.float64).numpy()
    np.testing.assert_array_equal(found[name].astype(np.float64), wide, err_msg=name)
