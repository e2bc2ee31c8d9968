"""Fine-tuning on a file and predicting with the result, for each task."""

import dataclasses
import functools
import io
import itertools
import json
import re
import sys
import threading

import pytest
from absl import flags

from experiments import finetune
from plm_jax import cli
from plm_jax.commands import compare, predict
from plm_jax.errors import UserError
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.comparison import named
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.glue import GlueLabels
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.regress import Regress
from tests.decode.test_commands import own_flags
from tests.tasks.conftest import TELLING, documents, recipe, source, table, tokenizer, toy_sentence  # noqa: F401


def sentences(count):
  labels = sorted(TELLING)
  return [(toy_sentence(7 * n + 3, labels[n % 3]), labels[n % 3]) for n in range(count)]


@pytest.fixture(scope="module")
def models(source, recipe, tmp_path_factory):  # noqa: F811
  """`models(task)`: the directory of its fine-tuned model, and its data."""
  folder = tmp_path_factory.mktemp("models")
  lines = sentences(60)
  pairs = [(a, b, n) for n, ((a, _), (b, _)) in enumerate(itertools.pairwise(lines))]
  files = {
    Classify: [
      {"text": text, "label": label, "id": f"n{n}"} for n, (text, label) in enumerate(lines)
    ],
    Pairs: [{"premise": a, "hypothesis": b, "label": "yn"[n % 2]} for a, b, n in pairs],
    Regress: [{"sentence1": a, "sentence2": b, "score": n / 8} for a, b, n in pairs],
  }
  kinds = {kind.name: kind for kind in files}

  @functools.cache
  def model(name):
    kind, path = kinds[name], folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in files[kind]))
    chosen = plan(source, recipe, kind(source=str(path)), [], folder, folder / kind.name)
    cell = model_cell(chosen, "pretrained", None, 0, "toy")
    return chosen, chosen.path / "pretrained-all-0", path, cell

  return model


@pytest.fixture
def call(monkeypatch, capsys):
  """`call(*words, stdin="") -> (exit code, stdout, stderr)` of the command."""

  def run(*words, stdin=""):
    with own_flags(predict):
      monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
      monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
      monkeypatch.setattr(predict, "keep_compilations", lambda cache: None)
      with pytest.raises(SystemExit) as ended:
        cli.run(predict.main)
    out = capsys.readouterr()
    return ended.value.code or 0, out.out, out.err

  return run


