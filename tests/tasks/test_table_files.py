"""Tables as people have them: which column is which, headers, quotes, and errors in a sentence."""

import re
from pathlib import Path

import pytest

from plm_jax.errors import UserError
from plm_jax.tasks import choices, label_sets, parallel, table_files
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.registry import TASKS, chosen_task
from plm_jax.tasks.regress import Regress
from plm_jax.tasks.table_files import columns, read_table


def write(folder, name, text):
  path = folder / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


def test_tables_of_all_kinds_are_read_alike(tmp_path):
  written = {
    "a.jsonl": '{"text": "red, or \\"blue\\"", "label": 1}\n\n{"text": "two", "label": "b c"}\n',
    "a.csv": 'label,text\r\n1,"red, or ""blue"""\r\nb c,two\r\n',
    "a.tsv": '\ufefftext\tlabel\nred, or "blue"\t1\ntwo\tb c',  # the last line has no end
  }
  for name, text in written.items():
    items = Classify().read_file(write(tmp_path, name, text), labelled=True)
    assert [(i.texts, i.target) for i in items] == [(('red, or "blue"',), "1"), (("two",), "b c")]


GLUE = {  # the first lines of GLUE's files, with | for a tab, and the columns that they have
  "CoLA": (1, "gj04|1||We won't buy it.\ngj04|0|*|They drank the pub.\n", "4", "2"),
  "SST-2": (1, "sentence|label\nnew secretions |0\nfine |1\n", "sentence", "label"),
  "MRPC": (
    2,
    '\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String\n1|70|71|Amrozi "said|He said\n',
    "#1 String,#2 String",
    "Quality",
  ),
  "QQP": (
    2,
    "id|qid1|qid2|question1|question2|is_duplicate\n1|2|3|How?|Why?|0\n",
    "question1,question2",
    "is_duplicate",
  ),
  "STS-B": (
    2,
    "index|genre|year|sentence1|sentence2|score\n0|m|2014|A dog.|A cat.|1.5\n",
    "sentence1,sentence2",
    "score",
  ),
  "MNLI": (
    2,
    "index|promptID|sentence1|sentence2|label1|gold_label\n0|3|It is.|It was.|neutral|neutral\n",
    "sentence1,sentence2",
    "gold_label",
  ),
  "QNLI": (2, "index|question|sentence|label\n0|Who?|He.|yes\n", "question,sentence", "label"),
  "RTE": (2, "index|sentence1|sentence2|label\n0|A.|B.|yes\n", "sentence1,sentence2", "label"),
}


def glue(name):
  return GLUE[name][1].replace("|", "\t")


@pytest.mark.parametrize("name", GLUE)
def test_the_columns_of_glue_are_found(tmp_path, name):
  count, _, texts, label = GLUE[name]
  chosen = columns(read_table(write(tmp_path, "train.tsv", glue(name))), count)
  assert (",".join(chosen.texts), chosen.label) == (texts, label)
  assert f"text = {chosen.texts[0]!r}" in chosen.note


def test_a_file_without_header_has_numbered_columns_and_says_so(tmp_path):
  path = write(tmp_path, "a.csv", "a fine film,pos\nvery dull,neg\na fine one,pos\n")
  items, (note,) = Classify().read_noted(str(path))
  assert [i.target for i in items] == ["pos", "neg", "pos"]
  assert items[0].texts == ("a fine film",) and items[0].name == "a.csv:1"
  assert "no header; columns: text = '1', label = '2'" in note
  assert len(Classify(header=True).read_file(path, labelled=True)) == 2


def test_columns_are_the_users_where_they_are_named(tmp_path):
  path = write(tmp_path, "a.csv", "text,other,label,stars,key,doc\nx,y z,1,5,k,d\nw,v,0,4,l,d\n")
  task = Classify(text="other", label="stars", id="key", document="doc")
  item = task.read_file(path, labelled=True)[0]
  assert item[:4] == (("y z",), "5", "k", "d")
  pair = Pairs(text2="other").read_file(path, labelled=True)[0]
  assert pair.texts == ("x", "y z")
  with pytest.raises(UserError, match=r"no column 'body' \(task.text\)"):
    Classify(text="body").read_file(path, labelled=True)


@pytest.mark.parametrize(
  ("name", "text", "task"),
  [
    ("a.csv", "text,label\nx,pos\ny,neg\n", "classify"),
    ("a.csv", "review,stars\nx,1\ny,5\n", "classify"),
    ("a.csv", "text,score\nx,1.5\ny,2.25\n", "regress"),
    ("a.csv", "text,score\n" + "".join(f"x{n},{n}\n" for n in range(30)), "regress"),
    ("a.tsv", glue("STS-B"), "regress"),
    ("a.tsv", glue("QNLI"), "pairs"),
    ("a.jsonl", '{"text": "x"}\n{"text": "y"}\n', "word_order"),
    ("a.txt", "x\n", "word_order"),
  ],
)
def test_a_task_that_is_not_named_is_told_by_the_data(tmp_path, name, text, task):
  chosen = chosen_task(None, str(write(tmp_path, name, text)))
  assert type(chosen) is TASKS[task]


