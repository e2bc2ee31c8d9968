"""Imports go down only, and what is heavy is imported by those who use it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The files and folders that each part may import besides itself. `objectives` and `data` do not
# import each other at run time: a pipeline is given objectives as values.
EXPERIMENT = {"errors", "data", "models", "objectives", "optim", "sharding", "experiment"}
BENEATH = {
  "models": {"errors"},
  "objectives": {"errors"},
  "optim": {"errors", "models"},
  "data": {"errors", "progress"},
  "decode": {"errors", "models", "data"},
  "experiment": EXPERIMENT,
  "train": EXPERIMENT | {"progress", "overrides", "decode"},
  "runs": EXPERIMENT | {"overrides", "train"},
  "evaluation": {"errors", "data", "models", "objectives", "runs"},
  "experiment_flags": EXPERIMENT | {"cli", "overrides", "runs", "train"},
  "export": EXPERIMENT | {"cli", "runs", "experiment_flags", "train"},
  "tasks": EXPERIMENT | {"cli", "overrides", "runs", "experiment_flags", "train"},
  "commands": {"errors", "cli", "data", "decode", "evaluation", "export", "runs", "train"},
}


def imports_of(path: Path) -> set[str]:
  """What a file imports from plm_jax when it runs: first names below it, at any depth of the file.

  Imports for annotations alone (`if TYPE_CHECKING:`) bind nothing.
  """
  found = set()

  def visit(node):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
      return
    if isinstance(node, ast.Import):
      found.update(name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      found.update(f"{node.module}.{name.name}" for name in node.names)
    for child in ast.iter_child_nodes(node):
      visit(child)

  visit(ast.parse(path.read_text()))
  return {name.split(".")[1] for name in found if name.startswith("plm_jax.")}


@pytest.mark.parametrize("part", BENEATH)
def test_imports_go_down_only(part):
  place = ROOT / "plm_jax" / part
  files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
  assert files
  wrong = {
    f"{path.relative_to(ROOT)} imports {name}"
    for path in files
    for name in imports_of(path) - BENEATH[part] - {part}
  }
  assert not wrong


@pytest.mark.parametrize("part", ["train", "tasks", "evaluation", "ablate", "commands", "decode"])
def test_nothing_asks_for_the_class_of_a_model(part):
  """They ask what a model can do (plm_jax/models/model.py)."""
  protocol = {"model", "compute", "dropout", "cache"}
  for path in sorted((ROOT / "plm_jax" / part).rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plm_jax.models."):
        assert node.module.split(".")[2] in protocol, path


def test_scoring_a_run_does_not_import_training():
  code = "import sys, plm_jax.commands.score; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  loaded = set(done.stdout.split())
  assert "plm_jax.evaluation.perplexity" in loaded
  for name in ("train.loop", "train.step", "ablate", "tasks", "commands.generate"):
    assert f"plm_jax.{name}" not in loaded


def test_nothing_in_the_package_imports_a_command_or_an_experiment():
  for path in sorted((ROOT / "plm_jax").rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        first = (node.module or "").split(".")[0]
        assert first != "experiments" and not first.startswith("run_"), path


HEAVY = {
  *("grain", "tensorflow_datasets", "tensorflow", "array_record", "sentencepiece", "tokenizers"),
  *("matplotlib", "tensorboardX", "sklearn", "orbax", "torch", "transformers"),
}


def imported_by(statement: str) -> set[str]:
  code = f"import sys\n{statement}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  return set(done.stdout.split())


def test_models_need_only_jax_flax_optax_and_numpy():
  modules = sorted((ROOT / "plm_jax" / "models").glob("*.py"))
  names = [f"plm_jax.models.{path.stem}" for path in modules if path.stem != "__init__"]
  # Flax may import orbax itself; what counts is what the models add to it.
  before = imported_by("import jax, flax.nnx, optax, numpy")
  added = imported_by("import jax, flax.nnx, optax, numpy, " + ", ".join(names)) - before
  assert not added & (HEAVY | {"absl"})
  assert "plm_jax" in added


def test_objectives_and_draws_in_a_data_worker_need_no_jax_device_or_heavy_library():
  added = imported_by("import plm_jax.data.pipeline, plm_jax.data.preparation")
  assert not added & (HEAVY | {"jax"})
