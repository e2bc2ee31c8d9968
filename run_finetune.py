"""Fine-tunes a checkpoint on a task; compares it with the same model from random initialisation and
with trivial baselines.

The default task: were the words of a sentence of the installed text shuffled? It is trained on 500
labels and on all, three seeds each. --task=label asks which package it comes from.

  python run_finetune.py --from=runs/bert_tiny
  python run_finetune.py --from=runs/bert_tiny --task=label
  python run_finetune.py --from=runs/minilm --data=reviews.csv              # one text, one label
  python run_finetune.py --from=runs/minilm --task=pairs --data=GLUE/QNLI   # two texts, one label
  python run_finetune.py --from=runs/minilm --task=regress --data=train.tsv --dev=dev.tsv
  python -m plm_jax.predict --model=runs/minilm/finetune/classify-reviews.csv/pretrained-all-0 \
--text="a fine film"

--search first tries a small grid of recipes and chooses on dev; --teacher=DIR learns from a
fine-tuned model too; docs/finetuning.md has more options.
--from is a run or a downloaded model. --data is a .csv, .tsv or .jsonl file (classify, pairs,
regress, choose, write), a .conll or .conllu file (tag), a .json file like SQuAD's (answer), or a
folder with train, dev and test files. Without --task the file decides, and a line says which
columns were chosen; other text needs no labels: its words are shuffled. A quick try:
--set=steps=20 --set=optim.warmup=2. A stopped command continues when it is given again.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

import data.installed_text  # noqa: F401  makes tfds:installed_text known
from experiments.finetune import grid, recipe, rule
from plm_jax import cli, overrides
from plm_jax.data.corpora import cache_folder
from plm_jax.errors import UserError
from plm_jax.export.to_run import is_run, run_directory
from plm_jax.runs import RunInfo
from plm_jax.tasks.comparison import (
  PROBE,
  TRAINED,
  Cell,
  Comparison,
  draw,
  named,
  numbers_of_labels,
  table,
)
from plm_jax.tasks.examples import SPLITS
from plm_jax.tasks.finetuning import (
  REPORT,
  RESULTS,
  FinetunePlan,
  baseline_cell,
  earlier_cells,
  identity,
  model_cell,
  plan,
  taught_by,
)
from plm_jax.tasks.probe import Probe
from plm_jax.tasks.registry import SUITES, TASKS, chosen_task
from plm_jax.tasks.search import searched
from plm_jax.tasks.suite import Suite, suite_table, tune_parts, with_suite_settings
from plm_jax.tasks.task import Task
from plm_jax.train import launch, processes
from plm_jax.train.process import enough_threads, keep_compilations, keep_freed_memory
from plm_jax.train.processes import say
from plm_jax.train.workdir import write_whole

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The run, or the published model's directory, to fine-tune.")
  flags.DEFINE_enum("task", None, [*TASKS, *SUITES], "The task (default: what the data suggest).")
  flags.DEFINE_string("data", None, "A file or a folder with train, dev and test files.")
  flags.DEFINE_string("dev", None, "A file for the dev split (default: a share of --data).")
  flags.DEFINE_string("test", None, "A file for the test split (default: a share of --data).")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, such as task.label=stars. Repeatable.")
  flags.DEFINE_string("arms", None, "pretrained, or pretrained,random to compare (default: the "
                      "first for a published model, else both).")  # fmt: skip
  flags.DEFINE_string("labels", None, "Numbers of training examples, such as 500,all.")
  flags.DEFINE_integer("seeds", None, "Number of seeds, for examples, order, dropout, new "
                       "parameters (default: 3 to compare, else 1).")  # fmt: skip
  flags.DEFINE_bool("search", False, "Choose learning rate, batch and epochs on the dev split.")
  flags.DEFINE_string("teacher", None, "A fine-tuned model whose probabilities are learnt too.")
  flags.DEFINE_bool("probe", True, "The baseline of a linear model on the frozen checkpoint.")
  flags.DEFINE_string(
    "workdir",
    None,
    "Where the runs are kept (default: FROM/finetune/TASK, or "
    "runs/NAME/finetune/TASK for a published model).",
  )
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_bool("dry_run", False, "Show the task and the configuration, train nothing.")
  launch.define_flags()
  flags.adopt_module_key_flags(launch)


class Scope(NamedTuple):
  """The cells of a command."""

  arms: list[str]
  sizes: list[int | None]
  seeds: range


def main() -> None:
  keep_freed_memory()
  if not FLAGS["from"].value:
    raise UserError("run_finetune.py needs --from=DIR, a run or a downloaded model.")
  enough_threads()
  with processes.joined(*launch.flags_of_place()):
    run()


def run() -> None:
  """The fine-tunings of the flags, in this process."""
  cache = cache_folder(FLAGS.cache)
  keep_compilations(cache)
  with processes.first_goes_first():
    source = RunInfo.read(run_directory(FLAGS["from"].value, cache))
  settings = [f"task.{name}={FLAGS[name].value}" for name in ("dev", "test") if FLAGS[name].value]
  settings += FLAGS.set
  sources = [
    s.partition("=")[2] for s in settings if s.startswith(("task.source=", "data.source="))
  ]
  task = chosen_task(FLAGS.task, FLAGS.data or next(reversed(sources), None))
  if isinstance(task, Suite):
    return finetune_suite(source, task, settings, cache)
  chosen = planned(source, task, settings, cache, Path(FLAGS.workdir or source.path))
  if FLAGS.teacher:
    chosen = chosen._replace(teacher=Path(FLAGS.teacher).absolute())
    taught_by(chosen)  # refuses a directory that is no run
  chosen = chosen._replace(search=FLAGS.search)
  if not FLAGS.workdir:
    options = [name for name in ("search", "teacher") if FLAGS[name].value]
    name = "-".join([name_of(task), *options])
    chosen = chosen._replace(path=finetunings() / name)
  scope = chosen_scope(chosen)
  experiments = [chosen.experiment(size, 0) for size in scope.sizes]  # refuses too few examples
  say(describe(chosen, scope))
  if FLAGS.dry_run:
    for experiment in experiments:
      say(f"\n{overrides.describe(experiment)}")
    return
  compare(chosen, scope)


def planned(
  source: RunInfo, task: Task, settings: list[str], cache: Path, folder: Path
) -> FinetunePlan:
  """The plan of the recipe; the first process prepares the text in the cache."""
  with processes.first_goes_first():
    return plan(source, recipe, task, settings, cache, folder)


def finetunings() -> Path:
  """The folder of a model's fine-tunings: in its directory, or in runs/NAME for a published one."""
  given = Path(FLAGS["from"].value)
  name = given.name or given.resolve().name
  return (given if is_run(given) else Path("runs") / name) / "finetune"


