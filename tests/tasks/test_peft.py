"""Fine-tuning few parameters: stored without the base, resumed, merged, and tied to its base."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from plm_jax.data.pipeline import iterate
from plm_jax.errors import UserError
from plm_jax.models.parameters import named
from plm_jax.peft.methods import METHODS
from plm_jax.runs import Run, RunInfo, base_of, with_adapter
from plm_jax.tasks import finetuning, predicting
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.train.loop import compile_experiment

SETTINGS = ["task.length=10", "task.test_share=0.2", "task.dev_share=0.2", "compute.dtype=float32"]
LORA = dataclasses.replace(METHODS["lora"], rank=2, dropout=0.1)


@pytest.fixture(scope="module")
def planned(source, recipe, table, tmp_path_factory):
  def make(source, task, examples):
    return dataclasses.replace(recipe(source, task, examples), peft=LORA)

  path = tmp_path_factory.mktemp("peft")
  return plan(source, make, Classify(source=str(table)), SETTINGS, path, path, LORA)


@pytest.fixture(scope="module")
def finished(planned):
  return model_cell(planned, "pretrained", 60, 0, "toy")


@functools.cache
def bytes_of(folder):
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_only_added_and_trained_parameters_are_stored_and_have_moments(planned, finished, source):
  run = planned.path / "pretrained-60-0"
  index = json.loads((run / "checkpoints/12/checkpoint.json").read_text())["arrays"]
  stored = {path for path in index if path.startswith("params/")}
  assert stored and all(path.split("/")[1] in ("added", "trained") for path in stored)
  moments = {path.partition("/mu/")[2] for path in index if "/mu/" in path}
  assert moments == {path.removeprefix("params/") for path in stored}
  numbers = sum(np.prod(shape, dtype=int) for path, (_, shape) in index.items() if "/mu/" in path)
  head = 16 * 16 + 16 + 16 * 3 + 3  # the pooler and the classes
  assert numbers == 2 * (16 * 2 + 2 * 16) + head
  assert bytes_of(run / "checkpoints/12/state") < bytes_of(source.path / "checkpoints/1/state")


def test_the_base_stays_bit_for_bit_and_all_else_moves(planned, finished, source):
  run = RunInfo.read(planned.path / "pretrained-60-0")
  model = Run.load(planned.path / "pretrained-60-0")
  base, merged = dict(named(Run.load(source.path).params)), dict(named(model.params))
  changed = {p for p in merged if p in base and not np.array_equal(base[p], merged[p])}
  assert changed == {
    *("blocks/attention/query/kernel", "blocks/attention/value/kernel"),
    *("pooler/kernel", "pooler/bias"),
  }
  assert run.experiment.peft == LORA and model.experiment.peft is None


def test_merged_and_unmerged_models_predict_the_same(planned, finished):
  path = planned.path / "pretrained-60-0"
  task, merged = predicting.load(path)
  info = RunInfo.read(path)
  beside = predicting.trained(with_adapter(base_of(info), info, merge=False))
  assert task.score(planned.splits.test, task.predict(merged, planned.splits.test)) == finished.test
  items = planned.splits.few(None, 0).test
  scores = [[p["score"] for p in task.predict(m, items)] for m in (merged, beside)]
  np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_killed_run_ends_like_one_that_was_not(planned, finished, monkeypatch):
  def dies(batches, start, stop, workers):
    return iterate(batches, start, 9, workers)  # the stream ends after step 9 of 12

  again = planned._replace(path=planned.path / "killed")
  with monkeypatch.context() as patched:
    patched.setattr(finetuning, "iterate", dies)
    with pytest.raises(StopIteration):
      model_cell(again, "pretrained", 60, 0, "toy")
  assert model_cell(again, "pretrained", 60, 0, "toy") == finished
  for file in ("metrics.jsonl", "scores.json"):
    one, two = (p.path / "pretrained-60-0" / file for p in (again, planned))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_the_best_of_several_evaluations_is_kept_without_the_base(planned):
  settings = [*planned.settings, "tuning.patience=2", "tuning.every=4"]
  chosen = planned._replace(settings=settings, path=planned.path / "best")
  cell = model_cell(chosen, "pretrained", 60, 0, "toy")
  path = chosen.path / "pretrained-60-0"
  (best,) = (path / "best").glob("[0-9]*")
  index = json.loads((best / "checkpoint.json").read_text())["arrays"]
  assert not [name for name in index if name.startswith("params/base/")]
  task, model = predicting.load(path)
  assert task.score(chosen.splits.dev, task.predict(model, chosen.splits.dev)) == cell.dev


@pytest.fixture
def moved(planned, finished, tmp_path):
  """An adapter and its base, which a test may change."""
  adapter, base = tmp_path / "adapter", tmp_path / "base"
  shutil.copytree(planned.path / "pretrained-60-0", adapter)
  shutil.copytree(planned.source.path, base)
  return adapter, base


def rewritten(path, change):
  document = json.loads((path / "config.json").read_text())
  change(document)
  (path / "config.json").write_text(json.dumps(document))


def test_a_base_that_is_gone_or_was_trained_on_is_refused(moved):
  adapter, base = moved
  rewritten(adapter, lambda d: d["base"].update({"from": str(base / "gone")}))
  with pytest.raises(UserError, match="gone, which is not there; name the place"):
    Run.load(adapter)
  rewritten(adapter, lambda d: d["base"].update({"from": str(base)}))
  Run.load(adapter)  # a copy is as good
  with_other = Run.load(base)
  first = jax.tree.map(lambda x: x + 1, with_other.params)
  shutil.rmtree(base)
  dataclasses.replace(with_other, params=first).save(base)
  with pytest.raises(UserError, match=r"trained on the base .* others"):
    Run.load(adapter)


def test_an_adapter_is_no_base(planned, finished, recipe):
  source = RunInfo.read(planned.path / "pretrained-60-0")
  program = compile_experiment(
    planned.experiment(60, 0),
    finetuning.global_shapes(
      finetuning.batches_of(
        planned.experiment(60, 0), planned.splits.few(60, 0).train, source.tokenizer
      )
    ),
  )
  with pytest.raises(UserError, match="holds an adapter without its base"):
    finetuning.restored(program, source)
