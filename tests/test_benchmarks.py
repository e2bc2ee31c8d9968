"""What is compared in benchmarks/ does the same work."""

import ast
import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
  """A module of benchmarks/, which are programs and no package."""
  monkeypatch.syspath_prepend(str(FOLDER))
  return importlib.import_module


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu_small", "cpu_gpt", "cpu_t5", "gpu_t5_base"])
def test_both_sides_have_as_many_parameters(preset, benchmark):
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  cases, ours = benchmark("pretrain_cases"), benchmark("pretrain_contenders")
  theirs = benchmark("pretrain_torch").CONTENDERS
  case = dataclasses.replace(cases.PRESETS[preset], layers=2, dropout=0.0)
  config, objectives = ours.experiment(case)
  heads = {name: size for o in objectives for name, size in o.heads.items()}
  shapes = jax.eval_shape(lambda key: config.init(key, heads), jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  for kind in case.contenders[1:]:
    if "+" not in kind:
      made = theirs[case.family, kind]
      with torch.device("meta"):
        model = getattr(made, "func", made).make(None, case)
      assert sum(p.numel() for p in model.parameters()) == count


def test_exponents_are_slopes_in_log_log(benchmark):
  growth = benchmark("growth")
  assert growth.exponent([2, 4, 8], [3, 12, 48]) == pytest.approx(2)
  line = growth.Series("rows", "time", [2, 4, 8], [5, 5, 5], [1, 2, 4], "s").row()
  assert line == "| rows | 2 to 8 | time | 5, 5, 5 s | 0.00 | 1.00 |"


def test_a_repeated_text_has_its_size_and_no_document_twice(benchmark, tmp_path):
  text = benchmark("repeated_text")
  words = " ".join(f"word{i % 37} and." for i in range(60))
  (tmp_path / "a.txt").write_text("\n\n".join([words] * 9))
  for name in ("one", "other"):
    text.write_text(tmp_path / "a.txt", tmp_path / name, 0.2)
  made = (tmp_path / "one").read_text()
  assert made == (tmp_path / "other").read_text()
  assert 200_000 <= len(made) < 230_000
  documents = made.split("\n\n")
  assert len(set(documents)) == len(documents) > 20


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_imports_from_the_package_exists(file):
  """Contenders import where they run, so that each loads one framework only."""
  missing = [
    f"{node.module}.{name.name}"
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plm_jax")
    for name in node.names
    if not hasattr(importlib.import_module(node.module), name.name)
    and not importlib.util.find_spec(f"{node.module}.{name.name}")
  ]
  assert missing == []
