"""The printed report of a training run and its plots: heading, costs, results, examples, curves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from plm_jax.data.mixture import MixedBatches
from plm_jax.data.preparation import Prepared
from plm_jax.data.texts import BLOCK
from plm_jax.decode.fill_mask import blanks_from, fill
from plm_jax.decode.neighbours import groups
from plm_jax.decode.rules import Rules
from plm_jax.decode.writer import Prompt, continuation, readable, write
from plm_jax.experiment import Experiment
from plm_jax.models.model import Parameters
from plm_jax.objectives.baselines import Baseline, perplexity
from plm_jax.objectives.objective import Objective
from plm_jax.sharding import kept_whole
from plm_jax.train.loop import Program
from plm_jax.train.state import trainable
from plm_jax.train.workdir import Workdir, read_records

FEW = 100  # held-out rows: a report with fewer is marked
BLANKS = 64  # held-out sentences whose blanks are filled


def heading(record: dict[str, Any], experiment: Experiment) -> str:
  """The experiment's name, and its differences from its base."""
  # An experiment made in Python has no reference, and its own size.
  name = (
    f"{record['reference']} at budget {record['budget']}" if record["reference"] else record["name"]
  )
  lines = [f"{name}, seed {experiment.seed}"]
  if record["diff"]:
    width = max(len(d["field"]) for d in record["diff"])
    lines.append("differs from its base in")
    lines += [f"  {d['field']:{width}}  {d['base']} -> {d['here']}" for d in record["diff"]]
  return "\n".join(lines)


def costs(program: Program) -> str:
  """Parameters, positions and memory of a compiled experiment."""
  experiment, params = program.experiment, program.abstract.params
  count = size(params)
  fixed = count - size(trainable(params, experiment.frozen))
  frozen = f" ({fixed:,} of them frozen)" if fixed else ""
  batch, length = experiment.global_batch, experiment.data.length
  mesh = " x ".join(f"{name} {size}" for name, size in program.mesh.shape.items())
  line = (
    f"{count:,} parameters{frozen}; {experiment.steps:,} steps of {batch} x {length} = "
    f"{batch * length:,} positions; {program.memory / 2**20:,.0f} MiB per device; mesh {mesh}"
  )
  share = [params.share()] if experiment.peft else []
  return "\n".join([line, *share, *kept_whole(params, program.mesh)])


def size(params) -> int:
  """The number of parameters."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def text_lines(texts: Mapping[str, Prepared], batches: MixedBatches) -> str:
  """A line on each text; on each of several with its share of the rows."""
  lines = []
  for (name, text), rows in zip(texts.items(), batches.rows_of_block, strict=True):
    source, splits = text.manifest["source"]["given"], text.manifest["splits"]
    train, valid = splits["train"], splits["valid"]
    lines.append(
      (f"{name}, {rows / BLOCK:.1%} of the rows: " if name else "")
      + f"{source}: {train['tokens']:,} training tokens in {train['documents']:,} "
      f"documents, {valid['tokens']:,} held-out tokens in {valid['documents']:,} documents; "
      f"vocabulary of {text.manifest['tokenizer']['size']:,}"
    )
  return "\n".join(lines)


def rows_line(train: MixedBatches, is_counted: bool) -> str:
  """One line on the rows. Formats are comparable at the same number of tokens per step; a counted
  model takes no steps."""
  rows, length, share = train.rows(), train.corpus.length, train.fill()
  tokens = train.global_batch * length * share
  line = f"{rows:,} rows of {length} positions per epoch, {share:.1%} of the positions filled"
  return line if is_counted else f"{line}; about {tokens:,.0f} tokens per step"


class Results(NamedTuple):
  """The data of the final report. counts: int `[V]`, unigram counts of the training text."""

  experiment: Experiment
  records: list[dict[str, Any]]
  counts: np.ndarray
  evaluation: list[dict[str, np.ndarray]]

  def held_out(self, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every evaluation on held-out text."""
    return [
      (r["step"], r[metric]) for r in self.records if r.get("split") == "valid" and metric in r
    ]

  def baseline(self, objective: Objective) -> Baseline:
    """The scores of the objective's trivial baseline."""
    scores = [record for record in self.records if record.get("split") == "valid"][-1]
    return objective.baseline(self.counts, self.evaluation, scores)


