"""Imports go down only, nothing imports in a circle, and heavy libraries are imported when used."""

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The layers, lowest first, and the layers that each may import besides itself. `objectives` and
# `data` do not know each other at run time: a pipeline is given objectives as values. Annotations
# (`if TYPE_CHECKING:`) may name any lower layer.
BENEATH = {
  "errors": set(),
  "files": {"errors"},
  "notebook": set(),
  "progress": {"notebook"},
  "arguments": {"errors"},
  "config_tree": {"errors"},
  "aliases": set(),
  "overrides": {"errors", "config_tree", "aliases"},
  "cli": {"errors"},
  "data": {"errors", "files", "progress"},
  "placement": set(),
  "models": {"errors", "files", "progress", "placement"},
  "objectives": {"errors", "placement"},
  "optim": {"errors", "models"},
  "own_code": {"errors", "config_tree", "cli", "data"},
  "sharding": {"errors", "placement", "models"},
  "sizes": {"errors", "config_tree"},
  "peft": {"errors", "models"},
  "compression": {"errors", "models", "peft"},
  "experiment": {"errors", "data", "models", "objectives", "optim", "sharding", "sizes", "peft"},
  "budgets": {"errors", "config_tree", "overrides", "experiment", "optim"},
  "decode": {"errors", "data", "models"},
  "train": {
    *("errors", "files", "progress", "config_tree", "overrides", "own_code", "data", "models"),
    *("objectives", "placement", "sharding", "sizes", "experiment", "decode", "compression"),
  },
  "runs": {
    *("errors", "overrides", "data", "models", "peft", "compression", "experiment", "train"),
  },
  "evaluation": {"errors", "files", "data", "models", "objectives", "decode", "runs"},
  "experiment_flags": {
    "errors",
    "budgets",
    "overrides",
    "cli",
    "data",
    "models",
    "experiment",
    "train",
    "runs",
  },
  "planning": {"errors", "overrides", "models", "experiment", "sharding", "train"},
  "pretraining": {"data", "experiment", "train", "runs"},
  "export": {
    *("errors", "files", "config_tree", "cli", "data", "models", "peft", "train", "runs"),
    "experiment_flags",
  },
  "tasks": {
    *("errors", "files", "aliases", "overrides", "cli", "data", "models", "objectives", "peft"),
    *("sharding", "experiment", "decode", "notebook", "train", "runs", "experiment_flags"),
  },
  "serving": {
    *("errors", "progress", "data", "decode", "models", "train", "runs", "export", "tasks"),
  },
  "ablate": {
    *("errors", "files", "config_tree", "overrides", "cli", "data", "experiment", "budgets"),
    *("train", "runs", "experiment_flags", "pretraining", "evaluation", "notebook", "tasks"),
    "models",
  },
  "shrinking": {
    *("errors", "files", "cli", "compression", "data", "decode", "evaluation", "experiment"),
    *("experiment_flags", "export", "models", "objectives", "pretraining", "runs", "tasks"),
    *("train", "ablate"),
  },
  "commands": {
    *("errors", "files", "progress", "cli", "data", "decode", "budgets", "train", "runs"),
    *("evaluation", "export", "tasks", "ablate", "serving", "shrinking", "planning"),
    "experiment_flags",
  },
  "loaded_model": {
    *("errors", "arguments", "decode", "notebook", "train", "runs", "evaluation", "export"),
    *("tasks", "commands"),
  },
  "api": {
    *("errors", "arguments", "overrides", "cli", "data", "experiment", "budgets", "train", "runs"),
    *("experiment_flags", "pretraining", "export", "notebook", "tasks", "ablate", "loaded_model"),
  },
}

# Libraries that are slow to import, or extras: imported inside the functions that need them.
HEAVY = {
  "IPython",
  *("grain", "tensorflow_datasets", "tensorflow", "array_record", "sentencepiece", "tokenizers"),
  *("matplotlib", "tensorboardX", "sklearn", "orbax", "tensorstore", "torch", "transformers"),
  *("scipy", "ray", "tqdm", "h5py", "gensim", "numba", "sacrebleu", "rouge_score"),
  *("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"),
  *("onnx", "onnxruntime", "pyarrow", "apache_beam"),
}

# Modules of this package that functions import, and why not the file.
LATE = {
  ("data.tokenizers", "data.tokenizer_files"): "needs tokenizers and sentencepiece",
  ("data.tokenizers", "data.tokenizer_training"): "needs tokenizers and sentencepiece",
  ("data.tokenizers", "data.published_vocab"): "needs tokenizers and sentencepiece",
  ("commands.serve", "serving.server"): "needs fastapi, uvicorn and prometheus_client, an extra",
  ("models.attention", "models.fused_attention"): "needs Pallas for Triton, which JAX may drop",
  ("models.attention", "models.tpu_attention"): "needs Pallas for TPUs, which JAX may drop",
}


class Import(NamedTuple):
  """source: the importing module of the package, "data.store". name: what it imports, in full."""

  source: str
  name: str
  annotation: bool  # under `if TYPE_CHECKING:`
  inside: bool  # a function


