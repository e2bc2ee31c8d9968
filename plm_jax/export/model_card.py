"""Model cards: the README.md beside an exported model, with the YAML head that the Hub reads.

Everything in a card is read from the run's directory. Numbers that the run does not have are left
out, and a licence is never guessed.
"""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jax

from plm_jax.config_tree import show
from plm_jax.errors import UserError
from plm_jax.export.pretrained import Pretrained, has_dense
from plm_jax.runs import RunInfo, history
from plm_jax.train.integrity import without_digest
from plm_jax.train.workdir import read_records

UNKNOWN = "unknown"
_TASKS = {  # the end of transformers' class -> the Hub's pipeline
  "MaskedLM": "fill-mask",
  "ForPreTraining": "fill-mask",
  "CausalLM": "text-generation",
  "LMHeadModel": "text-generation",
  "ForConditionalGeneration": "text2text-generation",
  "SequenceClassification": "text-classification",
  "TokenClassification": "token-classification",
  "QuestionAnswering": "question-answering",
  "MultipleChoice": "multiple-choice",
}
_USES = {
  "fill-mask": "predict masked tokens, and be fine-tuned",
  "text-generation": "continue texts, and be fine-tuned",
  "text2text-generation": "write a target for a source text, and be fine-tuned",
  "feature-extraction": "give vectors of tokens, and be fine-tuned",
  "sentence-similarity": "give vectors of texts, which can be compared",
}
_HUB_METRICS = {
  "macro_f1": "f1", "micro_f1": "f1", "em": "exact_match", "mcc": "matthews_correlation",
  "pearson": "pearsonr", "spearman": "spearmanr",
}  # fmt: skip


def write_card(
  run: RunInfo, model: Pretrained, directory: Path, licence: str | None = None
) -> None:
  """Writes README.md, unless the directory has one. licence: an identifier of the Hub."""
  text = card(run, model, directory.resolve().name, licence)
  path = directory / "README.md"
  with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
    file.write(text)


def card(run: RunInfo, model: Pretrained, name: str, licence: str | None = None) -> str:
  """The text of a card. Errors: `UserError` for a licence that is no identifier."""
  licence = checked_licence(licence)
  library, task = library_of(model), task_of(model)
  scores = [*score_tables(run), *shrunk_tables(run)]
  names = [metric for _, metrics, _ in scores for metric in metrics]
  metrics = dict.fromkeys(  # bytes and milliseconds are no scores
    _HUB_METRICS.get(name, name) for name in names if name != "loss" and " " not in name
  )
  head = {"library_name": library, "pipeline_tag": task, "license": licence}
  lines = ["---", *(f"{key}: {value}" for key, value in head.items()), "tags:", "- plm_jax"]
  lines += ["metrics:", *(f"- {metric}" for metric in metrics)] if metrics else []
  parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  lines += [
    "---", "", f"# {name}", "",
    f"A {type(model.config).__name__} of {parameters:,} parameters, exported as "
    f"{model.architecture} from a run of plm_jax. This card was made from the run.",
    *section("Intended use", [intended(task, run)]),
    *section("Data", data_lines(run)),
    *section("Recipe", recipe_lines(run)),
    *section("Made smaller", shrunk_lines(run)),
    *section("Scores", [line for table in scores for line in table_lines(*table)]),
    *section("Licence", [licence_line(licence)]),
  ]  # fmt: skip
  return "\n".join(lines) + "\n"


def checked_licence(licence: str | None) -> str:
  """The licence, or "unknown". Errors: `UserError` for more than one word."""
  if licence is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
    raise UserError(
      f"the licence {licence!r} was given; expected one identifier of the Hub, such as mit, "
      "apache-2.0 or cc-by-4.0."
    )
  return licence or UNKNOWN


def section(title: str, lines: list[str]) -> list[str]:
  """A section; none for no lines."""
  return ["", f"## {title}", "", *lines] if lines else []


def library_of(model: Pretrained) -> str:
  dense = has_dense(model.config, model.heads)
  return "sentence-transformers" if model.pooling is not None or dense else "transformers"


