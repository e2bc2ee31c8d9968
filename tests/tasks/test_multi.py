"""Several labels per example: their files, the loss, the threshold and the metrics."""

import json

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from plm_jax import overrides
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.export.from_run import from_run, write_directory
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.t5 import T5
from plm_jax.runs import Run
from plm_jax.tasks import metrics
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.finetuning import baseline_cell, model_cell, plan
from plm_jax.tasks.multi import Multi, MultiLabel
from plm_jax.tasks.predicting import load
from plm_jax.tasks.probe import Probe
from plm_jax.tasks.registry import guessed
from plm_jax.tasks.task import Context
from plm_jax.train.step import forward
from tests.tasks.conftest import TELLING, WORDS

COMPUTE = Compute(dtype="float32")
KINDS = sorted(TELLING)
# The same labels as people have them. "none" has no label.
SETS = [("one", ("b", "a")), ("two", ("a",)), ("none", ()), ("three", ("c", "a"))]
BINARY = [f"{text},{','.join(str(+(name in s)) for name in 'abc')}" for text, s in SETS]
FILES = {
  "semicolons.csv": ["text,labels", *(f"{t},{'; '.join(s)}" for t, s in SETS)],
  "bars.tsv": ["text\ttopics", *(f"{t}\t{'|'.join(s)}" for t, s in SETS)],
  "commas.csv": ["text,label", *(f'{t},"{",".join(s)}"' for t, s in SETS)],
  "lists.jsonl": [json.dumps({"text": t, "tags": s}) for t, s in SETS],
  "written_lists.csv": ["text,labels", *(f'{t},"{list(s)}"' for t, s in SETS)],
  "columns.csv": ["text,a,b,c", *BINARY],
  "true.csv": ["text,a,b,c", *(f"{t},{','.join(str(n in s) for n in 'abc')}" for t, s in SETS)],
  "floats.csv": ["text,a,b,c", *(line.replace("0", "0.0").replace("1", "1.0") for line in BINARY)],
  "objects.jsonl": [json.dumps({"text": t, "marks": {n: n in s for n in "abc"}}) for t, s in SETS],
}  # fmt: skip


def write(path, lines):
  path.write_text("".join(line + "\n" for line in lines))
  return path


@pytest.mark.parametrize("name", FILES)
def test_labels_are_read_as_people_have_them(name, tmp_path):
  path = write(tmp_path / name, FILES[name])
  task = Multi(source=str(path)).with_columns()
  items, notes = task.read_noted(str(path))
  assert task.labels == ("a", "b", "c")  # the most frequent first
  assert [(i.texts[0], set(i.target)) for i in items] == [(t, set(s)) for t, s in SETS]
  assert "1.25 labels per example, 1 examples have none" in notes[-1]
  assert overrides.from_json(json.loads(json.dumps(overrides.to_json(task)))) == task
  plain = write(tmp_path / f"new.{name[-3:].replace('onl', 'jsonl')}", ["text", "new"])
  if plain.suffix == ".csv":  # without the column of labels
    assert task.read_file(plain, labelled=False)[0].texts == ("new",)


def test_the_separator_that_the_labels_share_is_found_and_said(tmp_path):
  lines = ["text,labels", 'a,"York, NY;Paris"', "b,Paris", 'c,"York, NY"']
  path = write(tmp_path / "places.csv", lines)
  task = Multi(source=str(path)).with_columns()
  assert task.labels == ("Paris", "York, NY")
  assert "between labels: ';' (--set=task.separator=" in task.read_noted(str(path))[1][-1]
  named = Multi(source=str(path), separator=",").with_columns()
  assert "NY;Paris" in named.labels


@pytest.mark.parametrize("name", ["bars.tsv", "written_lists.csv", "lists.jsonl", "columns.csv"])
def test_a_separator_that_no_cell_has_is_refused(name, tmp_path):
  path = write(tmp_path / name, FILES[name])
  with pytest.raises(UserError, match=r"task\.separator=',' was given, and no cell of the column"):
    Multi(source=str(path), separator=",").with_columns()


def test_named_columns_of_0_and_1_are_the_labels(tmp_path):
  path = write(tmp_path / "x.csv", ["text,a,b,c", "one,1,0,1", "two,1,1,0"])
  task = Multi(source=str(path), label="a,b").with_columns()
  assert task.labels == ("a", "b")
  path = write(tmp_path / "y.csv", ["text,a,b,c", "one,1,0,1", "two,1,2,0"])
  with pytest.raises(UserError, match=r"line 3, has '2' in the column 'b'; expected 0 or 1"):
    Multi(source=str(path), label="a,b").with_columns()


@pytest.mark.parametrize(
  ("name", "lines", "sentence"),
  [
    ("x.csv", ["text,a,b", "one,0,1", "two,1,0", "three,2,1"], "line 4, has '2' in the column 'a'"),
    ("x.csv", ["text,a,b", "one,0,1", "two,1,0", "three,1,"], "line 4, has '' in the column 'b'"),
    *(
      ("x.jsonl", [json.dumps({"text": "t", "labels": ["a", wrong]})], "line 1, .* list of texts")
      for wrong in (["b"], {"b": 1}, None)
    ),
  ],
)
def test_a_cell_that_is_no_label_is_refused_with_its_line(tmp_path, name, lines, sentence):
  with pytest.raises(UserError, match=sentence):
    Multi(source=str(write(tmp_path / name, lines))).with_columns()