def results(run: Results) -> str:
  """Held-out scores before and after training, and those of a trivial baseline."""
  rows = []
  for objective in run.experiment.objectives:
    kind, baseline, unit = run.baseline(objective)
    for metric in dict.fromkeys(["loss", *baseline]):
      stored, shown = ("loss", perplexity) if metric == "perplexity" else (metric, float)
      values = run.held_out(f"{objective.name}/{stored}")
      label = f"{objective.name.upper()} {metric}" + unit * (metric == "loss")
      before = None if run.experiment.is_counted else shown(values[0][1])
      rows.append((label, before, shown(values[-1][1]), baseline.get(metric), kind))
    for text in filter(None, getattr(run.experiment.data, "texts", ())):
      (_, before), *_, (_, after) = run.held_out(f"{text}/{objective.name}/loss")
      rows.append((f"  on {text}", before, after, None, kind))
  count = int(sum(batch["row_weight"].sum() for batch in run.evaluation))
  title = f"on {count} held-out rows" + " (few)" * (count < FEW)
  width = max(24, len(title), *(len(label) + 1 for label, *_ in rows))
  titles = ("", "counted") if run.experiment.is_counted else ("before", "after")
  lines = ["{:{}}{:>10}{:>10}{:>11}".format(title, width, *titles, "baseline")]
  for label, before, after, baseline, kind in rows:
    start = "" if before is None else _number(before)
    shown = "" if baseline is None else f"{_number(baseline):>11}  {kind}"
    lines.append(f"{label:{width}}{start:>10}{_number(after):>10}{shown}")
  return "\n" + "\n".join(lines)


def _number(value: float) -> str:
  if abs(value) >= 1e6:
    return f"{value:.3g}"
  return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def examples(params: Parameters, run: Results, prepared, count: int = 4) -> str:
  """Examples on held-out text: continuations of sentences, targets of sources, or fillers of
  blanks; else the reason why there are none. Then words that are alike in the token table."""
  experiment, tokenizer = run.experiment, prepared.tokenizer
  if writes(params) and hasattr(experiment.model, "source_ids"):
    shown = targets(params, run, tokenizer, count)
  elif writes(params):
    shown = continuations(params, experiment, prepared, count)
  elif params.masked_lm() is not None and tokenizer.vocab.mask is not None:
    shown = fillers(params, experiment, prepared, count)
  else:
    shown = "\nno examples: this model neither generates text nor predicts masked tokens"
  alike = groups(params, tokenizer, prepared.train.counts)
  if not alike:
    return shown
  lines = ["\nfrequent words with the most similar vectors in the token table"]
  return "\n".join([shown, *lines, *("  " + ", ".join(words) for words in alike)])