def task_of(model: Pretrained) -> str:
  """The Hub's pipeline for the model."""
  if has_dense(model.config, model.heads):
    return "text-classification"
  if model.pooling is not None:
    return "sentence-similarity"
  if set(model.heads) & {"rtd"}:  # a discriminator fills no masks
    return "feature-extraction"
  name = str(model.architecture)
  return next((task for end, task in _TASKS.items() if name.endswith(end)), "feature-extraction")


def intended(task: str, run: RunInfo) -> str:
  """What the model is for, and what it was not tested for."""
  question = getattr(run.experiment.data, "question", None)
  use = f"answer this: {question}" if question else _USES.get(task, "be fine-tuned")
  end = "" if use.endswith((".", "?")) else "."
  return (
    f"Research and teaching. The model can {use}{end} It was measured on the data below alone. It "
    "repeats the errors and the biases of its training text."
  )


def data_lines(run: RunInfo) -> list[str]:
  """The data of the run, and of the runs that it started from, with their hashes."""
  lines = []
  for each in history(run):
    if source := each.document.get("converted_from"):
      lines.append(f"- The published model `{Path(source).name}`: its own card names its data.")
      continue
    text = each.document.get("text") or {}
    place = Path(str(getattr(each.experiment.data, "source", ""))).name
    if "source" in text:
      source, splits = text["source"], text["splits"]
      digest = source.get("sha256") or source["fingerprint"]
      lines.append(
        f"- Pretraining text: `{place}`, {splits['train']['tokens']:,} training tokens and "
        f"{splits['valid']['tokens']:,} held-out tokens; hash `{digest}`."
      )
    elif "splits" in text:
      shown = ", ".join(
        f"{name} {_count(split['examples']):,} (sha256 `{split['sha256'][:16]}`)"
        for name, split in text["splits"].items()
      )
      lines.append(f"- Fine-tuning examples: `{place}`: {shown}.")
  return lines


def _count(examples: int | Mapping[str, int]) -> int:
  return examples if isinstance(examples, int) else Counter(examples).total()


def recipe_lines(run: RunInfo) -> list[str]:
  """The sizes, the optimiser, and the command."""
  if "public" in run.document and "text" not in run.document:
    return []  # of a published model, which was not trained here
  experiment, document = run.experiment, run.document
  lines = [
    f"- objectives: {', '.join(f'`{show(o)}`' for o in experiment.objectives)}",
    f"- optimiser: `{show(experiment.optim)}`",
    f"- {experiment.steps:,} steps of {experiment.global_batch} rows of at most "
    f"{experiment.data.length} tokens, seed {experiment.seed}",
  ]
  if versions := document.get("versions"):
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in versions.items()))
  command = document.get("command") or [""]
  if Path(command[0]).name in ("run_pretrain.py", "run_finetune.py"):
    words = [Path(command[0]).name, *command[1:]]
    lines += ["", "```", " ".join(["python", *words]), "```"]
  return lines


def shrunk_lines(run: RunInfo) -> list[str]:
  """How a smaller run was made from another (plm_jax/shrinking)."""
  entry = run.document.get("shrunk")
  if entry is None:
    return []
  lines = [
    f"- way: `{entry['way']}`, {entry['text']}",
    f"- made from the run `{Path(entry['from']).name}`, whose parameters have the sha256 "
    f"`{entry['parameters'][:16]}`",
  ]
  if entry["form"]:
    lines.append(
      f"- the run stores its parameters as {entry['form']}; this export has their rounded values "
      "in float32"
    )
  return lines


Table = tuple[str, Mapping[str, Any], Mapping[str, Mapping[str, str]]]
"""A title, the metrics (columns), and the rows: name -> metric -> value."""


def score_tables(run: RunInfo) -> Iterator[Table]:
  """The scores that the run's directory has."""
  if run.path is None:
    return
  yield from held_out(run)
  path = run.path / "scores.json"
  stored = without_digest(read_json(path), path)
  if "test" in stored:
    yield from fine_tuned(run, stored)
  elif "metrics" in stored:  # of a sweep
    parts = {"model": "metrics", "unigram or chance": "references"}
    rows = {
      name: {metric: f"{value:.4g}" for metric, value in stored[part].items()}
      for name, part in parts.items()
    }
    title = f"On the evaluation sets of a sweep, seed {run.experiment.seed}"
    yield title, dict.fromkeys(rows["model"]), rows


