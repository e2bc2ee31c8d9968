"""Fine-tuning few parameters: stored without the base, resumed, merged, and tied to its base."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import plm_jax as plm
import run_finetune
from plm_jax.commands import adapter, predict
from plm_jax.errors import UserError
from plm_jax.export.peft_run import write_adapter
from plm_jax.models.parameters import named
from plm_jax.peft.methods import METHODS
from plm_jax.runs import Run, RunInfo, base_of, with_adapter
from plm_jax.tasks import finetuning, predicting
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.train.loop import compile_experiment
from tests.tasks.conftest import check_a_killed_run_ends_alike
from tests.test_encode import call  # noqa: F401  a fixture

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
def arrays_of(checkpoint):
  """Path -> (dtype, shape) of the arrays of a checkpoint."""
  return json.loads((checkpoint / "checkpoint.json").read_text())["arrays"]


def numbers_in(arrays):
  """Not the bytes of the files, whose overhead differs from run to run."""
  return sum(np.prod(shape, dtype=int) for _, shape in arrays.values())


@pytest.mark.slow
def test_only_added_and_trained_parameters_are_stored_and_have_moments(planned, finished, source):
  run = planned.path / "pretrained-60-0"
  index = arrays_of(run / "checkpoints/12")
  stored = {path for path in index if path.startswith("params/")}
  assert stored and all(path.split("/")[1] in ("added", "trained") for path in stored)
  moments = {path.partition("/mu/")[2] for path in index if "/mu/" in path}
  assert moments == {path.removeprefix("params/") for path in stored}
  numbers = sum(np.prod(shape, dtype=int) for path, (_, shape) in index.items() if "/mu/" in path)
  head = 16 * 16 + 16 + 16 * 3 + 3  # the pooler and the classes
  assert numbers == 2 * (16 * 2 + 2 * 16) + head
  assert numbers_in(index) < numbers_in(arrays_of(source.path / "checkpoints/1")) / 2


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


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_not(planned, finished, monkeypatch):
  check_a_killed_run_ends_alike(planned, finished, monkeypatch)


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


def test_several_adapters_share_a_base_and_a_whole_model_is_none(planned, finished):
  path = planned.path / "pretrained-60-0"
  base = plm.load(planned.source.path)
  model = base.with_adapter(path)
  text = "the small cat house old"
  assert model.predict(text) == plm.load(path).predict(text)
  kept, changed = (dict(named(m.run.params)) for m in (base, model))
  same = [p for p in kept if changed.get(p) is kept[p]]
  assert "embed/token/table" in same and "blocks/attention/query/kernel" not in same
  with pytest.raises(UserError, match="is a whole model and no adapter"):
    base.with_adapter(planned.source.path)
  with pytest.raises(UserError, match=r"and the parameters in .* are others"):
    plm.load(path).with_adapter(path)


def test_an_adapter_is_written_for_peft_and_read_again(planned, finished, tmp_path):
  path = planned.path / "pretrained-60-0"
  said = write_adapter(path, tmp_path / "out")
  assert said == "Lora, for BertForSequenceClassification"
  document = json.loads((tmp_path / "out/adapter_config.json").read_text())
  assert document["r"] == 2 and document["task_type"] == "SEQ_CLS"
  assert document["modules_to_save"] == ["bert.pooler.dense", "classifier"]
  ids = {"input_ids": [[5, 6, 7, 8]]}
  ours = plm.load(path)(**ids)["logits"]
  theirs = plm.load(planned.source.path).with_adapter(tmp_path / "out")(**ids)["logits"]
  np.testing.assert_allclose(ours, theirs, atol=1e-5)
  with pytest.raises(UserError, match="is a whole model and no adapter; leave --to=peft out"):
    write_adapter(planned.source.path, tmp_path / "none")


@pytest.mark.slow
def test_the_commands_train_move_merge_and_predict(call, source, table, tmp_path):  # noqa: F811
  base, out = tmp_path / "base", tmp_path / "out"
  shutil.copytree(source.path, base)
  words = [f"--from={base}", f"--data={table}", f"--workdir={out}", f"--cache={tmp_path}"]
  steps = ["--set=steps=4", "--set=optim.warmup=1", "--labels=60", "--noprobe"]
  rank = ["--peft=lora", "--set=peft.rank=2"]
  code, shown, errors = call(run_finetune, *words, *steps, *rank)
  assert code == 0, errors
  assert "Lora trains 179 of" in shown
  model = out / "pretrained-60-0"
  base.rename(tmp_path / "moved")
  text = "--text=the small cat house old"
  code, _, errors = call(predict, text, f"--model={model}")
  assert code == 2 and errors.count("\n") == 1
  assert "which is not there; name the place" in errors
  merged = tmp_path / "merged"
  moves = (f"--base={tmp_path / 'moved'}", f"--merge={merged}")
  code, _, errors = call(adapter, f"--model={model}", *moves)
  assert code == 0, errors
  one, two = (call(predict, text, f"--model={path}") for path in (model, merged))
  assert one[0] == 0 and one[1] == two[1]
  for bad, sentence in (
    (["--peft=sauce"], "--peft=sauce was given; expected one of lora, dora"),
    (["--peft=lora", "--set=peft.targets=sauce"], "sauce fits no linear map of the model; it has"),
    (["--peft=lora", "--set=peft.rank=0"], "peft.rank=0 must be at least 1"),
    (["--peft=lora", "--arms=pretrained,random"], "would freeze random parameters"),
  ):
    words[0] = f"--from={tmp_path / 'moved'}"
    code, _, errors = call(run_finetune, *words, *steps, *bad)
    assert code == 2 and sentence in errors, errors