def fillers(params: Parameters, experiment: Experiment, prepared, count: int) -> str:
  """Held-out sentences with a blank and the most probable fillers: those where the model is most
  certain and those where it is least, half of `count` each."""
  tokenizer, size = prepared.tokenizer, prepared.tokenizer.vocab.size
  blanks = blanks_from(prepared.valid, tokenizer, BLANKS)
  if not blanks:
    return "\nno examples: no held-out sentence has a long word of one token"
  filled = list(zip(blanks, fill(params.masked_lm(), blanks, experiment.compute, size=size)))
  ranks = [rank for b, best in filled for rank, f in enumerate(best) if f.token == b.answer]
  filled.sort(key=lambda pair: -pair[1][0].probability)
  few = min(count // 2, len(filled) // 2)
  lines = [
    f"\n{len(blanks)} held-out sentences with a blank: the right word is the most probable token "
    f"in {ranks.count(0)}, and among the five most probable in {len(ranks)}"
  ]
  for title, chosen in (("most", filled[:few]), ("least", filled[len(filled) - few :])):
    lines.append(f"where the model is {title} certain")
    for blank, best in chosen:
      ids = blank.ids[1:-1]
      before = tokenizer.decode(ids[: blank.position - 1])
      after = tokenizer.decode(ids[blank.position :])
      options = ", ".join(f"{tokenizer.decode([f.token])} {f.probability:.2f}" for f in best)
      answer = tokenizer.decode([blank.answer])
      lines += [f"  {before} ____ {after}", f"    {options}   (the text has: {answer})"]
  return "\n".join(lines)


def writes(params: Parameters) -> bool:
  """Whether `plm_jax.generate` takes the model."""
  return hasattr(params.encoder(), "generator")


def continuations(params: Parameters, experiment: Experiment, prepared, count: int) -> str:
  """The first halves of held-out sentences, and the model's continuations."""
  tokenizer, store = prepared.tokenizer, prepared.valid
  starts = np.asarray(store.sentence_starts)
  suitable = np.flatnonzero((np.diff(starts) >= 8) & (np.diff(starts) <= 24))
  if not suitable.size:
    return "\nno examples: no held-out sentence has 8 to 24 tokens"
  chosen = suitable[np.linspace(0, len(suitable) - 1, count, dtype=int)]
  halves = [store.tokens[starts[i] : (starts[i] + starts[i + 1]) // 2].tolist() for i in chosen]
  prompts = [Prompt([*tokenizer.vocab.begin, *half]) for half in halves]
  lines = ["", "beginnings of held-out sentences, and the model's continuations (temperature 0.7)"]
  rules = Rules(temperature=0.7, max_length=24)
  model = params, experiment.model.encoder, tokenizer, experiment.compute
  for prompt, (text,) in zip(prompts, write(*model, prompts, rules)):
    shown = tokenizer.decode(prompt.ids), continuation(tokenizer, prompt, text.ids)
    lines.append("  " + " ____ ".join(" ".join(part.split()) for part in shown))
  return "\n".join(lines)


def targets(params: Parameters, run: Results, tokenizer, count: int) -> str:
  """Held-out sources as they were evaluated, the model's outputs, and the true targets."""
  names = ("input_ids", "length", "decoder_input_ids", "decoder_length", "seq2seq_targets")
  columns = [np.concatenate([batch[name] for batch in run.evaluation]) for name in names]
  real = np.flatnonzero(np.concatenate([batch["row_weight"] for batch in run.evaluation]))
  rows = real[np.linspace(0, len(real) - 1, count, dtype=int)]
  chosen = [tuple(column[i] for column in columns) for i in rows]
  prompts = [Prompt([int(start[0])], ids[:length].tolist()) for ids, length, start, *_ in chosen]
  rules = Rules(max_length=chosen[0][-1].size)
  model = params, run.experiment.model.encoder, tokenizer, run.experiment.compute
  written = write(*model, prompts, rules)

  def shown(ids) -> str:
    return " ".join(readable(tokenizer, ids).split())

  lines = ["", "held-out sources, the model's outputs and, in brackets, the true targets"]
  for prompt, (text,), (*_, length, ids) in zip(prompts, written, chosen):
    lines += [f"  {shown(prompt.source)}", f"    {shown(text.ids)}", f"    ({shown(ids[:length])})"]
  return "\n".join(lines)


def draw_curves(run: Results, workdir: Workdir) -> None:
  """`curves.png`: the loss and one more metric of every objective, and a trivial baseline."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  objectives = run.experiment.objectives
  figure = Figure(figsize=(9, 3.2 * len(objectives)), layout="constrained")
  axes = figure.subplots(len(objectives), 2, squeeze=False)
  training = [r for r in run.records if r.get("split") == "train"]
  for row, objective in zip(axes, objectives):
    kind, baseline, unit = run.baseline(objective)
    others = [metric for metric in baseline if metric not in ("loss", "perplexity")]
    row[1].set_visible(bool(others))
    for axis, metric in zip(row, ["loss", *others[:1]]):
      name = f"{objective.name}/{metric}"
      axis.plot([r["step"] for r in training], [r[name] for r in training], lw=1, label="training")
      held_out = run.held_out(name)
      # The loss before training is a dot: no step between it and the next was measured.
      (dots,) = axis.plot(*zip(*held_out), "o", ms=4)
      line = [point for point in held_out if point[0]]
      axis.plot(*zip(*line), "o-", ms=4, color=dots.get_color(), label="held out")
      if baseline.get(metric) is not None:
        axis.axhline(baseline[metric], color="gray", ls="--", lw=1, label=kind)
      axis.set_xlabel("step")
      axis.set_ylabel(metric + unit * (metric == "loss"))
      axis.set_title(name)
      axis.grid(alpha=0.3)
      axis.legend(frameon=False)
  figure.savefig(workdir / "curves.png", dpi=120)


def goodbye(workdir: Path, experiment: Experiment, params: Parameters) -> str:
  """The run's training time, its files, and a command to try next."""
  timing = [r for r in read_records(workdir / "timing.jsonl") if "seconds" in r]
  seconds = sum(r["seconds"] for r in timing)
  command = f"python run_finetune.py --from={workdir}"
  if hasattr(params, "word_rows"):
    command = f"python -m plm_jax.embeddings neighbours --model={workdir} --words=..."
  if writes(params):
    reads_source = hasattr(experiment.model, "source_ids")
    begins = not reads_source and getattr(experiment.data.segments, "framed", True)
    command = f"python -m plm_jax.generate --model={workdir}" + ' --prompt="..."' * (not begins)
  waited = sum(r["data_wait"] for r in timing)
  if experiment.is_counted:
    return f"\nnext: {command}"
  return (
    f"\n{seconds:.0f} s of training, of which {waited:.1f} s waiting for data\n"
    f"{workdir}/curves.png shows the curves, and so does tensorboard --logdir={workdir}\n"
    f"next: {command}"
  )
