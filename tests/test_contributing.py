"""The examples of CONTRIBUTING.md run as they stand, and the files that it names exist."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from plm_jax import cli
from plm_jax.data.pipeline import iterate
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.objectives.clm import CLM
from plm_jax.runs import Run, RunInfo
from plm_jax.sharding import MeshShape
from plm_jax.tasks.rows import LabelledBatches, framed_rows
from plm_jax.tasks.task import Context
from plm_jax.train import report
from plm_jax.train.loop import Data, compile_experiment, fit
from plm_jax.train.workdir import Workdir
from tests import toy_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
TWO_STEPS = replace(
  toy_run.TOY, steps=2, optim=replace(toy_run.TOY.optim, warmup=1), objectives=(CLM(),)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The page's python blocks as files, each named by its first line."""
  path = tmp_path_factory.mktemp("examples")
  for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
    (path / name).write_text(code)
  return path


def load(path: Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def losses(records, name: str) -> list[float]:
  """Held-out losses before and after training."""
  return [record[f"{name}/loss"] for record in records if record["split"] == "valid"]


def test_every_python_block_is_an_example_with_a_name(folder):
  assert PAGE.count("```python") == len(list(folder.iterdir())) == 4


def test_the_examples_are_short(folder):
  for path in folder.iterdir():
    lines = path.read_text().splitlines()
    code = [line for line in lines if line.strip() and not re.match(r'"""|import |from ', line)]
    assert len(code) <= 20, path.name


@pytest.mark.slow
def test_the_example_of_a_model_trains(folder, tmp_path):
  model = load(folder / "running_mean.py").RunningMean(width=16, positions=32)
  experiment = replace(TWO_STEPS, model=model)
  state, records = toy_run.run(tmp_path / "run", experiment)
  before, after = losses(records, "clm")
  assert after < before
  prepared = toy_run.prepared()
  run = report.Results(experiment, records, prepared.train.counts, [])
  assert "no examples: this model neither generates" in report.examples(state.params, run, prepared)
  run = Run(experiment=experiment, tokenizer=prepared.tokenizer, params=state.params)
  assert perplexity(run, toy_run.text().read_text()[:200])["perplexity"] < 100
  rows = framed_rows([(np.array([5, 6]),)], model, prepared.tokenizer, 8)
  (batch,) = LabelledBatches(rows, seed=0, global_batch=1).evaluation()
  params = replace(model, vocab_size=64).init(jax.random.key(0), {"classes": 3})
  assert params.class_logits(params(batch, experiment.compute), batch, None).shape == (1, 3)


@pytest.mark.slow
def test_the_example_of_an_objective_trains(folder, tmp_path):
  objective = load(folder / "one_token.py").OneToken()
  _, records = toy_run.run(tmp_path / "run", replace(TWO_STEPS, objectives=(objective,)))
  before, after = losses(records, "one")
  assert after < before


def test_the_example_of_an_objective_masks_one_token_of_every_row(folder):
  objective = load(folder / "one_token.py").OneToken()
  train, _ = toy_run.batches(replace(TWO_STEPS, objectives=(objective,)))
  plain, _ = toy_run.batches(TWO_STEPS)
  assert ((train(0)["input_ids"] != plain(0)["input_ids"]).sum(axis=1) == 1).all()


@pytest.mark.slow
def test_the_example_of_a_task_trains(folder, tmp_path):
  table = tmp_path / "days.csv"
  days = [f"{tens} {units}" for tens in range(10) for units in range(10)]
  rows = [f"day {day} was fine,{stars}" for day in days for stars in (2, 5)]
  table.write_text("\n".join(["text,stars", *rows]) + "\n")
  prepared = toy_run.prepared()
  source = RunInfo(experiment=TWO_STEPS, tokenizer=prepared.tokenizer)
  task = load(folder / "good_or_bad.py").GoodOrBad(source=str(table))
  task, splits = task.read(Context(source, tmp_path))
  assert task.labels == ("bad", "good")
  experiment = replace(
    TWO_STEPS, objectives=(task.objective(),), data=task, mesh=MeshShape(data=1)
  ).resolve(prepared.tokenizer.vocab.size)
  encoded = task.rows(splits.train, experiment.model, prepared.tokenizer)
  batches = LabelledBatches(encoded, seed=0, global_batch=experiment.global_batch)
  program = compile_experiment(experiment, batches(0), jax.devices()[:1])
  data = Data(lambda start: iterate(batches, start, experiment.steps), batches.evaluation())
  with Workdir(tmp_path / "run") as workdir:
    state, records = fit(program, data, workdir, quiet=True)
  assert int(state.step) == 2
  assert np.isfinite(losses(records, "class")).all()


def test_the_example_of_a_table_is_listed_with_its_arms(folder):
  listed = dict(cli.list_experiments(str(folder), "Table"))
  reference = f"{folder}/masking_rates.py:rates"
  assert listed == {reference: "Is 40% better than 15%?"}
  table = cli.load_experiment(reference, returns="Table")()
  rates = {arm.name: arm.experiment("smoke").objectives[0].rate for arm in table.arms}
  assert rates == {"rate-15": 0.15, "rate-40": 0.4}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "CHANGELOG.md", "docs"])
def test_the_files_that_the_documents_name_exist(page):
  missing = {
    f"{path.name}: {name}"
    for path in ([ROOT / page] if page.endswith(".md") else sorted((ROOT / page).glob("*.md")))
    for name in re.findall(
      r"\b(?:plm_jax|tests|experiments|benchmarks|docs|results)/[\w/]+\.\w+", path.read_text()
    )
    if not (ROOT / name).exists() and "masking_rates" not in name
  }
  assert not missing
