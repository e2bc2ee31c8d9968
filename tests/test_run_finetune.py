"""The command: a mistake is one sentence and exit code 2, a run ends with a table and a plot."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.conftest import documents, source, table, tokenizer  # noqa: F401  fixtures

ROOT = Path(__file__).resolve().parents[1]


def call(place, *words):
  """`python run_finetune.py WORDS`, on one device."""
  return subprocess.run(
    [sys.executable, ROOT / "run_finetune.py", f"--cache={place}", *words],
    capture_output=True,
    check=False,
    text=True,
    cwd=place,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
  )


@pytest.mark.slow
def test_a_run_compares_three_arms_and_is_not_repeated(source, table, tmp_path):  # noqa: F811
  words = (
    f"--from={source.path}",
    f"--workdir={tmp_path / 'out'}",
    f"--data={table}",
    "--set=task.test_share=0.2",
    "--labels=60",
    "--seeds=2",
  )
  done = call(tmp_path, *words)
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
  again = call(tmp_path, *words[:-1], "--seeds=1")
  assert table_of(again) == table_of(done)  # with fewer seeds than there are, nothing is lost
  assert "/" not in again.stderr  # no progress bar: nothing was trained
  other = call(tmp_path, *words, "--labels=70", "--set=optim.peak=1e-4")
  assert other.returncode == 2
  assert (
    "--set is nothing there and optim.peak=0.0001 here; choose another --workdir" in other.stderr
  )
  assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def table_of(done):
  """What is printed of the scores, without the seconds."""
  printed = done.stdout[done.stdout.index("on the test split") :]
  return re.sub(r"\d+ s of training", "", printed)


def test_a_directory_that_is_no_run_is_one_sentence_and_exit_code_2(tmp_path):
  done = call(tmp_path, f"--from={tmp_path}")
  assert done.returncode == 2
  assert done.stderr.startswith("error:")
  assert "is not the directory of a run" in done.stderr
  assert len(done.stderr.splitlines()) == 1
