"""A report says what was measured, beside what was published, and nothing else."""

import dataclasses
import itertools
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from plm_jax import cli, overrides
from plm_jax.ablate import page, plots, report_content, report_numbers, report_verdicts, reporting
from plm_jax.ablate.plan import ROOT, Evaluation, PlannedRun, SweepPlan, claim, workdir_of
from plm_jax.ablate.table import METRICS
from plm_jax.errors import UserError
from plm_jax.train.process import versions
from plm_jax.train.workdir import FORMAT
from tests.toy_run import TOY

TABLE = '''
from dataclasses import replace
from plm_jax.ablate.table import Arm, AtChance, Better, NotWorse, Ordered, Table
from plm_jax.experiment import Budget, Experiment
from tests.toy_run import TOY

def a(budget: Budget = "small") -> Experiment:
  """A."""
  return TOY if budget != "paper" else replace(TOY, steps=1000, global_batch=256)

def b(budget: Budget = "small") -> Experiment:
  """B."""
  return replace(a(budget), model=replace(TOY.model, width=32))

def c(budget: Budget = "small") -> Experiment:
  """C."""
  return replace(a(budget), model=replace(TOY.model, width=64))

def table() -> Table:
  """Three widths."""
  return Table(
    title="Width & <depth>", source="nobody", question="Does width & depth help?",
    beside={"ppl": "mlm_perplexity"},
    arms=(Arm("a", a, {"ppl": 5.84, "MNLI": 77.9}), Arm("b", b, {"ppl": 4.68, "MNLI": "81.9"}),
          Arm("c", c, note="printed without numbers")),
    claims=(Ordered("mlm_perplexity", ("a", "b", "c")), Better("mlm_loss", "b", than="a"),
            NotWorse("nsp_accuracy", "c", than="a", margin=0.01)),
  )
'''
ARMS = ("a", "b", "c")
LEVELS = {"a": 3.6, "b": 3.4, "c": 3.2}


@pytest.fixture
def sweep(tmp_path):
  """sweep(scores) -> the directory of a sweep with these scores: {arm: {seed: {metric: value}}}."""
  (tmp_path / "tables.py").write_text(TABLE)
  numbers = itertools.count()

  def make(scores, seeds=3, sets=None):
    out = tmp_path / f"sweep{next(numbers)}"
    out.mkdir()
    references = {arm: f"{tmp_path / 'tables.py'}:{arm}" for arm in ARMS}
    steps = dict.fromkeys(ARMS, 12)
    claim(out, SweepPlan(f"{tmp_path / 'tables.py'}:table", "small", (), seeds, references, steps))
    for arm, of_seed in scores.items():
      for seed, metrics in of_seed.items():
        write_run(out, PlannedRun(arm, seed), metrics, (sets or {}).get(arm, "one"))
    return out

  return make