def test_labels_that_cannot_be_learnt_are_refused(tmp_path, source):
  one = write(tmp_path / "one.csv", ["text,labels", *(f"t{n},a" for n in range(40))])
  with pytest.raises(UserError, match=r"has 1 label \(a\); two are needed"):
    Multi(source=str(one)).read(Context(source, tmp_path))
  many = write(tmp_path / "many.csv", ["text,labels", *(f"t{n},{n};b{n}" for n in range(99))])
  with pytest.raises(UserError, match="198 different labels such as"):
    Multi(source=str(many)).read(Context(source, tmp_path))
  task = Multi(labels=("a", "b"))
  with pytest.raises(UserError, match="the label 'z', which training never saw"):
    task.encode([Example(("t",), ("z",), "7")], WordPiece(vocab_size=30).train(iter(["t t"])))
  missing = write(tmp_path / "missing.jsonl", ['{"text": "t", "labels": ["a"]}', '{"text": "u"}'])
  with pytest.raises(UserError, match="line 2, has no labels"):
    Multi(source=str(missing)).with_columns()


def test_a_list_of_labels_suggests_the_task(tmp_path):
  assert guessed(str(write(tmp_path / "x.jsonl", FILES["lists.jsonl"]))) is Multi
  words = [json.dumps({"tokens": ["a"], "tags": ["O"]})]
  assert guessed(str(write(tmp_path / "y.jsonl", words))) is not Multi


@pytest.mark.parametrize(
  ("name", "seen"),
  [
    ("semicolons.csv", "cells of the column 'labels' have a ';'; --task=multi"),
    ("columns.csv", "the columns a, b, c are of 0 and 1; --task=multi"),
    ("commas.csv", ""),  # of the column "label"
  ],
)
def test_a_guess_of_one_label_points_to_the_task_of_several(tmp_path, capsys, name, seen):
  assert guessed(str(write(tmp_path / name, FILES[name]))) is Classify
  printed = capsys.readouterr().out
  assert seen in printed and bool(seen) == bool(printed)


# --- loss, threshold, metrics ---------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Gpt2, *(pytest.param(k, marks=SLOW) for k in (Bert, T5))])
def test_the_loss_is_the_mean_binary_cross_entropy_of_rows_and_labels(kind):
  config = kind(layers=1, width=16, heads=2, vocab_size=30)
  model = jax.jit(lambda key: config.init(key, {"classes": 3}))(jax.random.key(0))
  rng = np.random.default_rng(0)
  ids = rng.integers(5, 30, (4, 8)).astype(np.int32)
  batch = {
    "input_ids": ids,
    "segment_ids": 0 * ids,
    "decoder_input_ids": ids,
    "length": np.array([8, 5, 8, 3], np.int32),
    "decoder_length": np.array([8, 5, 8, 3], np.int32),
    "labels": rng.integers(0, 2, (4, 3)).astype(np.float32),
    "row_weight": np.array([1, 1, 1, 0], np.float32),
  }
  if kind is not T5:
    batch = {name: x for name, x in batch.items() if not name.startswith("decoder")}
  terms, _ = forward(model, batch, (MultiLabel(labels=3),), COMPUTE, None)
  logits = np.asarray(model.class_logits(model(batch, COMPUTE, None), batch, None), np.float64)
  p = 1 / (1 + np.exp(-logits))
  losses = -np.where(batch["labels"] > 0, np.log(p), np.log(1 - p))[:3]
  np.testing.assert_allclose(terms["multi/loss"][0] / terms["multi/loss"][1], losses.mean(), 1e-5)


def test_the_loss_of_large_scores_is_finite_and_its_baseline_is_the_entropy_of_frequencies():
  class Scores:
    def class_logits(self, hidden, batch, noise):
      return jax.numpy.array([[300.0, -300.0]])

  batch = {"labels": np.array([[0.0, 0.0]], np.float32), "row_weight": np.ones(1, np.float32)}
  objective = MultiLabel(labels=2)
  assert float(objective.loss(Scores(), None, batch, None)["loss"][0]) == pytest.approx(150)
  labels = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
  batch = {"labels": labels, "row_weight": np.array([1, 1, 0], np.float32)}
  loss = objective.baseline(None, [batch], {}).scores["loss"]
  assert loss == pytest.approx(np.log(2) / 2, abs=1e-6)


def test_the_threshold_is_the_best_of_all():
  rng = np.random.default_rng(0)
  scores = rng.random((40, 3)).round(1)  # with equal scores
  targets = scores + rng.normal(0, 0.3, scores.shape) > 0.6
  chosen = metrics.best_f1_threshold(scores, targets)
  f1 = {t: f1_score(targets, scores >= t, average="micro") for t in np.linspace(0.01, 0.99, 99)}
  assert f1_score(targets, scores >= chosen, average="micro") == max(f1.values())
  assert metrics.best_f1_threshold(scores, targets & False) == 0.5


