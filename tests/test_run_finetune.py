"""The command: a mistake is one sentence and exit code 2, a run ends with a table and a plot."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import run_finetune
from tests.tasks.conftest import documents, source, table, tokenizer  # noqa: F401  fixtures
from tests.test_encode import call  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parents[1]


def process(place, *words):
  """`python run_finetune.py WORDS`, on one device."""
  return subprocess.run(
    [sys.executable, ROOT / "run_finetune.py", *words],
    capture_output=True,
    check=False,
    text=True,
    cwd=place,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
  )


@pytest.mark.slow
def test_a_run_compares_three_arms_and_is_not_repeated(call, source, table, tmp_path):  # noqa: F811
  words = (
    f"--cache={tmp_path}",
    f"--from={source.path}",
    f"--workdir={tmp_path / 'out'}",
    f"--data={table}",
    "--set=task.test_share=0.2",
    "--labels=60",
    "--seeds=2",
  )
  done = process(tmp_path, *words)
  assert done.returncode == 0, done.stderr
  for said in (
    "fine-tuned from the checkpoint",
    "random initialisation",
    "bag of words",
    "linear probe",
    "seeds",
    "median",
    "sha256",
  ):
    assert said in done.stdout
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  assert len(results["cells"]) == 8
  assert results["recipes"]["60"]["steps"] > 0
  assert len(results["margins"]["60"]["macro_f1"]) == 2
  assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
  _, shown, errors = call(run_finetune, *words[:-1], "--seeds=1")
  assert table_of(shown) == table_of(done.stdout)  # with fewer seeds than there are
  assert "/" not in errors  # no progress bar: nothing was trained
  code, _, errors = call(run_finetune, *words, "--labels=70", "--set=optim.peak=1e-4")
  assert code == 2
  assert "--set is nothing there and optim.peak=0.0001 here; choose another --workdir" in errors
  assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def table_of(shown):
  """What is printed of the scores, without the seconds."""
  return re.sub(r"\d+ s of training", "", shown[shown.index("on the test split") :])


def test_a_directory_that_is_no_run_is_one_sentence_and_exit_code_2(call, tmp_path):  # noqa: F811
  code, _, errors = call(run_finetune, f"--from={tmp_path}")
  assert code == 2
  assert errors.startswith("error:")
  assert "is not the directory of a run" in errors
  assert len(errors.splitlines()) == 1