def test_the_default_is_the_built_in_text():
  assert chosen_task(None, None) == TASKS["word_order"]()
  assert type(chosen_task(None, "tfds:imdb_reviews")) is TASKS["label"]
  with pytest.raises(UserError, match="--task=classify needs --data=PATH"):
    chosen_task("classify", None)


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("a.jsonl", "", "is empty"),
    ("a.jsonl", '{"text": "x"}\n', "has no column of labels"),
    ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": 1,\n', "line 2, is not JSON"),
    ("a.jsonl", "[1]\n", "line 1, is not an object"),
    ("a.jsonl", r'{"text": "\ud800", "label": "y"}', "line 1, is not JSON .half a character"),
    ("a.jsonl", "[" * 100_000, "line 1, is not JSON .too many brackets"),
    ("a.jsonl", '{"text": "x", "label": NaN}\n', 'line 1, has no "label"'),
    ("a.csv", "text,kind\nx,y\n", "has no column of labels"),
    ("a.csv", "text,label\nx,\n", 'line 2, has no "label"'),
    ("a.tsv", "text\tlabel\nx\n", "line 2, has 1 columns where the first line has 2"),
    ("a.csv", 'text,label\n"x,y\n', "cannot be read"),
    ("a.jsonl", b"\xff\xfe", "is not UTF-8"),
    ("a.parquet", "", "unknown suffix"),
    ("none.csv", None, "does not exist"),
  ],
)
def test_a_table_that_cannot_be_read_is_named_in_a_sentence(tmp_path, name, text, said):
  path = tmp_path / name
  if text is not None:
    write(tmp_path, name, text)
  with pytest.raises(UserError, match=said):
    Classify().read_file(path, labelled=True)


def test_a_task_of_pairs_needs_two_columns_of_text(tmp_path):
  path = write(tmp_path, "a.csv", "text,label\nx,1\ny,0\n")
  with pytest.raises(UserError, match="no column for text2: this task needs 2 of text"):
    Pairs().read_file(path, labelled=True)


def test_a_number_that_is_none_is_named_with_its_line(tmp_path):
  for label in ("high", "nan", "inf"):
    path = write(tmp_path, "a.csv", f"text,score\nx,1\ny,{label}\n")
    with pytest.raises(UserError, match=f"line 3, has the label '{label}', which is no finite"):
      Regress().read_file(path, labelled=True)


def test_a_line_is_a_text_a_pair_or_an_object():
  assert Classify().parse("{a} text", "line 1").texts == ("{a} text",)
  assert Classify().parse('{"text": "x", "label": "y"}', "line 1").texts == ("x",)
  assert Pairs().parse("a\tb", "line 1").texts == ("a", "b")
  pair = Pairs().parse('{"premise": "a", "hypothesis": "b"}', "line 1")
  assert pair.texts == ("a", "b") and pair.name == "line 1"
  with pytest.raises(UserError, match="line 7 has 1 texts, and this task reads 2"):
    Pairs().parse("a", "line 7")


def test_the_docs_have_the_names_of_columns_that_are_guessed():
  text = (Path(__file__).resolve().parents[2] / "docs/finetuning.md").read_text()
  rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
  cells = {row[1].strip(): re.split(", |; ", row[2].strip()) for row in rows}
  pairs = [tuple(pair.split(" + ")) for pair in cells["text and text2 of a pair"]]
  assert tuple(pairs) == table_files.PAIRS
  for column, names in (
    ("text", table_files.TEXT[: -len(pairs)]),
    ("label", table_files.LABEL),
    ("labels (`multi`)", label_sets.LABELS),
    ("id", table_files.NAME),
    ("document", table_files.DOCUMENT),
    ("source (`write`)", parallel.SOURCES),
    ("target (`write`)", parallel.TARGETS),
    ("prompt (`choose`)", choices.PROMPTS),
    ("choices (`choose`)", choices.CHOICES),
    ("right choice (`choose`)", choices.RIGHT),
  ):
    assert tuple(cells[column][: len(names)]) == names, column


def test_brackets_without_end_are_plain_text():
  assert table_files.object_of('{"a":' + "[" * 100_000) is None
  assert label_sets.separable(["[" * 100_000]) == {"[" * 100_000}
