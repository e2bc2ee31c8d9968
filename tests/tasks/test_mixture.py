"""A mixture: its rates, its order, and GLUE's tasks as one."""

import dataclasses
import os
import signal
import zipfile

import jax
import numpy as np
import pytest

from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment, Intervals
from plm_jax.models.t5 import T5v11
from plm_jax.objectives.span_corruption import SpanCorruption
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import Run
from plm_jax.tasks import glue
from plm_jax.tasks.finetuning import batches_of, model_cell, plan
from plm_jax.tasks.glue_files import PARTS, read_glue
from plm_jax.tasks.glue_mixture import GlueMixture
from plm_jax.tasks.glue_suite import Glue
from plm_jax.tasks.mixture import MixedBatches
from plm_jax.tasks.rows import EncodedRows
from plm_jax.tasks.suite import suite_table, tune_parts
from plm_jax.tasks.task import Context
from plm_jax.train.loop import Interrupted
from tests.tasks.test_glue import folder  # noqa: F401  fixture
from tests.tasks.test_write import recipe as recipe_of_pairs

SIZES, CAP = (40, 7, 100), 20
ROUND = 20 + 7 + 20  # positions with all shares


def batches(**settings):
  """Of three sets, whose rows are interleaved."""
  part = np.random.default_rng(0).permutation(np.repeat(range(3), SIZES))
  rows = np.arange(len(part), dtype=np.int32)
  rows = EncodedRows({"input_ids": rows[:, None]}, {"length": rows}, rows, rows, rows)
  settings = {"seed": 3, "global_batch": 8, **settings}
  return MixedBatches(rows, part=part, cap=CAP, **settings)


def drawn(mixture, steps):
  """The rows of the first steps."""
  return np.concatenate([mixture(step)["input_ids"][:, 0] for step in range(steps)])


def test_a_set_has_the_share_of_its_size_up_to_the_cap():
  mixture = batches()
  rows = drawn(mixture, ROUND)  # 8 rounds
  counts = np.bincount(mixture.part[rows])
  shares = np.minimum(SIZES, CAP)
  np.testing.assert_array_equal(counts / len(rows), shares / shares.sum())
  first = mixture.part[rows[:ROUND]]
  np.testing.assert_array_equal(np.bincount(first), shares)
  assert (np.diff(first) != 0).sum() > ROUND // 3  # mixed, and not one set after the other


def test_each_set_is_read_in_epochs_in_a_new_order():
  mixture = batches()
  rows = drawn(mixture, 5 * ROUND)  # 40 rounds: 800, 280 and 800 rows
  for number, size in enumerate(SIZES):
    own = rows[mixture.part[rows] == number]
    epochs = own[: len(own) // size * size].reshape(-1, size)
    assert len(epochs) >= 8
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), np.flatnonzero(mixture.part == number))
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_depends_on_the_step_and_the_seed_alone():
  whole = batches()
  before = [whole(step)["input_ids"] for step in range(20)]
  resumed = batches()
  for step in (19, 7, 8):
    np.testing.assert_array_equal(resumed(step)["input_ids"], before[step])
  parts = [batches(process_index=n, process_count=2)(7)["input_ids"] for n in range(2)]
  np.testing.assert_array_equal(np.concatenate(parts), before[7])
  assert (batches(seed=4)(7)["input_ids"] != before[7]).any()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  """A run of a toy T5 with random parameters."""
  words = "acceptable unacceptable neutral entailment contradiction 0 1 2 3 4 5 8 . cat dog old"
  tokenizer = WordPiece(vocab_size=260).train(iter([words] * 99))
  experiment = Experiment(
    model=T5v11(layers=1, width=16, heads=2, hidden=32),
    objectives=(SpanCorruption(),),
    data=Corpus(length=32, tokenizer=WordPiece(vocab_size=260)),
    optim=AdamW(peak=1e-2, warmup=1),
    global_batch=1,
    steps=1,
  ).resolve(tokenizer.vocab.size)
  path = tmp_path_factory.mktemp("t5") / "t5"
  params = experiment.init_parameters(jax.random.key(0))
  Run(experiment=experiment, tokenizer=tokenizer, params=params).save(path)
  return Run.load(path)


def recipe(source, task, examples):
  made = recipe_of_pairs(source, task, examples)
  return dataclasses.replace(made, global_batch=8, schedule=Intervals(log=2, save=50, keep=1))


@pytest.fixture(scope="module")
def suite(folder):  # noqa: F811
  return Glue(
    source=str(folder), text_to_text=True, mixture=True, cap=30, only=("cola", "stsb", "mnli")
  )


@pytest.fixture(scope="module")
def read(suite, t5, tmp_path_factory):
  """(task, splits)."""
  cache = tmp_path_factory.mktemp("cache")
  task = dataclasses.replace(suite.joint(cache), length=24, target_length=4)
  return task.read(Context(t5, cache))


