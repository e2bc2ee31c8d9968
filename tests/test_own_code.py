"""A run with classes of a user's own file is read by other processes, and only if it is theirs."""

import json
import sys

import jax
import pytest

import plm_jax as plm
from plm_jax import api, cli, own_code
from plm_jax.config_tree import OWN_MODULES
from plm_jax.errors import UserError
from plm_jax.runs import Run, RunInfo
from tests import toy_run

CODE = '''
"""A model and an objective of one's own."""
import dataclasses
from pathlib import Path

from plm_jax.models.bert import Bert
from plm_jax.objectives.mlm import MLM
from tests.toy_run import TOY
from plm_jax.experiment import Experiment

with open(Path(r"FOLDER") / "executed", "a") as file:
  file.write("x")

@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Bert):
  """My model."""
  dial: int = 3

@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks(MLM):
  """My objective."""

def row() -> Experiment:
  """A row."""
  model = Mine(layers=1, width=16, heads=2, positions=32, dial=5)
  return dataclasses.replace(TOY, model=model, objectives=(Masks(rate=0.3),))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("PLM_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(api, "keep_compilations", lambda cache: None)
  before = set(sys.modules)
  yield tmp_path
  forget(before)


def forget(before) -> None:
  """As in another process."""
  for name in set(sys.modules) - before:
    if name.startswith("file:"):
      del sys.modules[name]
  OWN_MODULES.clear()


@pytest.fixture
def run(folder):
  """The directory of a run of a file that is gone, whose module is not imported."""
  before = set(sys.modules)
  file = folder / "mine.py"
  file.write_text(CODE.replace("FOLDER", str(folder)))
  tokenizer = toy_run.prepared().tokenizer
  experiment = cli.load_experiment(f"{file}:row")().resolve(tokenizer.vocab.size)
  params = experiment.init_parameters(jax.random.key(0))
  Run(experiment=experiment, params=params, tokenizer=tokenizer).save(folder / "run")
  file.unlink()
  forget(before)
  (folder / "executed").unlink()
  return folder / "run"


def test_a_run_of_a_file_of_ones_own_is_loaded_when_the_file_is_gone(run, folder):
  loaded = plm.load(run)
  assert type(loaded.config).__name__ == "Mine" and loaded.config.dial == 5
  assert len(loaded.fill_mask("w1 [MASK]")[0]) == 5
  assert loaded.score("w1 w2")["pseudo_perplexity"] > 1
  loaded.run.save(folder / "copy")
  assert RunInfo.read(folder / "copy").experiment.objectives[0].rate == 0.3
  assert (folder / "copy/code/mine.py").read_bytes() == (run / "code/mine.py").read_bytes()


def test_the_code_of_a_strangers_directory_is_never_executed(run, folder, monkeypatch):
  monkeypatch.setenv("PLM_JAX_CACHE", str(folder / "cache of another user"))
  with pytest.raises(
    UserError, match=r"this user did not make the run .* not executed; if you tru"
  ):
    plm.load(run)
  document = json.loads((run / "config.json").read_text())
  document["code"]["signature"] = None
  (run / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match="not executed"):
    plm.load(run)
  assert not (folder / "executed").exists()


def test_a_copy_that_was_changed_or_is_gone_is_one_sentence(run, folder):
  (run / "code/mine.py").write_text("raise SystemExit")
  with pytest.raises(
    UserError, match=r"needs the classes of mine.py: .* was changed after the run"
  ):
    plm.load(run)
  (run / "code/mine.py").unlink()
  with pytest.raises(
    UserError, match=r"mine.py is missing; if you trust that file, name it: PLM_J"
  ):
    plm.load(run)


def test_a_file_that_the_user_names_is_taken(run, folder, monkeypatch):
  (folder / "elsewhere").mkdir()
  (run / "code/mine.py").rename(folder / "elsewhere/mine.py")
  monkeypatch.setenv(own_code.VARIABLE, str(folder / "elsewhere/mine.py"))
  assert plm.load(run).config.dial == 5


def test_a_copy_whose_imports_are_not_there_is_one_sentence(run, folder):
  document = json.loads((run / "config.json").read_text())
  (run / "code/mine.py").write_text("import not_there")
  digest = own_code.hashlib.sha256(b"import not_there").hexdigest()
  for file in document["code"]["files"].values():
    file["sha256"] = digest
  document["code"]["signature"] = own_code._signature(document["code"]["files"])
  (run / "config.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match=r"cannot be imported: No module named 'not_there'; give the"):
    plm.load(run)


def test_a_run_of_an_edited_file_is_told(run, folder, capsys):
  (folder / "mine.py").write_text(CODE.replace("FOLDER", str(folder)) + "\n# edited\n")
  cli.load_experiment(f"{folder / 'mine.py'}:row")
  assert RunInfo.read(run).config.dial == 5
  assert "made with another mine.py than the one that is imported" in capsys.readouterr().err


@pytest.mark.parametrize("entry", [3, {"files": {"m": {}}, "signature": ""}, {"files": {}}])
def test_a_damaged_entry_is_one_sentence(entry, folder):
  with pytest.raises(UserError, match='has a damaged entry "code"'):
    own_code.load(folder, {"code": entry})


def test_a_run_of_the_project_alone_has_no_code(folder):
  assert own_code.keep(folder, {"type": "plm_jax.models.bert.Bert", "layers": 1}) is None
  assert list(folder.iterdir()) == []
