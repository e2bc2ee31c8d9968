"""`pytorch_model.bin` without torch: a zip of numbers, and a pickle that may only ask for tensors.

Source: torch/serialization.py and torch/_utils.py (`_rebuild_tensor_v2`). The pickle gives for
each tensor its storage, offset, shape and strides; a storage is a file in the zip. A pickle can
call any Python function. This one reaches only four names, which are replaced by functions of this
file; any other name is refused before anything is called. Its instructions are read beforehand, so
that none asks for more memory than the file has. Tensors are views of their storage.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from plm_jax.errors import UserError

DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "DoubleStorage": np.dtype("<f8"),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}


MOST_PICKLE = 64 << 20  # bytes of names and shapes; a checkpoint of 1,000 tensors has 0.1 MB
MOST_SHARED = 16  # times the bytes of a file that its tensors may have together
MOST_DIMENSIONS = 32
# The instructions of `torch.save` for dicts of tensors.
_OPCODES = """
PROTO FRAME MARK STOP POP EMPTY_DICT EMPTY_TUPLE EMPTY_LIST DICT SETITEM SETITEMS APPEND APPENDS
TUPLE TUPLE1 TUPLE2 TUPLE3 LIST NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT
BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING GLOBAL STACK_GLOBAL
REDUCE BUILD BINPERSID PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
OPCODES = frozenset(_OPCODES.split())


class Storage(NamedTuple):
  """Stands in for torch's storage classes, of which only the dtype is needed."""

  dtype: np.dtype


def read_torch_file(file: Path) -> dict[str, np.ndarray]:
  """The state dict in a file that `torch.save` wrote (torch 1.6 or later).

  Errors: `UserError` if the file is damaged, older, or asks for anything but tensors.
  """
  try:
    with zipfile.ZipFile(file) as archive:
      return _state_dict(archive, file)
  except UserError:
    raise
  except zipfile.BadZipFile as error:
    raise UserError(
      f"{file} is cut off, damaged, or older than torch 1.6 ({error}); load it in torch and save "
      "it again, or take the .safetensors file."
    ) from None
  except Exception as error:  # a damaged pickle fails in as many ways as it has instructions
    raise UserError(
      f"{file} is damaged ({type(error).__name__}: {error}); fetch it again."
    ) from None


def _state_dict(archive: zipfile.ZipFile, file: Path) -> dict[str, np.ndarray]:
  entries = {entry.filename: entry for entry in archive.infolist()}
  pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
  if len(pickles) != 1:
    raise UserError(f"{file} is a zip, but torch.save did not write it: it has no data.pkl.")
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
    raise UserError(f"{file} is a compressed zip, which torch.save never writes; fetch it again.")
  root = pickles[0].removesuffix("data.pkl")
  order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
  if order != b"little":
    raise UserError(f"{file} was written on a machine of another byte order; take .safetensors.")
  if sum(entry.file_size for entry in entries.values()) > file.stat().st_size:
    raise UserError(f"{file} is damaged: its parts are larger than the file; fetch it again.")
  if entries[pickles[0]].file_size > MOST_PICKLE:
    raise UserError(f"{file} has more than {MOST_PICKLE:,} bytes of names; it is refused.")
  instructions = archive.read(pickles[0])
  check_instructions(instructions, file)
  state = _Tensors(io.BytesIO(instructions), archive, root, file).load()
  named = isinstance(state, dict) and all(
    isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items()
  )
  if not named:
    raise UserError(f"{file} is not a checkpoint of weights: it has no dict of named tensors.")
  size = sum(array.nbytes for array in state.values())
  if size > MOST_SHARED * file.stat().st_size:
    raise UserError(f"{file} has tensors of {size:,} bytes that share few; it is refused.")
  return dict(state)


def check_instructions(instructions: bytes, file: Path) -> None:
  """Errors: `UserError` for an instruction that no dict of tensors needs, or that numbers an object
  beyond the length of the pickle: Python would make a table of that size."""
  for opcode, argument, _ in pickletools.genops(instructions):
    if opcode.name not in OPCODES:
      raise UserError(
        f"{file} has the instruction {opcode.name}, and a checkpoint needs only tensors; it was "
        "refused, and nothing was executed."
      )
    if opcode.name.endswith("PUT") and not 0 <= int(argument) <= len(instructions):
      raise UserError(f"{file} numbers an object {argument}, beyond its length; it is refused.")


class _Tensors(pickle.Unpickler):
  """Unpickles dicts of tensors and nothing else."""

  def __init__(self, stream, archive: zipfile.ZipFile, root: str, file: Path):
    super().__init__(stream)
    self._archive, self._root, self._file = archive, root, file
    self._storages: dict[str, np.ndarray] = {}

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _View()
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return _Parameter()
    if module == "torch" and name in DTYPES:
      return Storage(DTYPES[name])
    raise UserError(
      f"{self._file} asks for {module}.{name}, but a checkpoint needs only tensors; it was "
      "refused, and nothing was executed."
    )

  def persistent_load(self, pid: Any) -> np.ndarray:
    kind, storage, key, _, count = pid
    if kind != "storage" or not isinstance(storage, Storage):
      raise ValueError(f"unknown object {kind!r}")
    if key not in self._storages:
      data = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage.dtype)
      if len(data) < count:
        raise ValueError(f"{key} has {len(data)} numbers instead of {count}")
      self._storages[key] = data
    return self._storages[key]


# Callables without a `__dict__`: a pickle may also set attributes of the objects that it gets.


class _View:
  """The tensor, a view of its storage, after a check that it lies within."""

  __slots__ = ()

  def __call__(self, storage, offset, shape, strides, *_) -> np.ndarray:
    if max(len(shape), len(strides)) > MOST_DIMENSIONS:
      raise ValueError("a tensor of too many dimensions")
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, np.ndarray) or any(type(n) is not int or n < 0 for n in numbers):
      raise ValueError("a tensor of impossible shape")
    count = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if not count:
      return np.zeros(shape, storage.dtype)
    if last >= len(storage) or count > len(storage):
      raise ValueError("a tensor reaches beyond its storage")
    in_bytes = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, in_bytes, writeable=False)


class _Parameter:
  """Returns a trainable tensor unchanged."""

  __slots__ = ()

  def __call__(self, data, *_) -> np.ndarray:
    return data