def test_the_mixture_has_the_examples_of_all_parts_as_each_part_encodes_them(read, folder, t5):  # noqa: F811
  task, splits = read
  assert isinstance(task, GlueMixture) and task.parts == ("cola", "stsb", "mnli")
  assert [len(split) for split in splits[:3]] == [3 * 48, 12 + 12 + 36, 12 + 12 + 36 + 45]
  for part in task.parts:
    items = read_glue(folder / PARTS[part].folder / "train.tsv", PARTS[part], True).items
    alone = task.tasks[part].encode(items, t5.tokenizer)
    numbers = [n for n, e in enumerate(splits.train.items) if task.parts[task.part_of(e)] == part]
    own = splits.train.take(numbers)
    assert [e.target for e in own.items] == [e.target for e in items]
    for mine, theirs in zip(own.ids, alone.ids, strict=True):
      np.testing.assert_array_equal(mine[0], theirs[0])
  again = task.encode(splits.test.items[::-1], t5.tokenizer)
  assert again.items == splits.test.items[::-1]
  np.testing.assert_array_equal(again.ids[0][0], splits.test.ids[-1][0])


def test_training_draws_the_parts_of_the_mixture_with_their_cap(read, t5):
  task, splits = read
  batches = batches_of(recipe(t5, task, 1), splits.train, t5.tokenizer)
  assert isinstance(batches, MixedBatches) and batches.shares.tolist() == [30, 30, 30]


def test_scores_are_those_of_each_part_and_the_average_is_of_parts(read):
  task, splits = read
  answers = task.baseline("majority", splits)
  scores = task.score(splits.test, answers)
  for part in task.parts:
    numbers = [n for n, e in enumerate(splits.test.items) if task.parts[task.part_of(e)] == part]
    items = [e._replace(name=e.name.partition(":")[2]) for e in splits.test.take(numbers).items]
    own = dataclasses.replace(splits.test.take(numbers), items=items)
    alone = task.tasks[part].score(own, [answers[n] for n in numbers])
    assert {n: x for n, x in scores.items() if n.startswith(part)} == {
      f"{part}/{n}": x for n, x in alone.items()
    }
  assert "mnli/accuracy_mm" in scores
  means = [scores["cola/mcc"], (scores["stsb/pearson"] + scores["stsb/spearman"]) / 2]
  means.append((scores["mnli/accuracy"] + scores["mnli/accuracy_mm"]) / 2)
  assert scores["average"] == pytest.approx(np.mean(means))


def test_new_lines_and_files_name_their_task(read, folder):  # noqa: F811
  task, _ = read
  item = task.parse("mnli\ta cat\ta dog", "line 1")
  assert item.texts == ("a cat", "a dog") and task.part_of(item) == 2
  items = task.read_file(folder / "STS-B" / "dev.tsv", labelled=True)
  assert {task.part_of(item) for item in items} == {1}
  with pytest.raises(UserError, match="expected the name of a task"):
    task.parse("a cat", "line 1")
  with pytest.raises(UserError, match="is in no folder that is named after"):
    task.read_file(folder / "QNLI" / "dev.tsv", labelled=True)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"mixture": True}, "text_to_text=true"),
    ({"cap": 0, "mixture": True, "text_to_text": True}, "at least 1 example"),
  ],
)
def test_a_mixture_that_cannot_be_is_refused(settings, said):
  with pytest.raises(UserError, match=said):
    Glue(source="x", **settings)


@pytest.mark.slow
def test_one_model_learns_the_mixture_and_a_stopped_one_goes_on(suite, t5, tmp_path, monkeypatch):
  settings = ["task.length=24", "task.target_length=4", "task.by_length=false"]

  def answers(self, trained, examples):  # test_write.py generates
    norm = float(sum(abs(np.asarray(x)).sum() for x in jax.tree.leaves(trained.params)))
    text = self.labels[int(norm) % 2] if self.labels else f"{norm % 5:.1f}"
    return [{"output": text, "score": norm, "label": text}] * len(examples)

  monkeypatch.setattr(glue.Write, "predict", answers)

  def tune(task, path):
    chosen = plan(t5, recipe, task, settings, tmp_path, path)
    return [model_cell(chosen, "pretrained", None, 0, "toy")]

  results = tune_parts(suite, tmp_path / "whole", tmp_path, tune)
  assert [result.name for result in results] == ["cola", "stsb", "mnli"]
  assert {result.path for result in results} == {tmp_path / "whole"}
  _, rows = suite_table(suite, results)
  assert {name.split()[0] for name in rows} == {"cola", "stsb", "mnli", "average"}
  lines = suite.finish(results, tmp_path / "whole", tmp_path)
  assert any("submission.zip has the test predictions of 5 files" in line for line in lines)
  with zipfile.ZipFile(tmp_path / "whole" / "submission.zip") as archive:
    assert {"AX.tsv", "MNLI-mm.tsv", "CoLA.tsv"} <= set(archive.namelist())

  call = MixedBatches.__call__

  def stopped(self, step):
    if step == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return call(self, step)

  monkeypatch.setattr(MixedBatches, "__call__", stopped)
  with pytest.raises(Interrupted):
    tune_parts(suite, tmp_path / "again", tmp_path, tune)
  monkeypatch.setattr(MixedBatches, "__call__", call)
  again = tune_parts(suite, tmp_path / "again", tmp_path, tune)
  assert [r.cells for r in again] == [r.cells for r in results]
  metrics = [
    (tmp_path / n / "pretrained-all-0/metrics.jsonl").read_bytes() for n in ("whole", "again")
  ]
  assert metrics[0] == metrics[1]