def finetune_suite(source: RunInfo, suite: Suite, settings: list[str], cache: Path) -> None:
  """Every part as a task, then one table and what the suite makes of the models."""
  suite, settings = with_suite_settings(suite, settings)
  path = Path(FLAGS.workdir or finetunings() / name_of(suite))

  def tune(task: Task, folder: Path) -> list[Cell]:
    chosen = planned(source, task, settings, cache, folder)
    scope = chosen_scope(chosen)
    say(describe(chosen, scope))
    return [] if FLAGS.dry_run else compare(chosen, scope)

  with processes.first_goes_first():
    suite.chosen(cache)  # the first writes the files of TFDS's data sets
  results = tune_parts(suite, path, cache, tune)
  if FLAGS.dry_run:
    return
  if processes.is_first():
    text, record = suite_table(suite, results)
    print(f"\n=== {suite.name} ===\n{text}")
    write_whole(path / RESULTS, json.dumps(record, indent=2) + "\n")
  say("\n".join(suite.finish(results, path, cache)))


def chosen_scope(chosen: FinetunePlan) -> Scope:
  """The cells that the flags ask for. Errors: `UserError` for flags that name none."""
  default = "pretrained" if "public" in chosen.source.document else ",".join(TRAINED)
  arms = list(dict.fromkeys((FLAGS.arms or default).split(",")))
  if "pretrained" not in arms or not set(arms) <= set(TRAINED):
    raise UserError(f"--arms={FLAGS.arms} was given; expected pretrained or pretrained,random.")
  compares = len(arms) > 1
  seeds = (3 if compares else 1) if FLAGS.seeds is None else FLAGS.seeds
  if seeds < 1:
    raise UserError(f"--seeds={seeds} was given; at least one seed is needed.")
  # A user's file may be small, and is for the best model rather than for a comparison.
  labels = FLAGS.labels or ("500,all" if compares and not chosen.task.place else "all")
  return Scope(arms, numbers_of_labels(labels, "labels"), range(seeds))


