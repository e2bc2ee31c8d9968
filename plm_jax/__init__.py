"""Pre-trained language models in JAX: train, ablate and compare every step of the story.

import plm_jax as plm

model = plm.load("runs/bert_tiny")       # plm_jax/api.py has all functions
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from plm_jax.api import finetune as finetune
  from plm_jax.api import load as load
  from plm_jax.api import pretrain as pretrain
  from plm_jax.api import report as report
  from plm_jax.api import sweep as sweep

__version__ = "0.1.0"
__all__ = ["load", "pretrain", "finetune", "sweep", "report"]
# Makes `python -m plm_jax.generate` run plm_jax/commands/generate.py.
__path__.append(str(Path(__file__).parent / "commands"))


def __getattr__(name: str) -> Any:
  """The functions of the interface, imported when they are first used: JAX takes a second."""
  if name not in __all__:
    raise AttributeError(f"module 'plm_jax' has no attribute {name!r}")
  return getattr(import_module("plm_jax.api"), name)


class _Package(ModuleType):
  """Keeps the function `plm_jax.report` after `import plm_jax.report`, the command's module."""

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name in __all__ and isinstance(value, ModuleType)):
      super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
