"""Every experiment builds at every budget, and differs from its base only in what its row names."""

import ast
import dataclasses
import math
from pathlib import Path

import jax
import pytest

from plm_jax import cli, overrides
from plm_jax.experiment import BUDGETS, Experiment
from tests.toy_run import text

ROOT = Path(__file__).resolve().parents[1]
REFERENCES = [reference for reference, _ in cli.list_experiments("experiments")]
BERT = [r.partition(":")[2] for r in REFERENCES if r.startswith("experiments/bert.py:")]

SIZE = {"model.layers", "model.width", "model.heads"}
FIRST_RUN = {"steps", "optim", "schedule", "global_batch", "data.length", "objectives.mlm.rate"} | {
  f"model.{field}" for field in ("dropout", "attention_dropout", "initializer_range")
}  # tiny at `small` is the project's two-minute run

# Row -> the fields in which it may differ from base(budget), and no others.
ROWS = {
  "base": set(),
  "large": SIZE,
  "tiny": SIZE | FIRST_RUN,
  "mini": SIZE,
  "small": SIZE,
  "medium": SIZE,
  "base_faithful": {
    *("optim.bias_correction", "optim.decay_under_warmup"),
    "objectives.mlm.masking",
  },
  "base_whole_word": {"objectives.mlm.unit"},
  "no_nsp": {"objectives"},
  "ltr_no_nsp": {"objectives", "model.attention"},
  "ltr_no_nsp_bilstm": {"objectives", "model.attention", "model.classifier"},
  "table_6_l3_h768_a12": SIZE,
  "table_6_l6_h768_a3": SIZE,
  "table_6_l6_h768_a12": SIZE,
  "table_6_l12_h768_a12": set(),
  "table_6_l12_h1024_a16": SIZE,
  "table_6_l24_h1024_a16": SIZE,
  "table_8_80_10_10": set(),
  **{
    f"table_8_{shares}": {f"objectives.mlm.{s}" for s in ("mask", "same", "random")}
    for shares in ("100_0_0", "80_0_20", "80_20_0", "0_20_80", "0_0_100")
  },
}


def experiment(name, budget) -> Experiment:
  return cli.load_experiment(f"experiments/bert.py:{name}", budget=budget)()


def parameters(config: Experiment) -> int:
  config = config.resolve(30522)
  shapes = jax.eval_shape(lambda: config.init_parameters(jax.random.key(0)))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def changed(name, budget):
  of = experiment(name, budget), experiment("base", budget)
  return [path for path, _, _ in overrides.diff(*of)]


def may(path, allowed):
  return any(path == a or path.startswith(a + ".") for a in allowed)


def test_the_table_of_rows_is_complete():
  assert set(BERT) == set(ROWS)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", BERT)
def test_a_row_differs_from_base_only_in_what_it_names(name, budget):
  wrong = [path for path in changed(name, budget) if not may(path, ROWS[name])]
  assert not wrong


@pytest.mark.parametrize("name", [n for n in BERT if ROWS[n]])
def test_a_row_that_names_a_change_makes_it_as_published(name):
  assert changed(name, "paper")


@pytest.mark.parametrize("name", [n for n in BERT if n.startswith("table_8_")])
def test_shares_of_table_8_are_those_of_the_name(name):
  mlm = experiment(name, "paper").objectives[0]
  shares = [int(part) for part in name.split("_")[2:]]
  assert [round(100 * s) for s in (mlm.mask, mlm.same, mlm.random)] == shares


@pytest.mark.parametrize("name", [n for n in BERT if n.startswith("table_6_")])
def test_sizes_of_table_6_are_those_of_the_name(name):
  model = experiment(name, "paper").model
  assert name == f"table_6_l{model.layers}_h{model.width}_a{model.heads}"


@pytest.mark.parametrize("budget", BUDGETS)
def test_rows_of_table_6_keep_their_order_in_parameters(budget):
  names = [n for n in BERT if n.startswith("table_6_")]
  counts = {n: parameters(experiment(n, budget)) for n in names}
  # Two rows differ in the number of heads alone, which costs no parameter.
  assert counts.pop("table_6_l6_h768_a3") == counts["table_6_l6_h768_a12"]
  assert list(counts.values()) == sorted(set(counts.values()))


def test_what_is_published_of_the_sizes():
  assert [
    parameters(experiment(n, "paper")) for n in ("base", "large")
  ] == [110_106_428, 336_226_108]  # fmt: skip
  paper = experiment("base", "paper")
  assert (paper.global_batch, paper.steps, paper.data.length) == (256, 1_000_000, 512)
  assert (paper.optim.peak, paper.optim.warmup, paper.optim.decay) == (1e-4, 10_000, 0.01)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("reference", REFERENCES)
def test_every_experiment_can_be_written_down_and_read_back(reference, budget):
  built = cli.load_experiment(reference, budget=budget)()
  assert isinstance(built, Experiment)
  assert overrides.from_json(overrides.to_json(built)) == built
  assert built.optim.warmup < built.steps or built.is_counted or not built.objectives


def functions():
  for path in sorted((ROOT / "experiments").glob("*.py")):
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        yield pytest.param(node, id=f"{path.stem}:{node.name}")


@pytest.mark.parametrize("node", list(functions()))
def test_an_experiment_says_what_it_is_and_ablations_take_six_lines(node):
  assert (ast.get_docstring(node) or "").partition("\n")[0].strip()
  calls = {c.func.id for c in ast.walk(node) if isinstance(c, ast.Call) and hasattr(c.func, "id")}
  if "base" in calls and node.name not in ("tiny", "text_to_text"):  # an ablation of that row
    body = node.body[1:]
    assert body[-1].end_lineno - body[0].lineno < 6


@pytest.fixture
def main(monkeypatch, tmp_path):
  """run_pretrain in this process, on one device; returns what the run left behind."""
  from plm_jax import pretraining
  from tests.test_run_pretrain import in_process

  one_device = jax.devices()[:1]

  def compile_on_one(experiment, batch):
    mesh = dataclasses.replace(experiment, mesh=type(experiment.mesh)(data=1))
    return COMPILE(mesh, batch, one_device)

  COMPILE = pretraining.compile_experiment
  monkeypatch.setattr(pretraining, "compile_experiment", compile_on_one)
  return lambda *words: in_process(monkeypatch, f"--cache={text().parent / 'cache'}", *words)


@pytest.mark.parametrize("name", ["tiny", "no_nsp", "ltr_no_nsp"])
@pytest.mark.slow
def test_smoke_runs_end_in_seconds_and_report(name, main, tmp_path, capsys):
  """In batches of a quarter of the budget's rows, and 16 held-out rows."""
  code = main(
    *(f"--experiment=experiments/bert.py:{name}", "--budget=smoke", f"--workdir={tmp_path / 'r'}"),
    *(f"--set=data.source={text()}", "--set=data.held_out=0.1", "--set=compute.layers=scan"),
    *("--set=global_batch=4", "--set=schedule.evaluation_rows=16"),
  )
  shown = capsys.readouterr()
  assert code == 0, shown.err
  assert "before" in shown.out and "next: python run_finetune.py" in shown.out
  assert ("MLM" if "ltr" not in name else "CLM") in shown.out
  kept = {path.name for path in (tmp_path / "r").iterdir()}
  assert kept >= {"config.json", "metrics.jsonl", "timing.jsonl", "curves.png", "checkpoints"}
  assert kept >= {"tensorboard", "tokenizer"}
