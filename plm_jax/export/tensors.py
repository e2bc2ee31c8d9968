"""The tensors of a published checkpoint: name -> numpy array, read and written without torch.

Sources: the safetensors format (github.com/safetensors/safetensors, README); the index of a sharded
checkpoint as transformers writes it, {"weight_map": {tensor: file}}; `torch_file` for the rest.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  makes bfloat16 a dtype that numpy knows by name
import numpy as np
import safetensors
import safetensors.numpy

from plm_jax.data.published_folder import file_in, read_object
from plm_jax.errors import UserError
from plm_jax.export.torch_file import read_torch_file

# In the order of the search: the first existing file is read.
SINGLE = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
  """All tensors of the checkpoint in a folder, in their stored dtypes.

  Errors: `UserError` without a checkpoint, or for a damaged file or one with more than tensors.
  """
  for name, read in ((SINGLE, read_safetensors), (TORCH, read_torch_file)):
    if file := file_in(folder, name):
      return read(file)
    if index := file_in(folder, name + INDEX):
      return _read_shards(index, read)
  files = sorted(folder.glob("*.safetensors"))
  if len(files) == 1:
    return read_safetensors(file_in(folder, files[0].name))
  raise UserError(f"there are no weights in {folder}; expected {SINGLE} or {TORCH}, or its index.")


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
  """The tensors of one file. The format is lengths and bytes: nothing in it can be executed."""
  try:
    with safetensors.safe_open(file, framework="numpy") as opened:
      return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no dict
  except safetensors.SafetensorError as error:
    raise UserError(f"{file} is cut off, damaged or not a safetensors file ({error}).") from None
  except (OSError, TypeError, AttributeError, KeyError) as error:
    raise UserError(f"{file} cannot be read ({error}).") from None


def write_safetensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a file for transformers; {"format": "pt"}: names are torch's. Errors: `OSError`."""
  contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
  try:
    safetensors.numpy.save_file(contiguous, file, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    raise OSError(None, str(error), str(file)) from None
  os.umask(mask := os.umask(0))
  file.chmod(0o666 & ~mask)  # safetensors lets only the owner read it


def _read_shards(index: Path, read: Callable[[Path], dict]) -> dict[str, np.ndarray]:
  place = read_object(index).get("weight_map")
  if not isinstance(place, dict) or not all(isinstance(name, str) for name in place.values()):
    raise UserError(f"{index} has no weight_map from tensors to files; fetch it again.")
  tensors = {}
  for name in sorted(set(place.values())):
    if Path(name).name != name:
      raise UserError(f"{index} names {name!r}, which is not a file beside it.")
    if not (file := file_in(index.parent, name)):
      raise UserError(f"{index} names {name}, which is not in {index.parent}; fetch that file too.")
    tensors |= read(file)
  missing = sorted(place.keys() - tensors.keys())
  if missing:
    raise UserError(f"{index} names {missing[0]}, but {place[missing[0]]} does not have it.")
  return tensors


def check_finite(tensors: Mapping[str, np.ndarray], where: Path) -> None:
  """Errors: `UserError` naming a tensor with NaN or infinite numbers."""
  for name, array in tensors.items():
    if not np.isfinite(array).all():
      raise UserError(
        f"{name} in {where} has numbers that are not finite (NaN or infinite): the model was "
        "damaged or its training failed; take another checkpoint."
      )
