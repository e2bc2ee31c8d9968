"""ONNX files with int8 weights, by ONNX Runtime's own quantiser.

Weights have a scale for each output channel. Activations have one scale for the whole array, which
is found when the model runs (dynamic), or is measured before on rows of text (static). Tables and
products with weights are quantised.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from plm_jax.export.agreement import Arrays
from plm_jax.export.onnx_library import library, parts_of


def quantise_dynamic(path: Path, target: Path) -> None:
  """Writes `target`, the float32 file `path` with int8 weights."""
  quantization = library("onnxruntime.quantization")
  with _without_advice():
    quantization.quantize_dynamic(
      path,
      target,
      per_channel=True,
      weight_type=quantization.QuantType.QInt8,
      use_external_data_format=parts_of(path)[1].exists(),
    )


def quantise_static(path: Path, target: Path, rows: Sequence[Arrays]) -> None:
  """Writes `target`, the float32 file `path` with int8 weights and fixed scales of activations: the
  mean over the rows of their largest and least values. rows: inputs by name, int64 [1, T]."""
  onnx, quantization = library("onnx"), library("onnxruntime.quantization")
  taken = {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.input}
  reader = _Reader([{name: x for name, x in row.items() if name in taken} for row in rows])
  options = {
    "CalibMovingAverage": True,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
  }
  with _without_advice():
    quantization.quantize_static(
      path,
      target,
      reader,
      per_channel=True,
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
      op_types_to_quantize=["MatMul", "Gather"],
      use_external_data_format=parts_of(path)[1].exists(),
      extra_options=options,
    )


class _Reader:
  """The rows, as the quantiser asks for them."""

  def __init__(self, rows: Sequence[Arrays]):
    self._rows = iter(rows)

  def get_next(self) -> dict[str, np.ndarray] | None:
    return next(self._rows, None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
  """Without advice on graphs that other exporters write."""
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)
