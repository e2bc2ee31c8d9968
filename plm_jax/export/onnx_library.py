"""The libraries of the extra `onnx`, and the files of a model."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from plm_jax.errors import UserError


def library(name: str) -> ModuleType:
  """A library of the extra `onnx`. Errors: `UserError` if it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(
      f"{name} is not installed; install the extra: pip install 'plm_jax[onnx]'"
    ) from None


def parts_of(path: Path) -> list[Path]:
  return [path, path.with_name(path.name + ".data")]
