"""The command: smaller runs that every command reads, one page, and mistakes as sentences."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import plm_jax as plm
from plm_jax.commands import shrink as command
from plm_jax.compression.pruning import sparsity
from plm_jax.errors import UserError
from plm_jax.export import model_card
from plm_jax.runs import Run, RunInfo, initial_parameters
from plm_jax.sharding import MeshShape
from plm_jax.shrinking import shrink as shrinking
from plm_jax.shrinking.subjects import subject
from plm_jax.shrinking.verdicts import Outcome, cards
from plm_jax.shrinking.ways import way, ways
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.train.loop import compile_experiment
from tests import toy_run
from tests.tasks.conftest import documents, recipe, source, table, tokenizer  # noqa: F401  fixtures
from tests.test_encode import call  # noqa: F401  a fixture
from tests.test_runs import GPT

WAYS = "int8,prune50"


@pytest.fixture(scope="module")
def tuned(source, table, recipe, tmp_path_factory):  # noqa: F811
  """A fine-tuned run."""
  place = tmp_path_factory.mktemp("tuned")
  task = Classify(source=str(table), test_share=0.2, length=16)
  chosen = plan(source, recipe, task, [], place, place / "runs")
  model_cell(chosen, "pretrained", None, 0, "test")
  return place / "runs" / "pretrained-all-0"


@pytest.fixture(scope="module")
def small(tuned, tmp_path_factory):
  """The directory of its smaller runs."""
  out = tmp_path_factory.mktemp("small") / "out"
  page = shrinking.shrink([str(tuned)], WAYS, out, out.parent / "cache", steps=4, command="COMMAND")
  assert page == out / "index.html"
  return out


@pytest.mark.slow
def test_the_page_has_every_way_with_its_numbers_and_the_claims(small):
  page, record = (small / "page.md").read_text(), json.loads((small / "results.json").read_text())
  for part in ("COMMAND", "`full`", "`int8`", "`prune50`", "int8 loses almost nothing"):
    assert part in page
  assert "Pruning 50% makes a model faster" in page
  assert (small / "scores.png").read_bytes().startswith(b"\x89PNG")
  assert (small / "index.html").read_text().startswith("<!doctype html>")
  sizes, speeds = record["sizes"], record["speeds"]
  assert sizes["int8"]["memory"] < 0.75 * sizes["full"]["memory"]
  assert sizes["prune50"]["memory"] == sizes["full"]["memory"]
  assert all(0 < s["p50"] <= s["p95"] and s["throughput"] > 0 for s in speeds.values())
  way, before = record["cells"][2]["way"], record["cells"][2]["at_once"]
  assert way == "prune50" and before["macro_f1"] >= 0


@pytest.mark.slow
def test_a_smaller_run_predicts_from_its_directory_as_in_memory(small, tuned):
  task, model = load(small / "int8-0")
  made = way("int8").make(subject(str(tuned), small.parent / "cache"))
  texts = ["the small red house road", "river two stone old wind"]
  examples = task.encode([task.parse(text, text) for text in texts], model.tokenizer)
  stored = task.predict(model, examples)
  assert stored == task.predict(model._replace(params=made.params), examples)
  assert plm.load(small / "int8-0").predict(texts) == stored
  score = json.loads((small / "int8-0" / "shrink_scores.json").read_text())["scores"]
  assert score == subject(str(tuned), small.parent / "cache").scores(Run.load(small / "int8-0"))


@pytest.mark.slow
def test_a_pruned_run_is_sparse_before_and_after_training_on(small):
  start, end = (Run.load(small / p) for p in ("training/prune50-0/start", "prune50-0"))
  assert sparsity(start.params) == sparsity(end.params) == 0.5
  kernels = [run.params.blocks.feed_forward.up.kernel[...] for run in (start, end)]
  assert not np.array_equal(*kernels) and end.experiment.steps == 4
  assert end.document["shrunk"]["way"] == "prune50" and end.form is None


@pytest.mark.slow
def test_a_card_says_the_way_the_run_and_the_loss(small, tmp_path, monkeypatch):
  monkeypatch.setattr(model_card, "history", lambda run: iter([run]))
  plm.load(small / "int8-0").save(tmp_path / "out")
  card = (tmp_path / "out" / "README.md").read_text()
  for part in (
    "## Made smaller",
    "way: `int8`",
    "made from the run `pretrained-all-0`",
    "stores its parameters as int8",
    "| full, 1 run |",
    "| int8, 1 run |",
    "Fine-tuning examples",
  ):
    assert part in card
  assert "bytes in memory" not in card.partition("# out")[0]


@pytest.mark.slow
def test_a_second_command_trains_nothing_again_and_other_steps_are_refused(
  small, tuned, monkeypatch
):
  monkeypatch.setattr(shrinking, "save", None)  # nothing is made
  monkeypatch.setattr(shrinking, "speeds", lambda runs, subject: {n: _Speed() for n in runs})
  cache = small.parent / "cache"
  before = (small / "results.json").read_text()
  shrinking.shrink([str(tuned)], WAYS, small, cache, steps=4)
  cells = [json.loads(text)["cells"] for text in (before, (small / "results.json").read_text())]
  assert cells[0] == cells[1]
  with pytest.raises(UserError, match="was trained on for 4 steps"):
    shrinking.shrink([str(tuned)], WAYS, small, cache, steps=5)


def test_each_run_and_seed_has_its_place_whatever_the_number_of_seeds():
  places = {shrinking.place_of("prune50", number, seed) for number in range(3) for seed in range(3)}
  assert len(places) == 9 and {"prune50-0", "prune50-1"} < places


class _Speed:
  def _asdict(self):
    return {"p50": 1.0, "p95": 1.0, "throughput": 1.0}


@pytest.mark.slow
def test_mistakes_are_sentences_with_exit_code_2(call, small, tuned, source, tmp_path):  # noqa: F811
  def error_of(*words):
    code, _, errors = call(command, *words)
    assert code == 2
    return errors

  cache, out = f"--cache={small.parent / 'cache'}", f"--out={tmp_path / 'new'}"
  tuned, full = f"--from={tuned}", tmp_path / "full"
  full.mkdir()
  (full / "note.txt").write_text("mine")
  assert "--out=DIR" in error_of(tuned)
  assert "'int3', which is no way; the ways are bf16" in error_of(tuned, out, "--ways=int3", cache)
  assert "no way" in error_of(tuned, out, "--ways=prune0", cache)
  assert "layers7 was asked for" in error_of(tuned, out, "--ways=layers7", cache)
  assert "heads10 leaves 2 of 2 heads" in error_of(tuned, out, "--ways=heads10", cache)
  assert not (tmp_path / "new").exists()  # nothing was begun
  assert "choose another --out" in error_of(tuned, f"--out={full}", "--ways=int8", cache)
  assert "made smaller already (int8)" in error_of(f"--from={small / 'int8-0'}", out, cache)
  wrong = error_of(f"--from={source.path}", out, "--data=x.tsv", cache)
  assert "was pretrained and not fine-tuned" in wrong


@pytest.mark.slow
def test_a_decoder_is_scored_on_its_text_timed_by_its_tokens_and_trained_on(tmp_path):
  data = dataclasses.replace(GPT.data, source=str(toy_run.text()))
  experiment = dataclasses.replace(GPT, data=data, mesh=MeshShape())
  experiment = experiment.resolve(toy_run.prepared().tokenizer.vocab.size)
  run = Run(
    experiment=experiment,
    tokenizer=toy_run.prepared().tokenizer,
    params=experiment.init_parameters(jax.random.key(0)),
  )
  run.save(tmp_path / "gpt")
  out, cache = tmp_path / "out", toy_run.text().parent / "cache"
  shrinking.shrink([str(tmp_path / "gpt")], "w8,prune50,heads50", out, cache, steps=4)
  record = json.loads((out / "results.json").read_text())
  assert record["writes"] and record["metric"] == "clm_loss" and record["is_loss"]
  cells = {cell["way"]: cell for cell in record["cells"]}
  losses = {way: cell["scores"]["clm_loss"] for way, cell in cells.items()}
  assert abs(losses["w8"] - losses["full"]) < 0.01
  assert losses["prune50"] < cells["prune50"]["at_once"]["clm_loss"]  # trained on
  assert sparsity(Run.load(out / "prune50-0").params) == 0.5
  assert Run.load(out / "heads50-0").config.heads == 1
  texts = plm.load(out / "w8-0").generate("", max_length=4)
  assert texts == plm.load(out / "w8-0").generate("", max_length=4) and len(texts) == 1


@pytest.mark.slow
def test_training_from_int8_is_refused(small, tuned):
  info = RunInfo.read(small / "int8-0")
  program = compile_experiment(RunInfo.read(tuned).experiment, _batch(tuned, small))
  with pytest.raises(UserError, match="stored as int8, and training needs float32"):
    initial_parameters(program, info)


def _batch(tuned, small):
  (batch,) = subject(str(tuned), small.parent / "cache").rows(1, 16)
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


def test_a_list_of_ways_has_each_once():
  assert [w.name for w in ways("int8, prune90,int8,layers3")] == ["int8", "prune90", "layers3"]


def test_claims_are_decided_by_all_seeds():
  def record(*int8):
    cells = [
      {"way": "full", "start": str(n), "scores": {"f1": 0.8}, "steps": 0} for n in range(len(int8))
    ]
    cells += [
      {"way": "int8", "start": str(n), "scores": {"f1": x}, "steps": 0} for n, x in enumerate(int8)
    ]
    size = {"memory": 1, "disk": 1}
    return {"metric": "f1", "is_loss": False, "cells": cells, "sizes": {"full": size, "int8": size},
            "speeds": {w: {"throughput": 1.0} for w in ("full", "int8")}}  # fmt: skip

  def verdict(*int8):
    return next(c.outcome for c in cards(record(*int8)) if "almost nothing" in c.claim)

  assert verdict(0.795, 0.81) == "supported"
  assert verdict(0.77, 0.75) == "not supported"
  assert verdict(0.77, 0.81) == "undecided"
  assert Outcome([1.0], 0.97).verdict == "supported"
