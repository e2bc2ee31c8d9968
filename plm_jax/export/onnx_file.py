"""Runs as ONNX files: written, checked in ONNX Runtime against JAX, and quantised to int8."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export.onnx_convert import convert
from plm_jax.export.onnx_graph import IR_VERSION, OPSET, Graph, Tensor
from plm_jax.export.portable import Portable, portable
from plm_jax.runs import Run

TOLERANCE = 1e-4
SHAPES = ((1, 7), (3, 16), (2, 33), (5, 9))  # rows and tokens of the check
MOST_BYTES = 1_800_000_000  # of a single file; larger weights go beside it


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """A file that was written and checked.

  size: bytes on disk, weights beside it included. inputs, outputs: name -> dimensions, of which
  strings are dynamic. difference: the largest from our outputs (of int8 relative to their norm).
  int8: the quantised file.
  """

  path: Path
  size: int
  inputs: Mapping[str, tuple]
  outputs: Mapping[str, tuple]
  difference: float
  int8: OnnxFile | None = None


def write_onnx(run: Run, path: Path, int8: bool = False) -> OnnxFile:
  """Writes a run's forward pass to a new file and checks it in ONNX Runtime on rows of several
  lengths. int8: also writes NAME.int8.onnx, with weights quantised per channel and activations when
  it runs. Errors: `UserError`, and no file is left, if a library is missing, the model has an
  operation without a rule, or an output differs by more than `TOLERANCE`."""
  return write_portable(portable(run), path, int8)


def write_portable(model: Portable, path: Path, int8: bool = False) -> OnnxFile:
  """As `write_onnx`."""
  path, quantised = Path(path), Path(path).with_suffix(".int8.onnx")
  onnx, _ = library("onnx"), library("onnxruntime")
  graph, outputs = convert(model.function, model.params, model.inputs)
  with _removed_on_error(path, *([quantised] if int8 else [])):
    _save(onnx, graph, outputs, path)
    facts = {
      "inputs": {tensor.name: _shown(tensor.shape) for tensor in graph.inputs},
      "outputs": {name: _shown(tensor.shape) for name, tensor in outputs.items()},
    }
    difference = _checked(model, path)
    small = None
    if int8:
      _quantise(path, quantised)
      small = OnnxFile(quantised, size_of(quantised), **facts, difference=_error(model, quantised))
    return OnnxFile(path, size_of(path), **facts, difference=difference, int8=small)


def library(name: str) -> ModuleType:
  """A library of the extra `onnx`. Errors: `UserError` if it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(
      f"{name} is not installed; install the extra: pip install 'plm_jax[onnx]'"
    ) from None


def session(path: Path) -> Any:
  """ONNX Runtime's session of a file, on the CPU."""
  runtime = library("onnxruntime")
  options = runtime.SessionOptions()
  options.log_severity_level = 3
  return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(opened: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The outputs by name. Inputs that the graph does not read are left out."""
  taken = {tensor.name for tensor in opened.get_inputs()}
  names = [tensor.name for tensor in opened.get_outputs()]
  made = opened.run(names, {name: array for name, array in inputs.items() if name in taken})
  return dict(zip(names, made))


def size_of(path: Path) -> int:
  """The bytes of a file and of its weights beside it."""
  return sum(part.stat().st_size for part in parts_of(path) if part.exists())


def parts_of(path: Path) -> list[Path]:
  return [path, path.with_name(path.name + ".data")]


@contextlib.contextmanager
def _removed_on_error(*paths: Path) -> Iterator[None]:
  for path in paths:
    if path.exists():
      raise UserError(f"{path} already exists; choose another name.")
  try:
    yield
  except BaseException as error:
    for path in paths:
      for part in parts_of(path):
        part.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise UserError(f"{paths[0]} cannot be written ({error.strerror or error}).") from None
    raise


def _shown(shape: tuple) -> tuple:
  return tuple(size if isinstance(size, int) else str(size) for size in shape)


def _save(onnx: ModuleType, graph: Graph, outputs: Mapping[str, Tensor], path: Path) -> None:
  helper, named = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
  nodes, constants = graph.needed(list(outputs.values()))

  def info(name: str, tensor: Tensor):
    return helper.make_tensor_value_info(name, named(tensor.dtype), _shown(tensor.shape))

  made = [
    helper.make_node(
      node.kind,
      [tensor.name for tensor in node.inputs],
      [name],
      name,
      **{k: named(v) if isinstance(v, np.dtype) else v for k, v in node.attributes},
    )
    for name, node in nodes.items()
  ]
  made += [helper.make_node("Identity", [t.name], [name], name) for name, t in outputs.items()]
  proto = helper.make_graph(
    made,
    "plm_jax",
    [info(tensor.name, tensor) for tensor in graph.inputs],
    [info(name, tensor) for name, tensor in outputs.items()],
    [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
  )
  opset = helper.make_opsetid("", OPSET)
  model = helper.make_model(
    proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="plm_jax"
  )
  beside = sum(array.nbytes for array in constants.values()) > MOST_BYTES
  onnx.save_model(model, str(path), save_as_external_data=beside, location=parts_of(path)[1].name)


def _examples(model: Portable) -> Iterator[tuple[dict, dict]]:
  """Inputs of several shapes, and our outputs."""
  for seed, (rows, tokens) in enumerate(SHAPES):
    inputs = model.example(rows, min(tokens, model.longest), seed)
    yield inputs, model(**inputs)


def _checked(model: Portable, path: Path) -> float:
  """The largest difference from our outputs. Errors: `UserError` if it is too large."""
  opened, worst = session(path), 0.0
  for inputs, ours in _examples(model):
    theirs = run_session(opened, inputs)
    for name, array in ours.items():
      difference = float(np.abs(theirs[name] - array).max())
      if not difference <= TOLERANCE:  # also for NaN
        raise UserError(
          f"the output {name} of ONNX Runtime differs from ours by {difference:.2g} on rows of the "
          f"shape {list(inputs['input_ids'].shape)}; at most {TOLERANCE} is allowed, so no file "
          "was written. Please report this."
        )
      worst = max(worst, difference)
  return worst


def _quantise(path: Path, target: Path) -> None:
  quantization = library("onnxruntime.quantization")
  quantization.quantize_dynamic(
    path,
    target,
    per_channel=True,
    weight_type=quantization.QuantType.QInt8,
    use_external_data_format=parts_of(path)[1].exists(),
  )


def _error(model: Portable, path: Path) -> float:
  """The largest error of an output relative to its norm, over the rows of the check."""
  opened, worst = session(path), 0.0
  for inputs, ours in _examples(model):
    theirs = run_session(opened, inputs)
    for name, array in ours.items():
      error = np.linalg.norm(theirs[name] - array) / max(np.linalg.norm(array), 1e-12)
      worst = max(worst, float(error))
  return worst
