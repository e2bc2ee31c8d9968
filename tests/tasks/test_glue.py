"""GLUE on miniature files with the quirks of the real ones."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from plm_jax.data import tfds_text
from plm_jax.errors import UserError
from plm_jax.tasks import glue, glue_suite, glue_tfds
from plm_jax.tasks.comparison import Cell
from plm_jax.tasks.examples import Example
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.glue import MISMATCHED, GlueLabels, GlueText, GlueValues, glue_scores
from plm_jax.tasks.glue_files import PARTS, SUBMISSIONS, read_glue, submission
from plm_jax.tasks.glue_files import test_file as file_to_predict
from plm_jax.tasks.glue_suite import Glue
from plm_jax.tasks.registry import SUITES, TASKS
from plm_jax.tasks.suite import PartResult, average, suite_table, tune_parts, with_suite_settings
from plm_jax.tasks.task import Context
from tests.tasks.conftest import TELLING, toy_sentence

KINDS = sorted(TELLING)
MNLI = "index promptID pairID genre s1_binary s2_binary s1_parse s2_parse sentence1 sentence2"
HEADS = {  # the line of names of train.tsv, and of test.tsv
  "cola": ("", "index sentence"),
  "sst2": ("sentence label", "index sentence"),
  "mrpc": ("Quality|#1 ID|#2 ID|#1 String|#2 String", "index|#1 ID|#2 ID|#1 String|#2 String"),
  "stsb": (
    "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "index genre filename year old_index source1 source2 sentence1 sentence2",
  ),
  "qqp": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2"),
  "mnli": (f"{MNLI} label1 gold_label", MNLI),
  "qnli": ("index question sentence label", "index question sentence"),
  "rte": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
  "wnli": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
}


def names_of(head: str) -> list[str]:
  return head.split("|" if "|" in head else " ")


def lines_of(name: str, count: int, labelled: bool) -> str:
  """`count` lines of a part's file, in which a word tells the label."""
  part, (train, test) = PARTS[name], HEADS[name]
  head = train if labelled else test
  names = names_of(head) if head else list(part.columns)
  lines = ["\t".join(names)] if head else []
  for n in range(count):
    kind = n % max(len(part.classes), 2)
    row = dict.fromkeys(names, "x") | {names[0]: str(n)}
    row |= dict(zip(part.texts, (toy_sentence(7 * n + 3, KINDS[kind]), 'the "old house')))
    row[part.label] = part.classes[kind] if part.classes else f"{5 * kind - 0.25 * kind:.3f}"
    lines.append("\t".join(row[column] for column in names))
  return "\n".join(lines)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """All nine tasks. MRPC has a byte-order mark, SST-2 and CoLA no line end at the end, RTE ends of
  Windows; QQP and MNLI have malformed lines."""
  place = tmp_path_factory.mktemp("glue") / "glue_data"
  for name, part in PARTS.items():
    inside = place / part.folder
    inside.mkdir(parents=True)
    ending = "" if name in ("sst2", "cola") else "\n"
    mm = ("_matched", "_mismatched") if name == "mnli" else ("",)
    files = {"train": (48, True)}
    files |= {f"dev{m}": (12 + 3 * len(m), True) for m in mm}
    files |= {f"test{m}": (6, False) for m in mm}
    for stem, (count, labelled) in files.items():
      text = lines_of(name, count, labelled) + ending
      if stem == "train" and name == "qqp":
        text += "99\t1\t2\tbroken\n"
      if name == "rte":
        text = text.replace("\n", "\r\n")
      encoding = "utf-8-sig" if name == "mrpc" else "utf-8"
      (inside / f"{stem}.tsv").write_text(text, encoding=encoding, newline="")
  (place / "AX").mkdir()
  (place / "AX" / "AX.tsv").write_text("index\tsentence1\tsentence2\n5\ta\tb\n7\tc\td\n")
  return place


@pytest.mark.parametrize("name", PARTS)
def test_every_line_of_every_file_is_an_example_with_its_label(folder, name):
  part = PARTS[name]
  file = read_glue(folder / part.folder / "train.tsv", part, labelled=True)
  assert len(file.items) == 48 and len(file.left_out) == (name == "qqp")
  first = file.items[0]
  assert len(first.texts) == len(part.texts) and first.texts[0] == toy_sentence(3, KINDS[0])
  assert first.texts[1:] == ('the "old house',) * (len(part.texts) - 1)
  labels = [item.target for item in file.items]
  assert labels[:2] == list(part.classes[:2]) if part.classes else labels[:2] == [0.0, 4.75]
  assert {type(label) for label in labels} == {str if part.classes else float}


