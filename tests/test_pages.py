"""The commands and examples of README.md and docs/ are ones that exist."""

import json
import re
import statistics
from pathlib import Path

import pytest

from plm_jax import cli
from plm_jax.tasks.answer import Answer
from plm_jax.tasks.choose import Choose
from plm_jax.tasks.multi import Multi
from plm_jax.tasks.tag import Tag

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[list[str]]:
  """The words of every command in the blocks of code, from the name of its file on."""
  blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
  blocks += re.findall(r"(?m)^ {4}(?:.*\\\n)*.+", text)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  found = [re.search(r"python3? (?:-m plm_jax\.(\w+)|(run_\w+\.py))(.*)", line) for line in lines]
  return [
    [
      m[2] or f"plm_jax/commands/{m[1]}.py",
      *re.findall(r"--\w+", re.sub(r'="[^"]*"', "", m[3].split(" # ")[0])),
    ]
    for m in found
    if m
  ]


def flags_of(file: str) -> set[str]:
  """The names of a command's flags, as its file defines them."""
  source = (ROOT / file).read_text()
  names = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
  if "cli.define_list" in source:
    names.add("list")
  elsewhere = {
    "launch.define_flags": "plm_jax/train/launch.py",
    "server_flags.define_flags": "plm_jax/serving/server_flags.py",
    "  define_evaluation()\n": "plm_jax/ablate/plan.py",
  }
  return names.union(*(flags_of(path) for call, path in elsewhere.items() if call in source))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_flags(page):
  for file, *flags in commands(page.read_text()):
    unknown = {flag.removeprefix("--") for flag in flags} - flags_of(file)
    assert not unknown, f"{file} has no {unknown}"


def test_every_kind_of_block_is_read():
  text = (
    "```\npython run_pretrain.py --a=1 \\\n  --b  # --c\n```\n\n    python -m plm_jax.score --d\n"
  )
  files = ["run_pretrain.py", "plm_jax/commands/score.py"]
  assert commands(text) == [[files[0], "--a", "--b"], [files[1], "--d"]]
  assert sum(len(commands(page.read_text())) for page in PAGES) > 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_experiment_of_a_page_exists(page):
  names = re.findall(r"--(?:experiment|table)=(experiments/\w+\.py):(\w+)", page.read_text())
  for file, name in names:
    if file != "experiments/masking_rates.py":  # the example of CONTRIBUTING.md
      known = cli.experiments_of(file) + cli.experiments_of(file, "Table")
      assert name in known, f"{file}:{name}"


def test_the_tutorial_s_own_ablation_is_a_table(tmp_path):
  text = (ROOT / "docs" / "tutorial.md").read_text()
  file = tmp_path / "my_ablation.py"
  file.write_text(re.search(r"`my_ablation\.py`.*?```python\n(.*?)```", text, re.DOTALL)[1])
  table = cli.load_experiment(f"{file}:rates", returns="Table")()
  rates = {arm.name: arm.experiment("smoke").objectives[0].rate for arm in table.arms}
  assert rates == {"rate-15": 0.15, "rate-40": 0.4}
  assert "--table=my_ablation.py:rates" in text


def read_examples(folder: Path, kind, block: str, name: str, **settings) -> list:
  """The examples of a block of docs/finetuning.md as a file."""
  (folder / name).write_text(block.strip() + "\n")
  return kind(source=str(folder / name), **settings).read_file(folder / name, labelled=True)


def test_the_files_of_the_page_on_fine_tuning_are_read(tmp_path):
  text = (ROOT / "docs" / "finetuning.md").read_text()

  def parts(title: str) -> list[str]:
    """The files in the first block of a section, without the remarks at their ends."""
    block = re.search(rf"### {title}.*?```(?:json)?\n(.*?)```", text, re.DOTALL)[1]
    return re.sub(r" {4,}(one line|a \.csv).*", "", block).split("\n\n")

  lines, cells, columns = parts("Several labels")
  for block, name, settings in (
    (lines, "a.jsonl", {}),
    (cells, "b.csv", {"separator": ";"}),
    (columns, "c.csv", {"label": "sport,politics,weather"}),
  ):
    examples = read_examples(tmp_path, Multi, block, name, text="text", **settings)
    assert [sorted(e.target) for e in examples] == [["politics", "sport"], ["weather"]], name
  sentences = read_examples(tmp_path, Tag, "\n\n".join(parts("Words with tags")), "d.conll")
  assert [e.target for e in sentences] == [["B-PER", "I-PER", "O", "O", "B-LOC"], ["O"]]
  first, second = read_examples(tmp_path, Answer, parts("Questions with answers")[0], "e.json")
  assert first.target[0][0] == "on the Seine" and not second.target
  for block, name in zip(parts("Several choices"), ("f.jsonl", "g.csv"), strict=True):
    (example,) = read_examples(tmp_path, Choose, block, name)
    assert example.target == 0 and example.texts[1:] == ("It broke.", "It sang."), name


def scores_of(row: dict[str, str]) -> list[list[float]]:
  """The scores of all seeds of each arm of a row of docs/finetuned.md, from results/finetuning/."""
  reviews = "reviews_all" if row["labels"].startswith("all") else "reviews"
  file = {"film reviews": reviews, "STS-B": "stsb"}.get(row["task"], row["task"].split(",")[0])
  result = json.loads((ROOT / f"results/finetuning/{file.lower()}.json").read_text())
  labels, name = row["labels"].split(",")[0], row["score"].lower()
  labels = "all" if labels == "all" else row["labels"].replace(",", "")
  arms: dict[str, list[float]] = {}
  for cell in result["cells"]:
    if cell["labels"] == labels and name in cell["test"]:
      arms.setdefault(cell["arm"], []).append(cell["test"][name])
  return list(arms.values())


def test_the_table_of_fine_tuned_models_has_the_scores_of_the_results():
  lines = re.findall(r"(?m)^\| (.*) \|$", (ROOT / "docs/finetuned.md").read_text())
  head, *rows = ([cell.strip() for cell in line.split(" | ")] for line in lines)
  rows = [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
  assert len(rows) >= 6
  for row in rows:
    seeds = [scores for scores in scores_of(row) if len(scores) > 1]
    stored = {(statistics.mean(scores), statistics.stdev(scores)) for scores in seeds}
    shown = re.findall(r"(\d*\.\d+) ± (\d*\.\d+)", " ".join(row.values()))
    assert shown or row["seeds"] == "1"
    for pair in shown:
      digits = len(pair[0].split(".")[1])
      assert tuple(map(float, pair)) in {tuple(round(x, digits) for x in each) for each in stored}