def test_metrics_are_those_of_scikit_learn():
  rng = np.random.default_rng(1)
  true, predicted = rng.random((2, 30, 4)) > 0.6
  true[:, 3] = predicted[:, 3] = False  # a label that is never there
  task = Multi(labels=("a", "b", "c", "d"))
  names = [[task.labels[i] for i in np.flatnonzero(row)] for row in true]
  examples = Examples([Example(("t",), tuple(x)) for x in names], [])
  scores = task.score(examples, task.from_targets(predicted))
  assert scores == {
    "micro_f1": f1_score(true, predicted, average="micro"),
    "macro_f1": f1_score(true, predicted, average="macro", zero_division=0),
    "subset_accuracy": accuracy_score(true, predicted),
  }
  report = task.report(examples, task.from_targets(predicted)).splitlines()
  assert len(report) == 6 and report[1].split()[0] == "a"
  assert float(report[1].split()[3]) == round(f1_score(true[:, 0], predicted[:, 0]), 3)
  assert int(report[1].split()[4]) == true[:, 0].sum()


# --- the whole way --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finetuned(source, recipe, tmp_path_factory):
  """Texts with the telling words of their labels, fine-tuned."""
  place, rng = tmp_path_factory.mktemp("multi"), np.random.default_rng(0)
  lines = ["text,labels"]
  for _ in range(300):
    labels = [kind for kind in KINDS if rng.random() < 0.4]
    words = [*rng.choice(WORDS, 3), *(TELLING[kind][rng.integers(2)] for kind in labels)]
    lines.append(f"{' '.join(rng.permutation(words))},{';'.join(labels)}")
  data = write(place / "toy.csv", lines)
  steps = ["steps=40", "task.by_length=false"]
  made = plan(source, recipe, Multi(source=str(data)), steps, place, place)
  cell = model_cell(made, "pretrained", None, 0, "")
  return made, cell, place / "pretrained-all-0"


@pytest.mark.slow
def test_a_model_learns_which_labels_a_text_has(finetuned, source):
  made, cell, path = finetuned
  constant = baseline_cell(made, "majority", None, 0).test["micro_f1"]
  words = baseline_cell(made, "words", None, 0).test["micro_f1"]
  assert cell.test["micro_f1"] > constant + 0.1 and words > 0.95
  probe = Probe(source, made.task)
  assert probe.fits(made.splits)
  assert probe.cell(made.splits, "all", 0).test["micro_f1"] > constant
  task, trained = load(path)
  assert task.threshold is not None  # chosen on dev, and stored
  items = [task.parse("the old cat", "1")]
  (made,) = task.predict(trained, task.encode(items, trained.tokenizer))
  assert set(made["scores"]) == set(KINDS)
  assert made["labels"] == [n for n, p in made["scores"].items() if p >= task.threshold]
  strict, _ = load(path, ["task.threshold=0.999"])
  assert strict.predict(trained, task.encode(items, trained.tokenizer))[0]["labels"] == []


def test_a_mistake_is_how_far_the_wrong_labels_are_from_the_truth():
  task, item = Multi(labels=("a", "b", "c")), Example(("t",), ("a", "b"))
  scores = {"a": 0.9, "b": 0.2, "c": 0.7}
  assert task.mistake(item, {"labels": ["a", "c"], "scores": scores}) == pytest.approx(0.8 + 0.7)
  assert task.mistake(item, {"labels": ["a", "b"], "scores": scores}) == 0


@pytest.mark.slow
def test_an_exported_model_says_that_its_labels_are_several(finetuned):
  model = from_run(Run.load(finetuned[2]))
  assert model.document["problem_type"] == "multi_label_classification"
  assert list(model.document["id2label"].values()) == list(finetuned[0].task.labels)
  assert model.heads["classes"] == len(KINDS)


@SLOW
def test_transformers_has_the_loss_of_an_exported_model(finetuned, tmp_path):
  torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
  run, task = Run.load(finetuned[2]), finetuned[0].task
  write_directory(from_run(run), run.tokenizer, tmp_path / "out")
  kind = transformers.AutoModelForSequenceClassification
  theirs = kind.from_pretrained(tmp_path / "out").eval()
  items = [
    Example(("the old cat",), ("animal",)),
    Example(("red one stone",), ("colour", "number")),
  ]
  rows = task.rows(task.encode(items, run.tokenizer), run.config, run.tokenizer)
  batch = rows.batch(np.arange(2), np.ones(2, np.float32))
  total, count = forward(run.params, batch, (MultiLabel(labels=3),), COMPUTE, None)[0]["multi/loss"]
  mask = np.arange(rows.width) < rows.values["length"][:, None]
  ids, mask = (torch.tensor(x.astype(np.int64)) for x in (batch["input_ids"], mask))
  labels = torch.tensor(batch["labels"])
  loss = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
  assert loss.item() == pytest.approx(float(total / count), rel=1e-5)