def test_a_cola_file_has_no_line_of_names_but_its_test_file_has(folder):
  train = read_glue(folder / "CoLA" / "train.tsv", PARTS["cola"], labelled=True).items
  test = read_glue(folder / "CoLA" / "test.tsv", PARTS["cola"], labelled=False).items
  assert len(train) == 48 and train[0].name == "train.tsv:1"
  assert len(test) == 6 and test[0].name == "0" and test[0].target is None


def test_a_malformed_line_is_left_out_to_train_and_kept_to_submit(tmp_path):
  part = PARTS["qqp"]
  head = HEADS["qqp"][0].replace(" ", "\t")
  rows = [f"{n}\t1\t2\ta\tb\t{n % 2}" for n in range(60)]
  rows[7], rows[9] = "7\t1\t2\ta", "9\t1\t2\ta\tb\tmaybe"
  (tmp_path / "train.tsv").write_text("\n".join([head, *rows]))
  assert read_glue(tmp_path / "train.tsv", part, labelled=True).left_out == [9, 11]
  (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n0\ta\tb\n1\ta\n2\t\tb\n")
  items = read_glue(tmp_path / "test.tsv", part, labelled=False).items
  assert [item.texts for item in items] == [("a", "b"), ("a", ""), ("", "b")]
  (tmp_path / "train.tsv").write_text("\n".join([head, *rows[:12]]).replace("\t0", "\t?"))
  with pytest.raises(UserError, match=r"of 13 lines of .* is it the right file"):
    read_glue(tmp_path / "train.tsv", part, labelled=True)
  with pytest.raises(UserError, match="no column 'sentence1', which GLUE's RTE has"):
    read_glue(tmp_path / "train.tsv", PARTS["rte"], labelled=True)


def test_scores_are_those_of_scikit_learn_and_mnli_has_two():
  targets, labels = list("110010"), list("100110")
  items = [Example(("a",), target, f"dev.tsv:{n}") for n, target in enumerate(targets)]
  predictions = [{"label": label} for label in labels]
  scores = glue_scores(PARTS["mrpc"], items, predictions)
  assert scores["f1"] == f1_score(targets, labels, pos_label="1") == pytest.approx(2 / 3)
  assert scores["mcc"] == matthews_corrcoef(targets, labels)
  sides = ("", "", "mis", "mis")
  targets = ("neutral", "entailment", "neutral", "neutral")
  mnli = [Example(("a", "b"), t, f"dev_{m}matched.tsv:1") for m, t in zip(sides, targets)]
  answers = [{"label": t} for t in ("neutral", "entailment", "neutral", "entailment")]
  scores = glue_scores(PARTS["mnli"], mnli, answers)
  assert (scores["accuracy"], scores["accuracy_mm"]) == (1, 0.5)
  items = [Example(("a", "b"), value) for value in (0.0, 2.0, 5.0)]
  mismatched = [item for item in mnli if item.name.startswith(MISMATCHED)]
  alone = glue_scores(PARTS["mnli"], mismatched, answers[-len(mismatched) :])
  assert set(alone) == {"accuracy_mm"}
  scores = glue_scores(PARTS["stsb"], items, [{"value": value} for value in (1, 3, 6)])
  assert scores["pearson"] == pytest.approx(1) and scores["spearman"] == pytest.approx(1)


def test_the_average_takes_the_mean_of_a_task_s_metrics_first():
  suite = Glue()
  mrpc = PartResult("mrpc", [Cell("pretrained", "all", 0, {"accuracy": 0.8, "f1": 0.6})], None)
  cola = [Cell("pretrained", "all", seed, {"mcc": mcc}) for seed, mcc in enumerate((0.2, 0.4))]
  results = [mrpc, PartResult("cola", [*cola, Cell("words", "all", 0, {"mcc": 0.1})], None)]
  assert average(suite, results, "pretrained", "all") == pytest.approx((0.7 + 0.3) / 2)
  assert average(suite, results, "words", "all") is None  # of one task only
  text, rows = suite_table(suite, results)
  assert rows["average"] == {"pretrained, all": pytest.approx(0.5)}
  assert rows["cola MCC"] == {"pretrained, all": pytest.approx(0.3), "words, all": 0.1}
  assert text.splitlines()[-1].split()[:2] == ["average", "0.500"]


@pytest.mark.slow
def test_the_suite_trains_each_task_and_writes_a_submission(folder, source, recipe, tmp_path):
  suite, settings = with_suite_settings(
    Glue(source=str(folder)), ["task.only=cola,stsb,mnli,qnli", "task.length=16", "steps=4"]
  )
  assert suite.only == ("cola", "stsb", "mnli", "qnli")

  def tune(task, path):
    chosen = plan(source, recipe, task, settings, tmp_path, path)
    return [model_cell(chosen, "pretrained", None, 0, "toy")]

  results = tune_parts(suite, tmp_path, tmp_path, tune)
  assert set(results[2].cells[0].test) >= {"accuracy", "accuracy_mm"}
  lines = suite.finish(results, tmp_path, tmp_path)
  assert any("4 of 9 tasks: without SST-2, MRPC, QQP, RTE, WNLI" in line for line in lines)
  with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
    files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
  ax = files.pop("AX.tsv")
  assert [row.split("\t")[0] for row in ax] == ["index", "5", "7"]
  assert {row.split("\t")[1] for row in ax[1:]} <= set(PARTS["mnli"].classes)
  assert set(files) == {"CoLA.tsv", "STS-B.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv"}
  classes = {"CoLA.tsv": "cola", "MNLI-m.tsv": "mnli", "MNLI-mm.tsv": "mnli", "QNLI.tsv": "qnli"}
  for name, rows in files.items():
    assert rows[0] == "index\tprediction" and len(rows) == 7
    assert [row.split("\t")[0] for row in rows[1:]] == list("012345")
    answers = [row.split("\t")[1] for row in rows[1:]]
    if name in classes:
      assert set(answers) <= set(PARTS[classes[name]].classes)
    else:
      assert all(0 <= float(answer) <= 5 for answer in answers)


def test_a_submission_has_the_names_and_numbers_of_the_leaderboard():
  titles = {each.title for each in SUBMISSIONS}
  expected = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
  assert titles == set(expected.split())
  items = [Example(("a", "b"), None, str(n)) for n in range(3)]
  text = submission(PARTS["stsb"], items, [-0.5, 2.34567, 7.0])
  assert text == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"


@pytest.mark.parametrize("names", ["AX/AX.tsv", "diagnostic/diagnostic.tsv", "ax/test.tsv"])
def test_the_best_model_of_mnli_predicts_the_diagnostic_set(tmp_path, monkeypatch, names):
  for path in ("MNLI/test_matched.tsv", names):
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text("")
  monkeypatch.setattr(
    glue_suite, "predicted", lambda model, path, part: f"{path.name} by {model.name} of {part}"
  )
  cells = [Cell("pretrained", "all", seed, {"accuracy": seed / 2}) for seed in range(2)]
  results = [PartResult("mnli", cells, tmp_path)]
  lines = Glue(source=str(tmp_path)).finish(results, tmp_path, tmp_path)
  assert "MNLI-mm is not in the submission: there is no MNLI/test_mismatched.tsv" in lines
  assert "CoLA is not in the submission: no such model" in lines
  with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
    assert sorted(archive.namelist()) == ["AX.tsv", "MNLI-m.tsv"]
    assert archive.read("AX.tsv").decode() == f"{names.split('/')[1]} by pretrained-all-1 of mnli"


def builder_of(folder, name, place):
  """A builder like TFDS's glue/NAME, of the files of a folder."""
  import tensorflow_datasets as tfds

  part = PARTS["mnli" if name == "ax" else name]
  label = tfds.features.ClassLabel(names=part.classes) if part.classes else np.float32
  texts = dict.fromkeys(part.names, tfds.features.Text())
  features = tfds.features.FeaturesDict(texts | {"label": label, "idx": np.int32})

  class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "Toy."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description="Toy.")]  # noqa: RUF012
    url_infos = None  # looks for no checksums

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      if name == "ax":
        return {"test": self._generate_examples(folder / "AX" / "AX.tsv")}
      files = sorted((folder / part.folder).iterdir())
      return {p.stem.replace("dev", "validation"): self._generate_examples(p) for p in files}

    def _generate_examples(self, path):
      labelled = not path.name.lower().startswith(("test", "ax"))
      for number, item in enumerate(read_glue(path, part, labelled).items):
        target = -1 if not labelled else item.target
        target = part.classes.index(target) if part.classes and labelled else target
        yield number, dict(zip(part.names, item.texts)) | {"label": target, "idx": number}

  return Glue(config=name, data_dir=place, file_format="array_record")