def held_out(run: RunInfo) -> Iterator[Table]:
  """The held-out scores of pretraining."""
  records = read_records(run.path / "metrics.jsonl")
  valid = [r for r in records if r.get("split") == "valid"]
  kind = "dev examples" if hasattr(run.experiment.data, "question") else "held-out text"
  for objective in run.experiment.objectives if len(valid) > 1 else ():
    rows = {
      f"step {record['step']:,}": _values(record, objective.name)
      for record in (valid[0], valid[-1])
    }
    metrics = dict.fromkeys(metric for row in rows.values() for metric in row)
    yield f"{objective.name.upper()} on {kind}, seed {run.experiment.seed}", metrics, rows


def _values(record: Mapping[str, Any], objective: str) -> dict[str, str]:
  """The metrics of an objective, with the perplexity of one that predicts tokens."""
  prefix = f"{objective}/"
  values = {n.removeprefix(prefix): x for n, x in record.items() if n.startswith(prefix)}
  if objective in ("mlm", "clm", "seq2seq"):
    values["perplexity"] = math.exp(values["loss"])
  return {name: f"{value:.4g}" for name, value in values.items()}


def fine_tuned(run: RunInfo, stored: Mapping[str, Any]) -> Iterator[Table]:
  """The test scores of this model, and those of all seeds and baselines beside it."""
  path = run.path.parent / "results.json"
  cells = [
    cell for cell in without_digest(read_json(path), path).get("cells", [])
    if cell["labels"] == stored["labels"]
  ]  # fmt: skip
  rows = {"this model": {name: f"{x:.3f}" for name, x in stored["test"].items()}}
  for arm in dict.fromkeys(cell["arm"] for cell in cells):
    tests = [cell["test"] for cell in cells if cell["arm"] == arm]
    label = f"{arm}, {len(tests)} seed{'s' * (len(tests) > 1)}"
    rows[label] = {metric: _spread([test[metric] for test in tests]) for metric in tests[0]}
  title = f"On the test split, {stored['labels']} labels, seed {stored['seed']}"
  yield title, dict.fromkeys(stored["test"]), rows


def shrunk_tables(run: RunInfo) -> Iterator[Table]:
  """The score of a smaller run beside that of the run that it was made from, over all seeds."""
  entry = run.document.get("shrunk")
  if entry is None or run.path is None:
    return
  path = run.path.parent / "results.json"
  record = without_digest(read_json(path), path)
  metric, rows = record.get("metric"), {}
  for way in ("full", entry["way"]):
    values = [c["scores"][metric] for c in record.get("cells", []) if c["way"] == way]
    if values and way in record["sizes"]:
      runs = f"{way}, {len(values)} run{'s' * (len(values) > 1)}"
      size, speed = record["sizes"][way], record["speeds"][way]
      rows[runs] = {
        metric: _spread(values),
        "bytes in memory": f"{size['memory']:,}",
        "p50, ms": f"{speed['p50']:.2f}",
      }
  if rows:
    where = "the held-out text" if record["is_loss"] else "the test split"
    title = f"On {where}, beside the run that it was made from"
    yield title, dict.fromkeys(next(iter(rows.values()))), rows


def _spread(values: list[float]) -> str:
  return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def read_json(path: Path) -> dict[str, Any]:
  """An object of JSON; empty if there is none."""
  try:
    document = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return document if isinstance(document, dict) else {}


def table_lines(title: str, metrics: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
  """A table of Markdown."""
  lines = [f"{title}:", "", f"| | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
  for name, row in rows.items():
    lines.append(f"| {name} | {' | '.join(row.get(metric, '') for metric in metrics)} |")
  return [*lines, ""]


def licence_line(licence: str) -> str:
  if licence != UNKNOWN:
    return f"{licence}, as the person who exported the model says."
  return "Unknown. It depends on the licence of the training text. Nobody has set one."