@pytest.mark.parametrize(
  "name", ["classify", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pairs", "regress"))]
)
def test_a_fine_tuned_model_scores_its_test_split_as_in_training(models, call, tmp_path, name):
  chosen, model, _, cell = models(name)
  fields = {
    "classify": ["text", "label"],
    "pairs": ["premise", "hypothesis", "label"],
    "regress": ["sentence1", "sentence2", "score"],
  }
  rows = [dict(zip(fields[name], (*i.texts, i.target))) for i in chosen.splits.test.items]
  (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  code, out, _ = call(f"--model={model}", f"--evaluate={tmp_path / 'test.jsonl'}", "--errors")
  assert code == 0
  metric = chosen.task.metrics[0]
  (value,) = re.findall(rf"^{named(metric)} +(\S+)$", out, re.MULTILINE)
  assert float(value) == pytest.approx(cell.test[metric], abs=1e-4)
  assert "mistakes:" in out


def test_predictions_are_in_the_order_of_the_file_with_its_ids(models, call, tmp_path):
  _, model, path, _ = models("classify")
  code, _, err = call(f"--model={model}", f"--file={path}", f"--out={tmp_path / 'p.jsonl'}")
  assert code == 0 and "60 examples in" in err
  lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
  assert [line["id"] for line in lines] == [f"n{i}" for i in range(60)]
  assert [line["text"] for line in lines] == [text for text, _ in sentences(60)]
  assert set(lines[0]["scores"]) == set(TELLING) and "target" not in lines[0]
  code, _, err = call(f"--model={model}", f"--file={path}", f"--out={tmp_path / 'p.jsonl'}")
  assert code == 2 and "already exists" in err


def test_texts_come_by_flag_by_file_or_by_standard_input(models, call, tmp_path):
  _, model, _, _ = models("classify")
  texts = [text for text, _ in sentences(3)]
  texts[0] = texts[0].replace(" ", "\u2028", 1)  # no end of a line
  (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
  by_flag = call(f"--model={model}", *(f"--text={text}" for text in texts))[1]
  by_file = call(f"--model={model}", f"--file={tmp_path / 'a.txt'}")[1]
  by_stdin = call(f"--model={model}", stdin="\n".join(texts))[1]
  labels = [
    [
      (line["text"], line["label"], line["score"])
      for line in map(json.loads, out.strip().split("\n"))
    ]
    for out in (by_flag, by_file, by_stdin)
  ]
  assert labels[0] == labels[1] == labels[2] and [text for text, _, _ in labels[0]] == texts


@pytest.mark.slow
def test_a_pair_is_a_line_with_a_tab_and_a_regression_gives_a_number(models, call):
  a, b = (text for text, _ in sentences(2))
  (line,) = call(f"--model={models('pairs')[1]}", stdin=f"{a}\t{b}\n")[1].splitlines()
  assert json.loads(line)["label"] in ("y", "n")
  (line,) = call(f"--model={models('regress')[1]}", f"--text={a}\t{b}")[1].splitlines()
  assert -5 < json.loads(line)["value"] < 15


@pytest.mark.parametrize("word", ["--set=task.threshold=0.999", "--threshold=0.999"])
def test_a_threshold_gives_none_of_the_labels(models, call, word):
  out = call(f"--model={models('classify')[1]}", "--text=the cat", word)[1]
  assert json.loads(out)["label"] == "(none)"


def test_predictions_from_python_are_those_of_the_command(models, call):
  model, texts = models("classify")[1], [text for text, _ in sentences(3)]
  lines = map(json.loads, call(f"--model={model}", stdin="\n".join(texts))[1].splitlines())
  assert predict.predict(model, texts) == [
    {name: line[name] for name in ("label", "score", "scores")} for line in lines
  ]
  assert predict.predict(model, []) == []


def test_a_slow_stream_is_answered_before_it_ends():
  asked = threading.Event()

  def lines():
    yield "first"
    assert asked.wait(60)
    yield "second"

  read = predict.blocks(lines())
  assert next(read) == ["first"]
  asked.set()
  assert list(read) == [["second"]]


def test_an_error_in_a_stream_follows_the_lines_before_it():
  def lines():
    yield "first"
    raise UserError("line 2 is wrong")

  read = predict.blocks(lines())
  with pytest.raises(UserError, match="line 2"):
    while True:
      assert next(read) == ["first"]


@pytest.fixture(scope="module")
def second(models):
  """Another model of `classify`: the same data, another seed."""
  chosen = models("classify")[0]
  model_cell(chosen, "pretrained", None, 1, "toy")
  return chosen.path / "pretrained-all-1"


@pytest.mark.slow
def test_two_models_are_compared_example_by_example(models, second, capsys, monkeypatch, tmp_path):
  _, model, path, _ = models("classify")
  with own_flags(compare):
    words = [str(model), str(second), f"--data={path}", f"--out={tmp_path / 'd.jsonl'}"]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    monkeypatch.setattr(compare, "keep_compilations", lambda cache: None)
    with pytest.raises(SystemExit) as ended:
      cli.run(compare.main, ("A", "B"))
  out = capsys.readouterr().out
  assert not ended.value.code
  result = compare.compare(model, second, path)
  targets = [item.target for item in result.items]
  right = [[p["label"] == t for p, t in zip(each, targets)] for each in (result.a, result.b)]
  alone = [sum(x and not y for x, y in zip(*pair)) for pair in (right, right[::-1])]
  assert [result.difference.only_a, result.difference.only_b] == alone
  assert f"right in A alone: {alone[0]}; right in B alone: {alone[1]}" in out
  lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
  assert len(lines) == sum(alone)
  for line in lines:
    assert line[line["better"]]["label"] == line["target"]


@pytest.mark.slow
def test_a_model_does_not_differ_from_itself(models):
  for name in ("classify", "regress"):
    _, model, path, _ = models(name)
    d = compare.compare(model, model, path).difference
    assert (d.p, d.low, d.high, d.only_a, d.only_b) == (1.0, 0.0, 0.0, 0, 0)


@pytest.mark.slow
def test_models_of_two_tasks_are_not_compared(models):
  with pytest.raises(UserError, match="on the task classify and"):
    compare.compare(models("classify")[1], models("regress")[1], models("classify")[2])


def test_models_of_two_parts_or_of_other_classes_are_not_compared(monkeypatch):
  cola, sst2 = (
    GlueLabels(part="cola", labels=("0", "1")),
    GlueLabels(part="sst2", labels=("0", "1")),
  )
  films, topics = Classify(labels=("good", "bad")), Classify(labels=("art", "law"))
  tasks = {"cola": cola, "sst2": sst2, "films": films, "topics": topics}
  monkeypatch.setattr(compare, "load", lambda path: (tasks[path], None))
  with pytest.raises(UserError, match=r"the task glue cola and sst2 on glue sst2;"):
    compare.compare("cola", "sst2", "test.tsv")
  with pytest.raises(
    UserError, match=r"classify \(bad, good\) and topics on classify \(art, law\)"
  ):
    compare.compare("films", "topics", "test.tsv")


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ((), "--model=DIR, the directory of a fine-tuned model, is needed"),
    (("--model={source}", "--text=x"), "was pretrained and not fine-tuned"),
    (("--model={model}", "--text=x", "--file=y"), "--text and --file were given"),
    (("--model={model}", "--errors"), "--errors needs --evaluate=FILE"),
    (("--model={model}", "--file=none.txt"), "cannot be read as text"),
    (("--model={model}",), "there is no example in the input"),
    (
      ("--model={model}", "--text=x", "--set=task.thresh=1"),
      "no 'thresh' in task (Classify)",
    ),
  ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(models, source, call, words, said):  # noqa: F811
  places = {"model": models("classify")[1], "source": source.path}
  code, _, err = call(*(word.format(**places) for word in words))
  assert code == 2 and said in err and len(err.splitlines()) == 1


def test_an_unknown_label_of_an_evaluated_file_is_named(models, call, tmp_path):
  (tmp_path / "t.csv").write_text("text,label\nthe cat,animal\nthe house,building\n")
  code, _, err = call(f"--model={models('classify')[1]}", f"--evaluate={tmp_path / 't.csv'}")
  assert code == 2 and "t.csv:3 has the label 'building', which training never saw" in err


def test_the_defaults_follow_from_the_checkpoint(source):  # noqa: F811
  own = finetune.rule(source, 500)
  assert (own.peak, own.steps, own.warmup) == (1e-3, 62, 6)
  assert finetune.rule(source, 9000).steps == 562
  few, many = (finetune.rule(published(source, width=768), n) for n in (100, 9000))
  assert (few.peak, few.layer_decay, few.steps, few.warmup) == (5e-5, 1, 300, 30)
  assert many.steps == 3 * 9000 // 32
  assert finetune.rule(published(source, width=1024), 100).peak == 2e-5
  small = finetune.rule(published(source, width=384), 100)
  assert (small.peak, small.layer_decay) == (3e-4, 0.8)


def published(run, pooling=None, **sizes):
  """The run as a published model."""
  model = dataclasses.replace(run.experiment.model, **sizes)
  document = {**run.document, "public": {"pooling": pooling}}
  experiment = dataclasses.replace(run.experiment, model=model)
  return dataclasses.replace(run, experiment=experiment, document=document)


def test_a_published_model_keeps_its_classifier(source):  # noqa: F811
  task = Classify(labels=("a", "b"), length=8)
  assert finetune.recipe(published(source), task, 100).model.classifier == "pooler"
  assert finetune.recipe(source, task, 100).model.classifier == "mean"


def test_a_sentence_bert_s_classifier_reads_the_means_that_it_was_trained_for(source):  # noqa: F811
  task = Classify(labels=("a", "b"), length=8)
  for modes, classifier in ((["mean"], "mean"), (["cls"], "pooler"), (["mean", "max"], "pooler")):
    sentence_bert = published(source, {"modes": modes})
    assert finetune.recipe(sentence_bert, task, 100).model.classifier == classifier
    assert ("mean of the states" in str(finetune.rule(sentence_bert, 100))) == (
      classifier == "mean"
    )


@pytest.fixture(autouse=True)
def unparsed():
  """Flags of one test are not those of the next."""
  yield
  flags.FLAGS.unparse_flags()
