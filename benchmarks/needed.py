"""The absence of what a benchmark compares with, as a sentence."""

import importlib.util

from plm_jax.errors import UserError


def check_installed(*modules: str, extra: str = "bench") -> None:
  """extra: has the modules. Errors: `UserError` if one is missing."""
  missing = [module for module in modules if not importlib.util.find_spec(module)]
  if missing:
    raise UserError(f"the comparison needs {' and '.join(missing)}: pip install -e '.[{extra}]'")
