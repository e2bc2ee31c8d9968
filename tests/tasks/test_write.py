"""Writing texts: the loss is on the answer alone, several references count, and scores are those of
sacreBLEU and rouge-score."""

import builtins
import dataclasses
import json

import jax
import numpy as np
import pytest

from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment, Intervals
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt2
from plm_jax.models.t5 import T5v11
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import Run, RunInfo
from plm_jax.sharding import MeshShape
from plm_jax.tasks import text_metrics
from plm_jax.tasks.examples import Example
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.predicting import load
from plm_jax.tasks.rows import LabelledBatches
from plm_jax.tasks.task import Context
from plm_jax.tasks.write import Write
from plm_jax.tasks.writing import Writing

WORDS = "small old river house tree stone light wind road bird field cat".split()  # noqa: SIM905
MODELS = {
  "t5": T5v11(layers=1, width=32, heads=2, hidden=64),
  "bart": Bart(layers=1, width=32, heads=2, positions=64),
  "gpt": Gpt2(layers=1, width=32, heads=2, positions=64, initializer_range=0.2),
}


@pytest.fixture(scope="module")
def tokenizer():
  return WordPiece(vocab_size=100).train(iter(WORDS * 20))


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
  """`source(model) -> RunInfo` of a run with random parameters."""

  def make(model) -> RunInfo:
    corpus = Corpus(length=64, tokenizer=WordPiece(vocab_size=100))
    experiment = Experiment(
      model=model, objectives=(), data=corpus, optim=AdamW(), global_batch=1, steps=0
    ).resolve(tokenizer.vocab.size)
    head = {"mlm": 0} if isinstance(model, Bert) else {"lm": 0}
    params = experiment.model.init(jax.random.key(0), head)
    path = tmp_path_factory.mktemp("runs") / "run"
    Run(experiment=experiment, tokenizer=tokenizer, params=params).save(path)
    return RunInfo.read(path)

  return make


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Two words; the target is the second and then "cat"."""
  path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
  rows = [{"source": f"{a} {b}", "target": f"{b} cat"} for a in WORDS for b in WORDS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def recipe(source, task, examples):
  return Experiment(
    model=source.config,
    objectives=(task.objective(),),
    data=task,
    optim=AdamW(peak=1e-2, warmup=2),
    global_batch=32,
    steps=4,
    schedule=Intervals(log=4, save=50),
    mesh=MeshShape(),
  )


def read(source, task, folder):
  return task.read(Context(source, folder))


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name", ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "bart"))]
)
def test_the_loss_is_on_the_answer_and_its_end_alone(source, pairs, tmp_path, tokenizer, name):
  run = source(MODELS[name])
  task, splits = read(run, Write(source=str(pairs)), tmp_path)
  rows = task.rows(splits.test, run.config, tokenizer)
  (batch, *_) = LabelledBatches(rows, seed=0, global_batch=4).evaluation()
  end = tokenizer.vocab.end[0]
  for row, item in enumerate(splits.test.items[:4]):
    answer = [*tokenizer.encode(item.target).tolist(), end]
    wanted = batch["targets"][row]
    assert wanted[wanted >= 0].tolist() == answer
    inputs = batch["input_ids" if name == "gpt" else "decoder_input_ids"][row]
    at = np.flatnonzero(wanted >= 0)
    # Each target is the token after those that its position has read; the first reads none of them.
    assert inputs[at[1:]].tolist() == answer[:-1]
    assert inputs[at[0]] not in answer[:-1]
  assert float(Writing().count(batch)) == (batch["targets"] >= 0).sum()


def test_each_family_has_its_own_frame(source, pairs, tmp_path, tokenizer):
  v = tokenizer.vocab
  (cls,), (sep,), pad = v.begin, v.end, v.pad
  words = tokenizer.encode("old cat").tolist()
  shown = {}
  for name, model in MODELS.items():
    run = source(model)
    task, _ = read(run, Write(source=str(pairs), prefix="tree "), tmp_path)
    examples = task.encode([Example(("old cat",), "cat")], tokenizer)
    rows = task.rows(examples, run.config, tokenizer)
    shown[name] = {k: x[0, : rows.values["length"][0]].tolist() for k, x in rows.tokens.items()}
  words, (cat,) = tokenizer.encode("tree old cat").tolist(), tokenizer.encode("cat").tolist()
  assert shown["t5"]["input_ids"] == [*words, sep]
  assert shown["t5"]["decoder_input_ids"][:3] == [pad, cat, pad]
  assert shown["bart"]["input_ids"] == [cls, *words, sep]
  assert shown["bart"]["decoder_input_ids"][:3] == [sep, cls, cat]
  assert shown["gpt"]["input_ids"] == [cls, *words, sep, cat, sep]


def test_a_position_after_the_end_is_never_a_target_though_it_holds_the_end_token(
  source, pairs, tmp_path, tokenizer
):
  """GPT-2 has no padding token: rows are filled with its end token, which also ends an answer."""
  run = source(MODELS["gpt"])
  without = dataclasses.replace(tokenizer.vocab, pad=None)
  assert without.filler == without.end[0]
  task, splits = read(run, Write(source=str(pairs)), tmp_path)
  tokenizer = _WithVocab(tokenizer, without)
  rows = task.rows(splits.test, run.config, tokenizer)
  targets = rows.tokens["targets"]
  assert ((targets == without.end[0]).sum(axis=1) == 1).all()
  assert (rows.tokens["input_ids"][:, -1] == without.end[0]).all()


class _WithVocab:
  """A tokenizer with other roles of its tokens."""

  def __init__(self, tokenizer, vocab):
    self._tokenizer, self.vocab = tokenizer, vocab

  def __getattr__(self, name):
    return getattr(self._tokenizer, name)


def test_long_texts_are_cut_to_the_lengths_and_the_end_is_kept(source, tmp_path, tokenizer):
  path = tmp_path / "long.jsonl"
  rows = [{"source": " ".join([w, *WORDS]), "target": " ".join(WORDS[:6])} for w in WORDS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  run = source(MODELS["gpt"])
  task = Write(source=str(path), length=6, target_length=4, labels=())
  task, splits = read(run, task, tmp_path)
  rows = task.rows(splits.train, run.config, tokenizer)
  assert rows.tokens["input_ids"].shape[1] == 10
  targets = rows.tokens["targets"]
  assert ((targets >= 0).sum(axis=1) <= 4).all()
  assert ((targets == tokenizer.vocab.end[0]).sum(axis=1) == 1).all()
  assert any("longer and are cut" in note for note in splits.notes)


# --- training and predictions ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_word_of_the_source_is_learnt_and_predicted_again_from_the_directory(
  source, tmp_path, name
):
  pytest.importorskip("sacrebleu")
  pairs = tmp_path / "pairs.jsonl"
  rows = [{"source": f"{a} {b} {c}", "target": f"cat {c}"}
          for a in WORDS for b in WORDS[:4] for c in WORDS[4:7]]  # fmt: skip
  pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = ["steps=100", "optim.peak=1e-2", "model.dropout=0.0", "task.labels=()"]
  run = source(MODELS[name])
  chosen = plan(run, recipe, Write(source=str(pairs)), settings, tmp_path, tmp_path)
  cell = model_cell(chosen, "pretrained", None, 0, "toy")
  assert cell.test["exact"] > 60, cell.test
  task, trained = load(tmp_path / "pretrained-all-0")
  items = task.read_file(pairs, labelled=True)
  predictions = task.predict(trained, task.encode(items, trained.tokenizer))
  assert task.score(task.encode(items, trained.tokenizer), predictions)["exact"] > 60
  beams = dataclasses.replace(task, beams=3, length_penalty=0.6)
  better = beams.predict(trained, task.encode(items[:4], trained.tokenizer))
  assert all(p["output"] for p in better)
  assert "version:" in task.report(task.encode(items[:4], trained.tokenizer), predictions[:4])


def test_a_few_words_as_targets_are_labels_and_other_outputs_are_wrong(source, tmp_path):
  path = tmp_path / "labels.tsv"
  lines = [f"{a} {b}\t{'cat' if a < b else 'bird'}" for a in WORDS for b in WORDS]
  path.write_text("\n".join(["source\ttarget", *lines]))
  task, splits = read(source(MODELS["t5"]), Write(source=str(path)), tmp_path)
  assert task.labels == ("bird", "cat") and task.metrics[0] == "accuracy"
  right = [{"label": item.target} for item in splits.test.items]
  assert task.score(splits.test, right)["accuracy"] == 1
  wrong = [{"label": "(none)"}] * len(right)
  assert task.score(splits.test, wrong) == pytest.approx(
    {"accuracy": 0, "macro_f1": 0, "mcc": 0}, abs=1e-6
  )
  majority = task.score(splits.test, task.baseline("majority", splits))["accuracy"]
  assert 0.3 < majority < 0.9
  assert task.score(splits.test, task.baseline("copy", splits))["accuracy"] == 0


# --- reading --------------------------------------------------------------------------------------


def test_parallel_files_are_read_line_by_line_and_more_files_are_references(tmp_path):
  (tmp_path / "a.de").write_text("eins\nzwei\n\n", encoding="utf-8-sig")
  (tmp_path / "a.en").write_text("one\ntwo\nthree")
  (tmp_path / "b.en").write_text("1\n\n3\n")
  path = f"{tmp_path}/a.de,{tmp_path}/a.en,{tmp_path}/b.en"
  items = Write().read_file(path, labelled=True)
  assert [(i.texts[0], i.target) for i in items] == [("eins", ["one", "1"]), ("zwei", "two")]
  (tmp_path / "a.en").write_text("one\ntwo")
  with pytest.raises(UserError, match=r"a\.de 3, a\.en 2, b\.en 3"):
    Write().read_file(path, labelled=True)


def test_rows_of_the_same_source_are_references_to_test_on_and_examples_to_train_on(
  source, tmp_path
):
  pytest.importorskip("sacrebleu")
  rows = [{"mr": f"{w} tree", "ref": [f"{w} one", f"{w} two"]} for w in WORDS] * 2
  for name in ("train", "dev", "test"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(text)
  task, splits = read(source(MODELS["t5"]), Write(source=str(tmp_path)), tmp_path)
  assert len(splits.train) == 4 * len(WORDS) and len(splits.test) == len(WORDS)
  assert splits.test.items[0].target == ["small one", "small two"] * 2
  outputs = [{"output": item.target[1]} for item in splits.test.items]
  scores = task.score(splits.test, outputs)
  assert scores["bleu"] > 99 or scores["exact"] == 100
  assert scores["exact"] == scores["rouge_l"] == 100


def test_targets_that_the_tokenizer_does_not_know_are_refused(source, tmp_path):
  path = tmp_path / "other.jsonl"
  rows = [{"source": w, "target": f"我们{w}在这里"} for w in WORDS]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(UserError, match="of the targets' tokens are unknown to the tokenizer"):
    read(source(MODELS["t5"]), Write(source=str(path)), tmp_path)


def test_a_source_is_never_in_two_of_the_own_splits(source, tmp_path):
  pytest.importorskip("sacrebleu")
  path = tmp_path / "e2e.csv"
  lines = [f'"{a} {b}",{b} {WORDS[n]}' for a in WORDS for b in WORDS[:3] for n in range(3)]
  path.write_text("\n".join(["mr,ref", *lines]))
  _, splits = read(source(MODELS["t5"]), Write(source=str(path)), tmp_path)
  sources = [{item.texts for item in split.items} for split in splits[:3]]
  assert not sources[0] & sources[1] and not sources[0] & sources[2]
  assert sum(map(len, sources)) == 36


def test_a_folder_of_parallel_files_takes_the_suffixes_that_are_named(tmp_path):
  for split in ("train", "dev", "test"):
    for side in ("de", "en"):
      (tmp_path / f"{split}.{side}").write_text("x\n")
  task, notes = Write(source=str(tmp_path))._in_folder()
  assert task.source == f"{tmp_path}/train.de,{tmp_path}/train.en" and "train.de" in notes[0]
  task, _ = Write(source=str(tmp_path), text="en", target="de")._in_folder()
  assert task.test == f"{tmp_path}/test.en,{tmp_path}/test.de"


@pytest.mark.parametrize(
  ("header", "expected"),
  [
    ("mr,ref", ("mr", "ref")),
    ("id,article,highlights", ("article", "highlights")),
    ("source,target,note", ("source", "target")),
    ("english,french", ("english", "french")),
  ],
)
def test_columns_are_those_of_known_data_sets_or_the_first_two(tmp_path, header, expected):
  path = tmp_path / "a.csv"
  row = ",".join("1" if name == "id" else f"a {name}" for name in header.split(","))
  path.write_text(f"{header}\n{row}\n")
  (item,) = Write(header=True).read_file(path, labelled=True)
  assert (item.texts[0], item.target) == tuple(f"a {name}" for name in expected)


@pytest.mark.parametrize(
  ("task", "said"),
  [
    (Write(source="none.de,none.en"), "'none.de' does not exist"),
    (Write(source="{pairs}", text="sauce"), "no column 'sauce'"),
    (Write(source="{pairs}", target="sauce"), "no column 'sauce' .task.target.; it has"),
    (Write(source="{empty}"), "no train.jsonl, .csv or .tsv, and no parallel files"),
    (Write(source="{pairs}", target_length=62), "leaves no room for a source"),
  ],
)
def test_data_that_cannot_be_written_is_refused_in_a_sentence(source, pairs, tmp_path, task, said):
  given = task.source.format(pairs=pairs, empty=tmp_path)
  with pytest.raises(UserError, match=said):
    read(source(MODELS["gpt"]), dataclasses.replace(task, source=given), tmp_path)


def test_settings_of_generation_are_checked_before_training():
  with pytest.raises(UserError, match=r"task\.length_penalty compares"):
    Write(length_penalty=0.6)
  with pytest.raises(UserError, match=r"task\.write\.label_smoothing=2"):
    Write(label_smoothing=2)


def test_a_model_that_does_not_write_is_refused(source, pairs, tmp_path):
  bert = Bert(layers=1, width=16, heads=2, positions=64)
  with pytest.raises(UserError, match="Bert does not write text"):
    read(source(bert), Write(source=str(pairs)), tmp_path)


# --- scores ---------------------------------------------------------------------------------------


def test_scores_equal_hand_counts():
  pytest.importorskip("sacrebleu")
  same = text_metrics.scores_of_texts(["the cat sat on the mat"], [["the cat sat on the mat"]])
  assert same.values == pytest.approx(dict.fromkeys(same.values, 100))
  # 5 of 6 words, 3 of 5 pairs, 2 of 4 threes, 1 of 3 fours; no brevity penalty.
  scores = text_metrics.scores_of_texts(["the cat sat on a mat"], [["the cat sat on the mat"]])
  expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
  assert scores.values["bleu"] == pytest.approx(expected)
  assert scores.values["rouge_l"] == pytest.approx(100 * 5 / 6)
  assert scores.values["rouge2"] == pytest.approx(100 * 3 / 5)
  assert scores.signatures["bleu"].startswith("nrefs:1|case:mixed")


def test_chinese_is_scored_by_characters():
  pytest.importorskip("sacrebleu")
  assert text_metrics.tokens_of(["我们 like 在这里"]) == "zh"
  assert text_metrics.tokens_of(["これはねこです"]) == "char"
  assert text_metrics.tokens_of(["we are here"]) == "13a"
  scores = text_metrics.scores_of_texts(["我们在这里"], [["我们在那里"]], "zh").values
  assert scores["rouge1"] == pytest.approx(80) and scores["bleu"] > 0


def test_case_counts_unless_the_tokenizer_loses_it():
  pytest.importorskip("sacrebleu")
  outputs, refs = ["a fine small cat"], [["A Fine Small Cat"]]
  assert text_metrics.scores_of_texts(outputs, refs).values["bleu"] < 10
  assert text_metrics.scores_of_texts(outputs, refs, lowercase=True).values["bleu"] == (
    pytest.approx(100)
  )
  assert not text_metrics.exact("a", ["A"]) and text_metrics.exact(" a", ["A"], lowercase=True)


def test_a_missing_library_is_a_sentence_before_training(source, pairs, tmp_path, monkeypatch):
  imported = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith("sacrebleu"):
      raise ImportError(name, name="sacrebleu")
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(UserError, match=r"sacrebleu, .* pip install 'plm_jax\[text\]'"):
    read(source(MODELS["t5"]), Write(source=str(pairs), labels=()), tmp_path)


def test_the_copy_of_the_source_is_a_baseline(source, pairs, tmp_path):
  pytest.importorskip("sacrebleu")
  task, splits = read(source(MODELS["t5"]), Write(source=str(pairs), labels=()), tmp_path)
  copied = task.baseline("copy", splits)
  assert [p["output"] for p in copied] == [item.texts[0] for item in splits.test.items]
  assert 0 < task.score(splits.test, copied)["chrf"] < 100
  first = splits.test.items[0]
  assert task.mistake(first, {"output": first.target}) == 0 < task.mistake(first, copied[0]) < 1


def test_the_columns_of_the_training_table_are_kept(tmp_path):
  path = tmp_path / "train.jsonl"
  path.write_text(json.dumps({"input": "x y", "output": "y"}) + "\n")
  task = Write(source=str(path)).with_columns()
  assert (task.text, task.target) == ("input", "output")
  line = json.dumps({"source": "not this one", "input": "x", "output": "y"})
  assert task.parse(line, "line 1").texts == ("x",)


def test_rouge_reads_vowel_signs_as_parts_of_words():
  assert text_metrics.words_of("मैं घर जाता हूँ") == ["मैं", "घर", "जाता", "हूँ"]