def test_tfds_has_the_same_examples_as_the_files(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  with pytest.raises(UserError, match="tfds:glue/cola' is not prepared"):
    Glue(source="tfds").parts(tmp_path)
  names = ("cola", "stsb", "mnli", "ax")
  with tfds_text._quiet():
    for name in names:
      builder_of(folder, name, tmp_path / "data").download_and_prepare()
  suite, files = Glue(source="tfds"), Glue(source=str(folder)).parts(tmp_path)
  parts = suite.parts(tmp_path)
  assert list(parts) == [name for name in PARTS if name in names]
  for name, task in parts.items():
    for path in sorted(Path(files[name].source).iterdir()):
      labelled = not path.name.startswith("test")
      (theirs, ours) = (read_glue(p, PARTS[name], labelled).items
                        for p in (path, Path(task.source) / path.name))  # fmt: skip
      assert [(e.texts, e.target) for e in ours] == [(e.texts, e.target) for e in theirs]
  diagnostic = file_to_predict(suite.folder(tmp_path), SUBMISSIONS[-1])
  assert diagnostic.read_text() == "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n"
  monkeypatch.setattr(glue_tfds, "_lines", None)  # written once
  assert suite.folder(tmp_path) == diagnostic.parents[1]


@pytest.mark.parametrize("name", PARTS)
def test_text_to_text_has_t5_s_source_and_a_word_for_each_label(folder, name, tokenizer):
  part = PARTS[name]
  task = GlueText(part=name, source=str(folder / part.folder), length=32, target_length=8)
  items = read_glue(folder / part.folder / "train.tsv", part, labelled=True).items
  task = task.fitted(items)
  written = [task._as_text(item) for item in items[:2]]
  source, texts = written[0].texts[0], items[0].texts
  if name == "mnli":
    assert source == f"mnli hypothesis: {texts[1]} premise: {texts[0]}"
  else:
    pairs = " ".join(f"{column}: {text}" for column, text in zip(part.names, texts))
    assert source == f"{name} {pairs}"
  if part.classes:
    assert [text.target for text in written] == list(task.labels[:2])
  else:
    assert [text.target for text in written] == ["0.0", "4.8"]
  assert task.encode(items[:2], tokenizer).items[0].texts == texts


def test_an_output_that_is_no_label_is_wrong_and_one_without_a_number_is_minus_one(
  folder, tokenizer, monkeypatch
):
  monkeypatch.setattr(glue.Write, "predict", lambda self, trained, examples: [
    {"output": text, "label": text if text in (self.labels or ()) else "(none)"}
    for text in ("acceptable", "hamburger", "3. 8", "equivalent")
  ])  # fmt: skip
  cola = GlueText(part="cola", labels=("unacceptable", "acceptable"))
  assert [p["label"] for p in cola.predict(None, None)] == ["1", "(none)", "(none)", "(none)"]
  stsb = GlueText(part="stsb", labels=())
  assert [p["value"] for p in stsb.predict(None, None)] == [-1, -1, 3.8, -1]


def test_repeated_dev_examples_are_all_scored(folder, source, tmp_path):
  path = tmp_path / "SST-2"
  path.mkdir()
  (path / "train.tsv").write_text(lines_of("sst2", 40, True))
  (path / "dev.tsv").write_text("sentence\tlabel\nthe cat\t1\nthe cat\t0\nthe dog\t1")
  _, splits = GlueLabels(part="sst2", source=str(path)).read(Context(source, tmp_path))
  assert len(splits.test) == len(splits.dev) == 3


def test_parts_have_a_classifier_or_write_and_are_found_whatever_their_names(folder, tmp_path):
  parts = Glue(source=str(folder)).parts(tmp_path)
  assert list(parts) == list(PARTS) and isinstance(parts["stsb"], GlueValues)
  text = Glue(source=str(folder), text_to_text=True).parts(tmp_path)
  assert {type(task) for task in text.values()} == {GlueText}
  (tmp_path / "own" / "sts_b").mkdir(parents=True)
  assert list(Glue(source=str(tmp_path / "own")).parts(tmp_path)) == ["stsb"]
  assert SUITES["glue"] is Glue and "glue" not in TASKS


@pytest.mark.parametrize(
  ("suite", "said"),
  [
    (Glue(source="none"), "'none' is no folder"),
    (Glue(source="{empty}"), "none of GLUE's tasks"),
    (Glue(source="{folder}", only=("imdb",)), "there is no 'imdb'"),
  ],
)
def test_a_folder_without_tasks_is_refused_in_a_sentence(folder, tmp_path, suite, said):
  source = suite.source.format(empty=tmp_path, folder=folder)
  with pytest.raises(UserError, match=said):
    dataclasses.replace(suite, source=source).chosen(tmp_path)


def test_the_limit_of_a_mixture_is_refused_without_one():
  with pytest.raises(UserError, match=r"task\.cap=30 is of a mixture; add"):
    Glue(source="none", cap=30)