def imports_in(package: Path) -> list[Import]:
  """Every import in the files of a package, at any depth of a file."""
  imports = []

  def visit(node, source, annotation=False, inside=False):
    if isinstance(node, ast.Import):
      imports.extend(Import(source, name.name, annotation, inside) for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      names = (f"{node.module}.{name.name}" for name in node.names)
      imports.extend(Import(source, name, annotation, inside) for name in names)
    annotation |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
      visit(child, source, annotation, inside)

  for path in sorted(package.rglob("*.py")):
    visit(ast.parse(path.read_text()), module_name(path, package))
  return imports


def module_name(path: Path, package: Path) -> str:
  """ "data.store"; of a folder's `__init__.py` "data"."""
  return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


def edges_of(package: Path) -> list[tuple[Import, str]]:
  """The imports between files of the package, with the module that each imports."""
  modules = {module_name(path, package) for path in package.rglob("*.py")}
  edges = []
  for one in imports_in(package):
    first, _, name = one.name.partition(".")
    while first == package.name and name and name not in modules:
      name = name.rpartition(".")[0]  # a name within a module
    if first == package.name and name and name != one.source:
      edges.append((one, name))
  return edges


def circle(edges: list[tuple[str, str]]) -> list[str]:
  """A circle among (importing, imported) pairs, as a path back to its start; empty if none."""
  graph: dict[str, set[str]] = {}
  for source, target in edges:
    graph.setdefault(source, set()).add(target)
  try:
    TopologicalSorter(graph).prepare()
  except CycleError as error:
    return error.args[1][::-1]  # graphlib gives the imported module first
  return []


@functools.cache
def package_edges() -> list[tuple[Import, str]]:
  return edges_of(ROOT / "plm_jax")


def layer(module: str) -> str:
  return module.partition(".")[0]


def test_every_layer_is_in_the_table_and_those_beneath_it_come_first():
  package = ROOT / "plm_jax"
  modules = {module_name(path, package) for path in package.rglob("*.py")}
  assert {layer(m) for m in modules if m not in ("__init__", "__main__")} == set(BENEATH)
  order = list(BENEATH)
  for name, beneath in BENEATH.items():
    assert beneath <= set(order[: order.index(name)]), name


@pytest.mark.parametrize("name", BENEATH)
def test_imports_go_down_only(name):
  order = list(BENEATH)
  wrong = set()
  for one, target in package_edges():
    if layer(one.source) != name or layer(target) == name:
      continue
    lower = set(order[: order.index(name)]) if one.annotation else BENEATH[name]
    if layer(target) not in lower:
      wrong.add(f"{one.source} imports {one.name}")
  assert not wrong


@pytest.mark.parametrize("name", BENEATH)
def test_a_layer_lists_only_what_it_imports(name):
  used = {layer(target) for one, target in package_edges() if layer(one.source) == name}
  assert BENEATH[name] <= used


def test_no_files_import_in_a_circle():
  assert not circle([(one.source, target) for one, target in package_edges()])


def test_no_folders_import_in_a_circle():
  pairs = {(layer(one.source), layer(target)) for one, target in package_edges()}
  assert not circle([(a, b) for a, b in sorted(pairs) if a != b])


def test_functions_import_only_heavy_libraries():
  late = {i for i in imports_in(ROOT / "plm_jax") if i.inside}
  assert late
  light = {f"{i.source} imports {i.name}" for i in late if layer(i.name) not in HEAVY | {"plm_jax"}}
  assert not light


def test_functions_import_modules_of_the_package_for_a_stated_reason_only():
  assert {(one.source, target) for one, target in package_edges() if one.inside} == set(LATE)


@pytest.mark.parametrize(
  "back",
  [
    "import house.low.a",
    "def late():\n  from house.low import a",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from house.low.a import name",
  ],
  ids=["plain", "in a function", "for an annotation"],
)
def test_a_circle_of_any_kind_is_seen(tmp_path, back):
  package = tmp_path / "house"
  for name, text in {"low/a": "from house.high import b", "high/b": back}.items():
    path = package / f"{name}.py"
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
  edges = edges_of(package)
  assert set(circle([(one.source, target) for one, target in edges])) == {"low.a", "high.b"}
  assert not circle([(one.source, target) for one, target in edges if one.source == "low.a"])


def test_nothing_in_the_package_imports_a_command_or_an_experiment():
  for one in imports_in(ROOT / "plm_jax"):
    first = layer(one.name)
    assert first != "experiments" and not first.startswith("run_"), one


@pytest.mark.parametrize("part", ["train", "tasks", "evaluation", "ablate", "commands", "decode"])
def test_nothing_asks_for_the_class_of_a_model(part):
  """They ask what a model can do (plm_jax/models/model.py)."""
  names = ("model", "parameters", "compute", "dropout", "cache", "recording", "layer_loop")
  protocol = {f"models.{name}" for name in (*names, "packed")}
  asked = {target for one, target in package_edges() if layer(one.source) == part}
  assert {target for target in asked if layer(target) == "models"} <= protocol


@pytest.mark.slow
def test_scoring_a_run_does_not_import_training():
  code = "import sys, plm_jax.commands.score; print(*sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  loaded = set(done.stdout.split())
  assert "plm_jax.evaluation.perplexity" in loaded
  for name in ("train.loop", "train.step", "ablate", "tasks", "commands.generate"):
    assert f"plm_jax.{name}" not in loaded


def imported_by(statement: str) -> set[str]:
  code = f"import sys\n{statement}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  return set(done.stdout.split())


@pytest.mark.slow
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
