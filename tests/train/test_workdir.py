"""A working directory belongs to one run: others are refused, and nothing in it is changed."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from plm_jax import overrides
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.experiment import Intervals
from plm_jax.optim.adamw import AdamW
from plm_jax.sharding import MeshShape
from plm_jax.train.workdir import Workdir, hash_of, read_config, run_hash, write_whole
from tests.test_cli import ROOT
from tests.toy_run import TOY

RECORD = {"text": {"source": "a"}, "initial": None, "reference": "here.py:toy"}


@pytest.fixture
def folder(tmp_path):
  """The directory of a run that has saved."""
  with Workdir(tmp_path / "run") as workdir:
    workdir.write_config(TOY, RECORD)
    (workdir / "metrics.jsonl").write_text("")
    (workdir / "checkpoints" / "5").mkdir(parents=True)
  return tmp_path / "run"


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def claim(folder, experiment=TOY, **changes):
  with Workdir(folder) as workdir:
    workdir.write_config(experiment, RECORD | changes)


def test_config_json_gives_the_experiment_back(folder):
  document = read_config(folder)
  assert overrides.from_json(document["experiment"]) == TOY
  assert document["text"] == RECORD["text"]
  json.loads((folder / "config.json").read_text())


def test_the_same_run_may_go_on(folder):
  before = contents(folder)
  claim(folder)
  assert contents(folder) == before


@pytest.mark.parametrize(
  "change",
  [
    {"mesh": MeshShape(data=2, fsdp=2)},
    {"compute": dataclasses.replace(TOY.compute, micro_batches=2)},
    {"schedule": Intervals(keep=3)},
    {"data": dataclasses.replace(TOY.data, workers=2)},
  ],
)
def test_a_run_may_go_on_elsewhere_and_be_watched_otherwise(folder, change):
  before = (folder / "config.json").read_bytes()
  claim(folder, dataclasses.replace(TOY, **change))
  assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"seed": 1}, "seed is 0 there and 1 here"),
    ({"steps": 13}, "steps is 12 there and 13 here"),
    (
      {"optim": AdamW(peak=3e-3, warmup=4)},
      r"optim.peak is 0.01 there and 0.003 here \(and 1 more differ\)",
    ),
    ({"data": dataclasses.replace(TOY.data, source="other.txt")}, "data.source"),
    (
      {"data": dataclasses.replace(TOY.data, tokenizer=WordPiece(vocab_size=99))},
      "data.tokenizer.vocab_size",
    ),
  ],
)
def test_another_experiment_is_refused_and_nothing_changed(folder, change, said):
  before = contents(folder)
  with pytest.raises(UserError, match=f"holds another experiment: {said}.*another --workdir"):
    claim(folder, dataclasses.replace(TOY, **change))
  assert contents(folder) == before


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"text": {"source": "b"}}, "another text"),
    ({"initial": {"from": "runs/x"}}, "another start"),
  ],
)
def test_another_text_or_start_is_refused(folder, change, said):
  before = contents(folder)
  with pytest.raises(UserError, match=said):
    claim(folder, **change)
  assert contents(folder) == before


def test_a_directory_of_something_else_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(UserError, match=r"holds no run \(thesis.tex\); choose another --workdir"):
    claim(tmp_path)
  assert contents(tmp_path) == {tmp_path / "thesis.tex": b"years of work"}


def test_what_a_refused_directory_held_is_left_as_it_was(tmp_path):
  (tmp_path / ".lock").write_text("somebody's own")
  (tmp_path / "tokenizer").mkdir()
  (tmp_path / "tokenizer" / "vocab.txt").write_text("a vocabulary of one's own")
  with pytest.raises(UserError, match=r"holds no run \(tokenizer\)"):
    claim(tmp_path)
  assert (tmp_path / ".lock").read_text() == "somebody's own"
  assert (tmp_path / "tokenizer" / "vocab.txt").read_text() == "a vocabulary of one's own"


def test_a_directory_in_which_nothing_was_written_is_left_empty(tmp_path):
  with Workdir(tmp_path / "run") as workdir:
    assert (workdir / ".lock").exists()
  assert list((tmp_path / "run").iterdir()) == []


def test_a_misspelt_run_is_answered_with_the_nearest_one(folder):
  with pytest.raises(UserError, match=f"it does not exist; did you mean {folder}?"):
    read_config(folder.with_name("rum"))


def test_a_directory_above_runs_is_answered_with_the_runs(folder, tmp_path):
  with pytest.raises(UserError, match=rf"has no config\.json; directories below it.*: {folder}"):
    read_config(folder.parent)
  (tmp_path / "empty" / "a").mkdir(parents=True)
  with pytest.raises(UserError, match=r"it has no config\.json$"):
    read_config(tmp_path / "empty")


def test_a_directory_that_a_killed_start_left_is_taken(tmp_path):
  with Workdir(tmp_path / "run") as workdir:  # killed while it wrote config.json
    (workdir / "config.json.partial").write_text('{"form')
  claim(tmp_path / "run")
  assert read_config(tmp_path / "run")["format"] == 1


def test_a_start_that_saved_nothing_may_be_corrected(folder):
  (folder / "checkpoints" / "5").rmdir()
  (folder / "checkpoints" / "5.saving").mkdir()  # of a kill
  (folder / "metrics.jsonl").write_text('{"step": 4, "split": "train", "loss": 3.0}\n')
  claim(folder, dataclasses.replace(TOY, seed=1))
  assert overrides.from_json(read_config(folder)["experiment"]).seed == 1


def test_a_run_whose_checkpoints_are_gone_is_not_taken_for_one_that_saved_nothing(folder):
  (folder / "checkpoints" / "5").rmdir()
  (folder / "metrics.jsonl").write_text('{"step": 11, "split": "train", "loss": 3.0}\n')
  with pytest.raises(UserError, match="seed is 0 there and 1 here"):
    claim(folder, dataclasses.replace(TOY, seed=1))


def test_a_directory_with_the_characters_of_a_pattern_is_refused(tmp_path):
  with pytest.raises(UserError, match="choose a name without these characters"):
    Workdir(tmp_path / "lr[1e-3]")
  assert not list(tmp_path.iterdir())


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder):
  (folder / "config.json").unlink()
  os.mkfifo(folder / "config.json")
  with pytest.raises(UserError, match="is a FIFO; expected a file"):
    read_config(folder)
  (folder / ".lock").unlink()
  os.mkfifo(folder / ".lock")
  with pytest.raises(UserError, match="cannot be written"):
    Workdir(folder)


def test_the_hash_of_a_run_knows_seed_and_text_but_not_the_place_it_runs_at(folder):
  document = read_config(folder)
  hashes = [hash_of(document)]
  experiments = [dataclasses.replace(TOY, seed=1), dataclasses.replace(TOY, schedule=Intervals())]
  hashes += [hash_of(document | {"experiment": overrides.to_json(e)}) for e in experiments]
  hashes.append(hash_of(document | {"text": {"source": "b"}}))
  assert run_hash(folder) == hashes[0] == hashes[2] and len(set(hashes)) == 3


def test_a_directory_that_another_process_holds_is_refused(folder):
  code = (
    "import sys; from plm_jax.train.workdir import Workdir; held = Workdir(sys.argv[1]); "
    "print('held', flush=True); input()"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, folder],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  ) as other:
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process is working in"):
      Workdir(folder)
    other.kill()
  claim(folder)  # a lock dies with its process


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("{", "cannot be read"),
    ("[]", "is not the configuration"),
    ('{"format": 99}', "is not the"),
    ('{"format": 1}', "is not the"),
  ],
)
def test_a_foreign_or_torn_config_is_a_sentence(tmp_path, content, said):
  (tmp_path / "config.json").write_text(content)
  with pytest.raises(UserError, match=said):
    claim(tmp_path)
  assert (tmp_path / "config.json").read_text() == content


def test_a_file_in_the_way_is_a_sentence(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    Workdir(tmp_path / "run")


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  write_whole(path, "old")
  monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
  with pytest.raises(OSError, match="disk full"):
    write_whole(path, "new")
  assert path.read_text() == "old"
