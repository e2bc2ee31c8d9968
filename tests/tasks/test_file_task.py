"""Splits of a user's files, their columns, the length of rows, and data that make no task."""

import dataclasses
import json

import numpy as np
import pytest

from plm_jax import overrides
from plm_jax.errors import UserError
from plm_jax.runs import row_limit
from plm_jax.tasks.answer import Answer
from plm_jax.tasks.choose import Choose
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example
from plm_jax.tasks.file_task import own_splits
from plm_jax.tasks.multi import Multi
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.tag import Tag
from plm_jax.tasks.task import Context
from plm_jax.tasks.write import Write
from tests.tasks.conftest import WORDS

SHARES = {"test": 0.2, "dev": 0.1}


def items(count, labels=("a", "b"), documents=None):
  return [
    Example((f"t{n}",), labels[n % len(labels)], str(n), str(n // documents if documents else n))
    for n in range(count)
  ]


def test_own_splits_keep_every_class_in_proportion():
  made = items(80) + [Example((f"r{n}",), "rare", "", f"r{n}") for n in range(10)]
  parts = own_splits(made, SHARES, lambda item: item.target)
  assert {name: len(part) for name, part in parts.items()} == {"train": 63, "test": 18, "dev": 9}
  assert [sum(i.target == "rare" for i in part) for part in parts.values()] == [7, 2, 1]
  assert own_splits(made, SHARES, lambda item: item.target) == parts
  assert sorted(item for part in parts.values() for item in part) == sorted(made)


def test_own_splits_keep_documents_and_equal_examples_together():
  made = [*items(100, documents=5), *(i._replace(document="copy") for i in items(3))]
  parts = own_splits(made, SHARES, lambda item: item.target)
  sides = [{i.document for i in part} for part in parts.values()]
  texts = [{i.texts for i in part} for part in parts.values()]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert not sides[a] & sides[b] and not texts[a] & texts[b]


def test_a_class_with_one_example_is_trained_on():
  parts = own_splits([*items(40), Example(("x",), "once", "", "x")], SHARES, lambda i: i.target)
  assert "once" in {i.target for i in parts["train"]}


@pytest.fixture
def context(source, tmp_path):
  return Context(source, tmp_path)


def rows(first, count, end="\n", words=3):
  """Lines "text,label": all different."""
  picked = [
    " ".join(WORDS[n // 12**k % 12] for k in range(words)) for n in range(first, first + count)
  ]
  return "".join(f"{text},{'ab'[n % 2]}{end}" for n, text in enumerate(picked))


def write(folder, **parts):
  for name, text in parts.items():
    (folder / f"{name}.csv").write_text("text,label\n" + text)
  return folder


def test_files_that_the_user_names_are_taken_whole(context, tmp_path):
  write(tmp_path, train=rows(0, 50), dev=rows(50, 7), test=rows(60, 9))
  one = Classify(
    source=str(tmp_path / "train.csv"),
    dev=str(tmp_path / "dev.csv"),
    test=str(tmp_path / "test.csv"),
  )
  for task in (one, Classify(source=str(tmp_path))):  # by name, or by their folder
    read, splits = task.read(context)
    assert [len(split) for split in splits[:3]] == [50, 7, 9]
    assert read.labels == ("a", "b")
    assert read.dev and read.test


def test_without_a_test_file_the_dev_file_is_scored_and_a_line_says_so(context, tmp_path):
  write(tmp_path, train=rows(0, 50), dev=rows(50, 7))
  (tmp_path / "test.csv").write_text("index,sentence\n0,the house\n1,a tree\n")  # GLUE's
  _, splits = Classify(source=str(tmp_path)).read(context)
  assert splits.test.items == splits.dev.items and len(splits.train) == 50
  assert any("the scores are those of the dev file" in note for note in splits.notes)
  assert any("test.csv has no labels" in note for note in splits.notes)


def test_test_examples_that_are_trained_on_are_counted(context, tmp_path):
  write(tmp_path, train=rows(0, 50), dev=rows(50, 7), test=rows(45, 9))
  _, splits = Classify(source=str(tmp_path)).read(context)
  assert "5 of 9 test examples are training examples" in splits.notes


def test_no_example_of_a_file_is_left_out(context, tmp_path):
  write(tmp_path, train=rows(0, 1700))
  _, splits = Classify(source=str(tmp_path)).read(context)
  assert sum(map(len, splits[:3])) == 1700


def test_the_length_fits_the_data_within_the_models_positions(context, tmp_path):
  write(tmp_path, train=rows(0, 200))
  task, splits = Classify(source=str(tmp_path)).read(context)
  assert task.length == 8
  assert "0 of 200 examples are longer" in splits.notes[-1]
  write(tmp_path, train=rows(0, 200, words=30))
  task, splits = Classify(source=str(tmp_path)).read(context)
  assert task.length == 16 == context.source.config.positions
  assert "200 of 200 examples are longer and are cut (the longest has 32)" in splits.notes[-1]
  assert dataclasses.replace(task, length=12).read(context)[0].length == 12


@pytest.mark.parametrize(
  ("kind", "parts", "said"),
  [
    (Classify, {"train": "the house,a\n" * 9}, "has 1 class .a.; two are needed"),
    (Classify, {"train": "the house,0.5\na tree,1.25\n"}, "not classes; --task=regress"),
    (Classify, {"train": rows(0, 9), "dev": "a tree,c\n"}, "'c', which training never saw"),
    (Classify, {"train": "the house,a\na tree,b\n"}, "the dev split of .* is empty"),
    (Regress, {"train": "the house,1\na tree,1\n"}, "numbers of .* are all equal"),
    (Regress, {"train": rows(0, 9)}, "label 'a', which is no finite number"),
    (Pairs, {"train": rows(0, 9)}, "no column for text2"),
    (Classify, {"other": rows(0, 9)}, "has no train.jsonl|.csv|.tsv; it has other.csv"),
  ],
)
def test_data_that_make_no_task_are_refused_in_a_sentence(context, tmp_path, kind, parts, said):
  write(tmp_path, **parts)
  with pytest.raises(UserError, match=said):
    kind(source=str(tmp_path)).read(context)


def test_a_regression_reads_one_text_or_two_and_standardises(context, tmp_path):
  lines = [f"the {a},a {b},{n / 4}" for n, (a, b) in enumerate(zip(WORDS * 5, WORDS[::-1] * 5))]
  (tmp_path / "train.csv").write_text("sentence1,sentence2,score\n" + "\n".join(lines))
  task, splits = Regress(source=str(tmp_path)).read(context)
  assert task.pair and len(splits.train.items[0].texts) == 2
  values = splits.train.targets["value"]
  targets = [item.target for item in splits.train.items]
  assert task.mean == pytest.approx(np.mean(targets)) and task.scale == pytest.approx(
    np.std(targets)
  )
  assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=1e-6)
  words = task.score(splits.test, task.baseline("words", splits))
  constant = task.score(splits.test, task.baseline("majority", splits))
  assert constant["spearman"] == 0.0 and words["rmse"] != constant["rmse"]


def test_few_examples_keep_their_targets(context, tmp_path):
  write(tmp_path, train=rows(0, 100))
  task, splits = Classify(source=str(tmp_path)).read(context)
  few = splits.few(12, 1)
  assert len(few.train) == 12
  labels = [task.labels.index(item.target) for item in few.train.items]
  assert labels == few.train.targets["label"].tolist()
  assert few.record() != splits.record()
  assert np.array_equal(
    task.encode(few.train.items, context.tokenizer).ids[3][0], few.train.ids[3][0]
  )


def named_rows(folder):
  """A table whose longest column is the text; and a dev file with one that is longer."""
  texts = [line.rpartition(",")[::2] for line in rows(0, 60).splitlines()]
  made = [{"summary": text[:3], "body": text, "mark": mark} for text, mark in texts]
  dev = [row | {"summary": row["body"] * 3} for row in made[:10]]
  for name, part in (("train", made), ("dev", dev)):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
  return dev


def test_other_files_have_the_columns_of_the_training_file(context, tmp_path):
  dev = named_rows(tmp_path)
  task, splits = Classify(source=str(tmp_path)).read(context)
  assert (task.text, task.label) == ("body", "mark")
  bodies = [(row["body"],) for row in dev]
  assert [item.texts for item in splits.dev.items] == bodies
  assert [i.texts for i in task.read_file(tmp_path / "dev.jsonl", labelled=True)] == bodies
  stored = overrides.from_json(overrides.to_json(task))
  assert stored.parse(json.dumps(dev[0]), "line 1").texts == bodies[0]
  assert stored.parse("a plain text", "line 1").texts == ("a plain text",)
  with pytest.raises(
    UserError, match=r"^line 1 has no column 'body' \(task.text\); it has summary"
  ):
    stored.parse('{"summary": "x"}', "line 1")
  with pytest.raises(UserError, match=r'^line 1 has no "body"; give one\.$'):
    stored.parse('{"body": " "}', "line 1")
  (tmp_path / "t.csv").write_text("body,verdict\nthe house,a\n")
  with pytest.raises(UserError, match=r"has no column 'mark' \(task.label\); it has body, verdict"):
    task.read_file(tmp_path / "t.csv", labelled=True)


@pytest.mark.parametrize(
  ("task", "said"),
  [
    (Classify(label="Lable"), r"'Lable' \(task.label\); it has .*; did you mean 'label'\?"),
    (Classify(id="nam"), r"'nam' \(task.id\); .*; did you mean 'name'\?"),
    (Multi(label="label,naem"), r"'naem' \(task.label\); .*; did you mean 'name'\?"),
    (Choose(label="lable"), r"'lable' \(task.label\); .*; did you mean 'label'\?"),
    (Write(target="lable"), r"'lable' \(task.target\); .*; did you mean 'label'\?"),
    (Write(text="zzz"), r"'zzz' \(task.text\); it has text, label, name, choices\.$"),
  ],
)
def test_a_misspelt_column_is_answered_with_the_nearest_one(tmp_path, task, said):
  row = {"text": "a", "label": "0", "name": "n", "choices": ["x", "y"]}
  (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
  with pytest.raises(UserError, match=f"has no column {said}"):
    dataclasses.replace(task, source=str(tmp_path / "train.jsonl")).with_columns()


@pytest.mark.parametrize(
  ("task", "name", "files"),
  [
    (Tag(), "a.csv", ".conll, .conllu, "),
    (Answer(), "a.csv", ".json files"),
    (Classify(), "a.conll", ".jsonl, .csv, .tsv files"),
    (Multi(), "a.json", ".jsonl, .csv, .tsv files"),
    (Choose(), "a.conllu", ".jsonl, .csv, .tsv files"),
  ],
)
def test_a_file_of_a_type_that_the_task_does_not_read_is_refused(
  context, tmp_path, task, name, files
):
  (tmp_path / name).write_text("text,label\n" + rows(0, 40))
  path = str(tmp_path / name)
  suffix = name.removeprefix("a")
  with pytest.raises(UserError, match=rf"--task={task.name} reads {files}.*is a {suffix} file"):
    dataclasses.replace(task, source=path).read(context)


def test_files_after_training_without_a_header_have_none(context, tmp_path):
  (tmp_path / "train.csv").write_text(rows(0, 60))
  task, _ = Classify(source=str(tmp_path / "train.csv")).read(context)
  (tmp_path / "new.csv").write_text("house,a\nold tree,b\n")
  read = task.read_file(tmp_path / "new.csv", labelled=True)
  assert [item.texts[0] for item in read] == ["house", "old tree"]


def test_rows_reach_as_far_as_any_earlier_run(source, tmp_path):
  config = dataclasses.replace(source.config, positions=512)
  data = dataclasses.replace(source.experiment.data, length=8)
  experiment = dataclasses.replace(source.experiment, model=config, data=data)
  short = dataclasses.replace(source, experiment=experiment, document={})
  assert row_limit(short) == 8
  after = dataclasses.replace(short, document={"initial": {"from": str(source.path)}})
  assert row_limit(after) == 16 == source.experiment.data.length
  assert row_limit(dataclasses.replace(short, document={"public": {}})) == 512
  rotary = dataclasses.replace(experiment, model=dataclasses.replace(config, position="rotary"))
  assert row_limit(dataclasses.replace(short, experiment=rotary)) == 512


@pytest.mark.slow
@pytest.mark.parametrize(("start", "step"), [(1.7e9, 1), (0, 1e-9), (-5, 1e6)])
def test_numbers_of_any_size_are_learnt_and_predicted(tmp_path, context, start, step):
  """Times in seconds differ by less than float32 tells, and small numbers are not rounded away."""
  lines = "".join(f"text {n},{start + step * (n % 40)!r}\n" for n in range(120))
  (tmp_path / "train.csv").write_text("text,score\n" + lines)
  task, splits = Regress(source=str(tmp_path)).read(context)
  values = splits.train.targets["value"]
  targets = np.array([item.target for item in splits.train.items])
  assert len(np.unique(values)) == len(np.unique(targets))
  back = [prediction["value"] for prediction in task.from_targets(values.astype(np.float64))]
  assert task.score(splits.train, [{"value": value} for value in back])["spearman"] > 0.999