def name_of(task: Task | Suite) -> str:
  """The name of a task's directory: word_order, classify-reviews.csv."""
  place = re.sub(r"[^A-Za-z0-9_.-]+", "_", task.place)
  return f"{task.name}-{place}" if place else task.name


def describe(chosen: FinetunePlan, scope: Scope) -> str:
  """The task: classes, splits, what was decided, and the recipe."""
  task, splits = chosen.task, chosen.splits
  lines = [f"{task.source}: {task.question}"]
  if task.classes:
    lines.append("  " + ", ".join(task.classes))
  for name in SPLITS:
    examples = getattr(splits, name)
    lines.append(
      f"  {name:6}{len(examples):7,} examples from {len(examples.documents):,} documents"
    )
  lines += [f"  {note}" for note in splits.notes]
  if splits.left_out:
    why = "; ".join(f"{label} ({why})" for label, why in splits.left_out.items())
    lines.append(f"  left out: {why}")
  hashes = " ".join(getattr(splits, name).fingerprint()[:12] for name in SPLITS)
  lines.append(f"  sha256 of {', '.join(SPLITS)}: {hashes}")
  for size in scope.sizes:
    defaults = rule(chosen.source, size or len(splits.train))
    lines.append(f"  defaults for {size or 'all'} labels: {defaults}")
  lines += [f"  --set={setting}" for setting in chosen.settings]
  return "\n".join(lines)


def compare(chosen: FinetunePlan, scope: Scope) -> list[Cell]:
  """Every cell, then the table and results.*, with the directory's earlier cells. The first process
  alone computes the baselines and writes."""
  cells = {cell[:3]: cell for cell in earlier_cells(chosen)}
  fitted = list(chosen.task.baselines)[:-1]
  probe = Probe(chosen.source, chosen.task)
  if FLAGS.probe and probe.fits(chosen.splits):
    fitted.append(PROBE)
  recipes = {}
  for size in scope.sizes:
    known: dict[str, Cell] = {}  # with all labels every seed has the same examples
    best = chosen
    if FLAGS.search:
      best, found = searched(chosen, size, grid(chosen.source))
      say(found)
    recipes[str(size or "all")] = overrides.to_json(best.experiment(size, 0))
    for seed in scope.seeds:
      for arm in (*scope.arms, *fitted):
        start = time.perf_counter()
        title = f"{arm}, {size or 'all'} labels, seed {seed}"
        if arm in chosen.task.baselines and not processes.is_first():
          continue
        if arm in fitted:
          cell = known.get(arm) or fitted_cell(chosen, probe, arm, size, seed)
          cell = cell._replace(seed=seed)
          known |= {arm: cell} if size is None else {}
        else:
          cell = model_cell(best, arm, size, seed, title)
        cells[cell[:3]] = cell
        shown = ", ".join(f"{named(m)} {cell.test[m]:.3f}" for m in chosen.task.metrics)
        say(f"{title:36} {shown}  ({time.perf_counter() - start:.0f} s)")
  if processes.is_first():
    write_results(chosen, Comparison.of(cells.values(), chosen.task), scope, recipes)
  return list(cells.values())


def fitted_cell(chosen: FinetunePlan, probe: Probe, arm: str, size: int | None, seed: int) -> Cell:
  """A baseline that is fitted to the training examples."""
  if arm == PROBE:
    return probe.cell(chosen.splits.few(size, seed), str(size or "all"), seed)
  return baseline_cell(chosen, arm, size, seed)


def write_results(
  chosen: FinetunePlan, comparison: Comparison, scope: Scope, recipes: dict[str, Any]
) -> None:
  """Prints the table and writes results.*. recipes: labels -> the experiment of seed 0."""
  constant = list(chosen.task.baselines)[-1]
  chance = baseline_cell(chosen, constant, None, 0).test
  print(table(comparison, chance))
  record = {"of": identity(chosen), "recipes": recipes, **comparison.record()}
  write_whole(chosen.path / RESULTS, json.dumps(record, indent=2) + "\n")
  draw(comparison, chosen.path / "results.png", chance)
  model = chosen.path / f"pretrained-{scope.sizes[-1] or 'all'}-{scope.seeds[0]}"
  if len(scope.arms) == 1:
    print(f"\n{(model / REPORT).read_text().rstrip()}")
  print(f"\n{chosen.path}/results.png shows the table; {RESULTS} has every number")
  print(f"next: python -m plm_jax.predict --model={model} --file=FILE")


if __name__ == "__main__":
  cli.run(main)
