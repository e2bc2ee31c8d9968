"""Runs as ONNX files: written, checked in ONNX Runtime against JAX, and quantised to int8."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from plm_jax.errors import UserError
from plm_jax.export import cached
from plm_jax.export.agreement import (
  Arrays,
  Difference,
  cached_difference,
  check,
  differences,
  reference,
)
from plm_jax.export.onnx_convert import convert
from plm_jax.export.onnx_graph import IR_VERSION, OPSET, Graph, Tensor
from plm_jax.export.onnx_int8 import quantise_dynamic, quantise_static
from plm_jax.export.onnx_library import library, parts_of
from plm_jax.export.portable import Portable, portable
from plm_jax.runs import Run

MOST_BYTES = 1_800_000_000  # of a single file; larger weights go beside it


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """A file that was written and checked.

  size: bytes on disk, weights beside it included. inputs, outputs: name -> dimensions, of which
  strings are dynamic. difference: the largest from the outputs of JAX. error: of the worst output,
  relative to its norm. smaller: the quantised files.
  """

  path: Path
  size: int
  inputs: Mapping[str, tuple]
  outputs: Mapping[str, tuple]
  difference: float
  error: float
  smaller: tuple[OnnxFile, ...] = ()


def write_onnx(
  run: Run, path: Path, int8: bool = False, calibration: Sequence[Arrays] = ()
) -> OnnxFile:
  """Writes a run's forward pass to a new file and checks it in ONNX Runtime on rows of several
  lengths. int8: also writes NAME.int8.onnx, with weights quantised per channel and activations when
  it runs. calibration: rows for which also NAME.static8.onnx is written, whose activations have the
  scales that these rows need. Errors: `UserError`, and no file is left, if a library is missing,
  the model has an operation without a rule, or an output differs by more than the tolerance."""
  path = Path(path)
  ways = {".int8.onnx": quantise_dynamic} if int8 else {}
  if calibration:
    ways[".static8.onnx"] = functools.partial(quantise_static, rows=calibration)
  makes = {path.with_suffix(suffix): way for suffix, way in ways.items()}
  model = portable(run)
  with _removed_on_error(path, *makes):
    graph, ref = save_graph(model, path), reference(model)
    apart, smaller = differences(ref, runner(path)), []
    check(apart, path.name)
    for target, quantise in makes.items():
      quantise(path, target)
      smaller.append(_facts(target, graph, differences(ref, runner(target))))
    return _facts(path, graph, apart, tuple(smaller))


def write_cached(run: Run, directory: Path) -> list[OnnxFile]:
  """Writes the graphs for generation, `decoder_with_past_model.onnx` and of an encoder-decoder also
  `encoder_model.onnx`, and checks their logits against those of the forward pass. Errors: as
  `write_onnx`, and for a run that does not predict the next token."""
  models = {"decoder_with_past_model": cached.step(run)}
  if hasattr(run.config, "source_ids"):
    models["encoder_model"] = cached.source(run)
  paths = [directory / f"{name}.onnx" for name in models]
  with _removed_on_error(*paths):
    graphs = [save_graph(model, path) for model, path in zip(models.values(), paths)]
    apart = {"logits": cached_difference(reference(portable(run)), run.config, *map(runner, paths))}
    check(apart, paths[0].name)
    return [_facts(path, graph, apart) for path, graph in zip(paths, graphs)]


def runner(path: Path) -> Callable[[Arrays], Arrays]:
  """The function of a file in ONNX Runtime on the CPU: arrays by name in, arrays by name out.
  Inputs that the file does not have are left out."""
  runtime = library("onnxruntime")
  options = runtime.SessionOptions()
  options.log_severity_level = 3  # errors
  opened = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
  taken = {tensor.name for tensor in opened.get_inputs()}
  names = [tensor.name for tensor in opened.get_outputs()]

  def run(inputs: Arrays) -> Arrays:
    made = opened.run(names, {name: x for name, x in inputs.items() if name in taken})
    return dict(zip(names, made, strict=True))

  return run


def size_of(path: Path) -> int:
  """The bytes of a file and of its weights beside it."""
  return sum(part.stat().st_size for part in parts_of(path) if part.exists())


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


def _facts(
  path: Path, graph: Graph, apart: dict[str, Difference], smaller: tuple[OnnxFile, ...] = ()
) -> OnnxFile:
  return OnnxFile(
    path,
    size_of(path),
    {tensor.name: _shown(tensor.shape) for tensor in graph.inputs},
    {name: _shown(tensor.shape) for name, tensor in graph.outputs.items()},
    max(each.largest for each in apart.values()),
    max(each.relative for each in apart.values()),
    smaller,
  )


def _shown(shape: tuple) -> tuple:
  return tuple(size if isinstance(size, int) else str(size) for size in shape)


def save_graph(model: Portable, path: Path) -> Graph:
  """Converts a function and writes it."""
  onnx, _ = library("onnx"), library("onnxruntime")
  graph = convert(model.function, model.params, model.inputs)
  helper, named = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
  nodes, constants = graph.needed()

  def info(name: str, tensor: Tensor):
    return helper.make_tensor_value_info(name, named(tensor.dtype), _shown(tensor.shape))

  listed = [
    helper.make_node(
      node.kind,
      [tensor.name for tensor in node.inputs],
      [name],
      name,
      **{k: named(v) if isinstance(v, np.dtype) else v for k, v in node.attributes},
    )
    for name, node in nodes.items()
  ]
  listed += [
    helper.make_node("Identity", [t.name], [name], name) for name, t in graph.outputs.items()
  ]
  proto = helper.make_graph(
    listed,
    "plm_jax",
    [info(tensor.name, tensor) for tensor in graph.inputs],
    [info(name, tensor) for name, tensor in graph.outputs.items()],
    [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
  )
  opset = helper.make_opsetid("", OPSET)
  proto = helper.make_model(
    proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="plm_jax"
  )
  beside = sum(array.nbytes for array in constants.values()) > MOST_BYTES
  weights = parts_of(path)[1].name
  onnx.save_model(proto, str(path), save_as_external_data=beside, location=weights)
  return graph