def write_run(out, run, metrics, measured_on):
  folder = workdir_of(out, run)
  folder.mkdir(parents=True)
  width = {"a": 16, "b": 32, "c": 64}[run.arm]
  experiment = dataclasses.replace(
    TOY, model=dataclasses.replace(TOY.model, width=width), seed=run.seed
  )
  config = {"format": FORMAT, "experiment": overrides.to_json(experiment), "versions": versions()}
  (folder / "config.json").write_text(json.dumps(config))
  records = [
    {"step": step, "split": "train", "loss": 5.0 / step, "mlm/loss": 5.0 / step}
    for step in range(2, 13, 2)
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  timing = [{"step": r["step"], "seconds": 1.5, "data_wait": 0.0} for r in records]
  (folder / "timing.jsonl").write_text("".join(json.dumps(r) + "\n" for r in timing))
  kinds = {metric.partition("_")[0] for metric in metrics}
  record = {
    "asked": dataclasses.asdict(Evaluation()),
    "metrics": metrics,
    "counts": dict.fromkeys(metrics, 100),
    "sets": dict.fromkeys(kinds, measured_on),
    "references": {"mlm_loss": 5.0, "mlm_perplexity": 148.4},
    "notes": [],
    "parameters": 100 * width,
  }
  (folder / "scores.json").write_text(json.dumps(record))


def drawn(levels=LEVELS, sd=0.003, seed=0, seeds=3):
  generator = np.random.default_rng(seed)
  found = {arm: {} for arm in levels}
  for s in range(seeds):
    for arm, level in levels.items():
      loss = level + generator.normal(0, sd)
      found[arm][s] = {
        "mlm_loss": loss,
        "mlm_perplexity": float(np.exp(loss)),
        "nsp_accuracy": 0.7 + generator.normal(0, 0.001),
      }
  return found


def verdicts_of(out):
  return [v.outcome for v in reporting.gather(out).verdicts]


def test_large_effects_are_supported(sweep):
  assert verdicts_of(sweep(drawn())) == ["supported"] * 3


def test_a_report_of_shuffled_arms_is_undecided(sweep):
  generator = np.random.default_rng(1)
  orders = list(itertools.permutations(ARMS))
  for number in range(6):
    true = drawn(seed=number)
    chosen = [orders[i] for i in generator.choice(len(orders), size=3, replace=False)]
    shuffled = {
      arm: {s: true[order[i]][s] for s, order in enumerate(chosen)} for i, arm in enumerate(ARMS)
    }
    said = verdicts_of(sweep(shuffled))
    assert said[:2] == ["undecided"] * 2


def test_published_and_measured_numbers_stand_side_by_side(sweep, tmp_path):
  out = sweep({arm: {s: {"mlm_perplexity": 30.0 + s} for s in range(3)} for arm in ("a", "b")})
  reporting.write_report(reporting.gather(out), tmp_path)
  lines = (tmp_path / "report.md").read_text().splitlines()
  header = next(line for line in lines if line.startswith("| arm | ppl"))
  assert header == "| arm | ppl, published | mlm_perplexity, measured | MNLI, published |"
  assert "| a | 5.84 | 31.00 ± 1.00 | 77.9 |" in lines
  assert "| unigram |  | 148.4 |  |" in lines


def test_a_published_column_without_numbers_of_these_arms_is_left_out(sweep, tmp_path):
  out = sweep({"c": {s: {"mlm_perplexity": 30.0 + s} for s in range(3)}})
  reporting.write_report(reporting.gather(out), tmp_path)
  assert "| arm | mlm_perplexity, measured |" in (tmp_path / "report.md").read_text()


def test_a_page_begins_with_its_verdicts_in_plain_sentences(sweep):
  measured = reporting.gather(sweep(drawn()))
  summary = report_verdicts.summary(measured)
  assert "3 claims, tested with 3 seeds on 2,592 tokens a run: 3 supported." in summary
  assert (
    'By the mean mlm_perplexity, "c" is best' in summary and "a unigram model has 148.4." in summary
  )
  sentence = report_verdicts.sentence(measured, measured.verdicts[1])
  assert sentence.startswith('The seeds agree beyond their noise: "b" 3.39')
  said = [report_verdicts.direction(verdict) for verdict in measured.verdicts]
  assert said == ["the difference speaks for the claim; "] * 3
  assert "No arm is better than that" not in summary
  worse = reporting.gather(sweep(drawn({arm: 6 + level for arm, level in LEVELS.items()})))
  assert "No arm is better than that" in report_verdicts.summary(worse)
  few = reporting.gather(sweep({"a": drawn()["a"]}))
  assert report_verdicts.sentence(few, few.verdicts[1]) == "mlm_loss was not measured for b."
  assert "3 undecided. Of the undecided, 3 lack a measurement." in report_verdicts.summary(few)


def test_a_report_begins_with_its_question_and_a_claim_about_counts_is_exact(sweep):
  measured = reporting.gather(sweep(drawn()))
  shown = page.markdown(report_content.report_blocks(measured, [], measured.out))
  assert shown.index("**The question.** Does width & depth help?") < shown.index("3 claims, tested")
  verdict = measured.verdicts[1]._replace(numbers="+0.2, whatever the seed", is_exact=True)
  assert report_verdicts.sentence(measured, verdict).startswith("On this text it is so:")
  (card, *_) = report_verdicts.verdict_blocks(measured._replace(verdicts=[verdict]))
  assert card.numbers == "+0.2, whatever the seed"


def test_the_longer_side_of_all_numbers_goes_down_the_page(sweep):
  one = sweep({arm: {s: {"mlm_perplexity": 30.0 + s} for s in range(3)} for arm in ARMS})
  wide, deep = (
    report_content.numbers_blocks(reporting.gather(out)) for out in (sweep(drawn()), one)
  )
  assert wide[0].header == ["metric", "better", *ARMS, "unigram or chance"]
  assert deep[0].header == ["metric", "`mlm_perplexity`"]
  assert deep[0].rows[1] == ["a", "31.00 ± 1.00"]


def test_baselines_are_called_by_their_names():
  names = [report_numbers.trivial(m) for m in ("mlm_accuracy", "clm_loss", "sop_accuracy", "blimp")]
  assert names == ["unigram", "unigram", "chance", "chance"]


def test_an_arm_alone_has_a_panel_only_if_no_other_shows_it(sweep):
  out = sweep(drawn())

  def panels(arms, name):
    for arm in arms:
      file = workdir_of(out, PlannedRun(arm, 0)) / "metrics.jsonl"
      with file.open("a") as lines:
        lines.writelines(
          json.dumps({"step": step, "split": "train", "loss": 1.0, f"{name}/loss": 1.0}) + "\n"
          for step in range(3)
        )
    return list(reporting.curves(reporting.gather(out)))

  assert panels("a", "nsp") == ["MLM loss, training"]
  assert panels("b", "nsp") == ["MLM loss, training", "NSP loss, training"]


def test_a_usual_metric_of_one_arm_is_in_the_table_of_all_alone(sweep):
  """As losses of arms with other objectives, which are of other rows."""
  scores = drawn()
  for seed in scores["a"]:
    scores["a"][seed]["seq2seq_perplexity"] = 9.0
  measured = reporting.gather(sweep(scores))
  assert "seq2seq_perplexity" in measured.metrics
  assert "seq2seq_perplexity" not in report_numbers.main_metrics(measured)
  for seed in scores["b"]:
    scores["b"][seed]["seq2seq_perplexity"] = 8.0
  assert "seq2seq_perplexity" in report_numbers.main_metrics(reporting.gather(sweep(scores)))


def test_a_curve_begins_where_the_axis_does(monkeypatch, tmp_path):
  """Not with a straight line from the first loss, which would hide how losses really fell."""
  from matplotlib.figure import Figure

  figures = []
  monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
  curve = [(0, 9.0), (100, 5.0), (200, 4.5), (300, 4.0)]
  plots.draw_learning_curves({"MLM loss, held out": {"a": {0: curve, 1: curve}}}, ["a"], tmp_path)
  lines = figures[0].axes[0].lines
  assert [list(line.get_xdata()) for line in lines] == [[100, 200, 300]] * 3  # two seeds, a mean


def test_an_arm_that_was_never_started_is_left_out_and_named(sweep, tmp_path):
  out = sweep({arm: {s: {"mlm_perplexity": 30.0 + s} for s in range(3)} for arm in ("a", "b")})
  reporting.write_report(reporting.gather(out), tmp_path)
  said = (tmp_path / "report.md").read_text()
  assert "6 of 6 runs measured (2 of 3 arms, 3 seeds)" in said and "--arms=a,b" in said
  assert "- Not run: c." in said and "| c |" not in said


def test_seeds_that_are_not_there_are_counted_and_not_invented(sweep, tmp_path):
  scores = drawn()
  del scores["a"][2], scores["b"][1], scores["b"][2]
  measured = reporting.gather(sweep(scores))
  assert report_numbers.cell(measured, "a", "mlm_loss").endswith("(2)")
  one = report_numbers.cell(measured, "b", "mlm_loss")
  assert "±" not in one and one.endswith("(1)")
  assert [v.outcome for v in measured.verdicts] == ["undecided", "undecided", "undecided"]


def test_a_sweep_that_has_not_begun_gives_a_report_without_numbers(sweep, tmp_path):
  out = sweep({})
  names = reporting.write_report(reporting.gather(out), tmp_path)
  assert names == ["report.md", "report.html", "results.json"]
  said = (tmp_path / "report.md").read_text()
  assert "0 of 9 runs measured" in said and "Nothing has been measured yet" in said
  assert (
    json.loads((tmp_path / "results.json").read_text())["verdicts"][0]["verdict"] == "undecided"
  )


def test_what_was_measured_on_another_set_is_left_out_and_said(sweep, tmp_path):
  out = sweep(drawn(), sets={"c": "another"})
  measured = reporting.gather(out)
  assert measured.values("c", "mlm_loss") == [] and len(measured.values("b", "mlm_loss")) == 3
  assert [v.outcome for v in measured.verdicts] == ["undecided", "supported", "undecided"]
  assert any("c: `mlm` was measured on another set" in note for note in measured.notes)


def test_costs_and_what_was_overridden_are_said(sweep, tmp_path):
  out = sweep(drawn())
  reporting.write_report(reporting.gather(out), tmp_path)
  said = (tmp_path / "report.md").read_text()
  assert "| b | 3,200 | 12 | 2,592 | 0:09 | 3 |" in said
  assert "| `steps` | 1000 | 12 |" in said and "| `global_batch` | 256 | 8 |" in said
  assert "`model.width` 32 (not 16)" in said
  assert "cpu: 8 x cpu" in said and "jax 0." in said
  assert f"python -m plm_jax.sweep --table={out.parent / 'tables.py'}:table" in said
  assert said.count("run_pretrain.py --experiment=") == 9


def test_the_html_is_one_wellformed_file_with_its_pictures_inside(sweep, tmp_path):
  reporting.write_report(reporting.gather(sweep(drawn())), tmp_path)
  text = (tmp_path / "report.html").read_text()
  open_tags, images = [], []

  class Reader(HTMLParser):
    def handle_starttag(self, tag, attrs):
      if tag == "img":
        images.append(dict(attrs)["src"][:22])
      if tag not in ("img", "meta"):
        open_tags.append(tag)

    def handle_endtag(self, tag):
      assert open_tags.pop() == tag

  Reader().feed(text)
  assert not open_tags and images == ["data:image/png;base64,"] * 2
  assert "Width &amp; &lt;depth&gt;" in text and "<depth>" not in text
  assert 'class="card yes"' in text and 'src="http' not in text and "<link" not in text
  assert sum(path.stat().st_size for path in tmp_path.glob("*.*")) < 1 << 20


def test_every_number_is_in_the_results_file(sweep, tmp_path):
  scores = drawn()
  reporting.write_report(reporting.gather(sweep(scores)), tmp_path)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results["scores"]["b"]["1"] == scores["b"][1]
  assert results["published"]["a"] == {"ppl": 5.84, "MNLI": 77.9}
  assert [v["verdict"] for v in results["verdicts"]] == ["supported"] * 3
  assert all(v["p"] <= v["needed"] for v in results["verdicts"])


def test_a_directory_without_a_sweep_and_a_table_without_the_arm_are_refused(sweep, tmp_path):
  with pytest.raises(UserError, match="is not the directory of a sweep"):
    reporting.gather(tmp_path)
  out = sweep({})
  record = json.loads((out / "sweep.json").read_text())
  record["references"]["d"], record["steps"]["d"] = "x:d", 3
  (out / "sweep.json").write_text(json.dumps(record))
  with pytest.raises(UserError, match="the arm 'd', which"):
    reporting.gather(out)


def test_a_report_takes_no_place_but_its_own(sweep, tmp_path):
  measured = reporting.gather(sweep(drawn()))
  to = tmp_path / "to"
  reporting.claim_folder(to, measured)
  (to / "notes.txt").write_text("mine")
  reporting.write_report(measured, to)
  reporting.claim_folder(to, measured)  # its own is written anew
  other = measured._replace(plan=dataclasses.replace(measured.plan, settings=("steps=3",)))
  with pytest.raises(UserError, match=r"report.md is not from a report of this sweep"):
    reporting.claim_folder(to, other)
  (to / "results.json").write_text("mine")
  with pytest.raises(UserError, match=r"report.md is not from a report of this sweep"):
    reporting.claim_folder(to, measured)
  with pytest.raises(UserError, match="is a file"):
    reporting.claim_folder(to / "notes.txt", measured)


def test_commands_of_a_report_can_be_pasted_and_settings_go_before_the_caveat(sweep, tmp_path):
  measured = reporting.gather(sweep(drawn()))
  plan = dataclasses.replace(measured.plan, settings=("objectives=MLM(rate=0.4), NSP()",))
  table = dataclasses.replace(measured.table, caveat="There are two layers.")
  reporting.write_report(measured._replace(plan=plan, table=table), tmp_path)
  said = (tmp_path / "report.md").read_text()
  assert "'--set=objectives=MLM(rate=0.4), NSP()'" in said
  assert "There are two layers. `--set` changed some sizes that this paragraph names" in said


def test_every_metric_is_explained():
  explained = (ROOT / "docs/ablation.md").read_text()
  for metric in (
    *(f"{k}_{n}" for k in ("mlm", "clm", "seq2seq") for n in ("loss", "perplexity", "accuracy")),
    *(f"{k}_{n}" for k in ("nsp", "sop") for n in ("accuracy", "majority")),
    *("pseudo_perplexity", "blimp", "blimp/PARADIGM"),
    *("finetune_LABELS_accuracy", "finetune_LABELS_macro_f1"),
  ):
    assert METRICS.fullmatch(metric.replace("LABELS", "500")), metric
    assert f"`{metric}`" in explained, metric


def test_curves_are_the_mean_and_the_range_of_the_seeds_that_got_so_far():
  steps, mean, low, high = plots.spread({0: [(1, 2.0), (2, 1.0)], 1: [(1, 4.0)]})
  assert (steps.tolist(), mean.tolist()) == ([1, 2], [3.0, 1.0])
  assert (low.tolist(), high.tolist()) == ([2.0, 1.0], [4.0, 1.0])
  assert len(plots.spread({})[0]) == 0


def test_markdown_and_html_mark_code_and_keep_a_bar_in_a_cell():
  grid = page.Grid(("a|b", "n"), [["`x<y`", "**supported**"]])
  assert page.markdown([grid]).splitlines()[0] == "| a\\|b | n |"
  html = page.page("t", [grid])
  assert "<code>x&lt;y</code>" in html
  header = page.page("t", [page.Grid(("`mlm_loss`, measured",), [["1"]])])
  assert "<span>mlm_</span><span>loss</span><small>measured</small></th>" in header
  assert "<td><strong>supported</strong></td>" in html


def test_the_ledger_names_every_table():
  ledger = (ROOT / "docs/reproduction.md").read_text()
  missing = [r for r, _ in cli.list_experiments("experiments", "Table") if f"`{r}`" not in ledger]
  assert not missing
