"""The blocks that experiments/history.py adds to its report: a picture of all generations, one
table of quality and cost, the texts that the models write, and a step's time against the length of
its rows."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from plm_jax import overrides
from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, Heading, PageBlock, Picture, Text
from plm_jax.ablate.plan import PlannedRun, workdir_of
from plm_jax.ablate.report_numbers import cell, number, tokens_read
from plm_jax.errors import UserError
from plm_jax.files import read_json
from plm_jax.train import estimate
from plm_jax.train.workdir import read_records

PICTURE, LENGTHS = "history.png", "row_length.json"
SECONDS = "processor_seconds"


class Panel(NamedTuple):
  """A measure in the picture. better: "lower" or "higher"."""

  metrics: tuple[str, ...]  # the first that an arm has
  title: str
  better: str


class Family(NamedTuple):
  """Arms of one kind and their colour."""

  name: str
  colour: str
  arms: tuple[str, ...]


PANELS = (
  Panel(("clm_bits_per_byte", "pseudo_bits_per_byte"), "predicts text\nbits per byte", "lower"),
  Panel(("gap_bits_per_byte",), "fills a gap of 3\nbits per byte", "lower"),
  Panel(("blimp",), "prefers grammar\nBLiMP accuracy", "higher"),
  Panel(("probe_tag_accuracy",), "knows parts of speech\naccuracy of a probe", "higher"),
  Panel(("probe_order_all_accuracy",), "knows word order\naccuracy of a probe", "higher"),
  Panel((SECONDS,), "training\nseconds of one core", "lower"),
)
COLUMNS = (
  ("clm_bits_per_byte", "bits per byte"),
  ("pseudo_bits_per_byte", "pseudo bits per byte"),
  ("gap_bits_per_byte", "gap, bits per byte"),
  ("blimp", "BLiMP"),
  ("probe_tag_accuracy", "tags"),
  ("probe_order_all_accuracy", "word order"),
  ("probe_topic_500_accuracy", "topic, 500"),
  ("probe_topic_all_accuracy", "topic, all"),
)


def blocks(
  measured: Measured, to: Path, families: Sequence[Family], years: Mapping[str, int]
) -> list[PageBlock]:
  """families, years: of the arms; the picture has them in the order of their years."""
  if not measured.scores or not any(measured.scores.values()):
    return []
  draw(measured, families, years, to / PICTURE)
  caption = "A row is a generation. Dots are seeds, bars their mean; dashed lines are a unigram "
  caption += "model, or the most frequent class, or chance. Hollow dots: pseudo bits per byte of a "
  caption += "masked model, which reads both sides and cannot be compared with the others."
  return [
    Picture(to / PICTURE, caption),
    Heading("Quality and cost"),
    quality(measured, years),
    Text(
      "Bits per byte: over the same held-out text for all. Gap: of three tokens in the middle of "
      "29, from all that a model can read. Tags, word order, topic: accuracies of a linear probe "
      "of the frozen states. No number: the model has none." + pairs_read(measured)
    ),
    costs(measured),
    Text(
      "Seconds are of one processor core, mean of the seeds, compilation and evaluation left out. "
      "Operations are those of matrix products in training. Tokens of word vectors are words or "
      "counts, and not comparable with the others."
    ),
    *samples(measured),
    *lengths(measured),
  ]


def pairs_read(measured: Measured) -> str:
  """How much of BLiMP was read."""
  for record in measured.records.values():
    if "blimp" in record["counts"]:
      files = sum(name.startswith("blimp/") for name in record["counts"])
      return f" BLiMP: {record['counts']['blimp']} pairs of {files} of its 67 phenomena."
  return " BLiMP was not measured: `--blimp=FOLDER` was not given."


def quality(measured: Measured, years: Mapping[str, int]) -> Grid:
  rows = []
  for arm in measured.arms:
    shown = [cell(measured, arm.name, metric) for metric, _ in COLUMNS]
    rows.append([f"{years[arm.name]}", arm.name, *("" if x == "–" else x for x in shown)])
  baseline = [measured.references.get(metric) for metric, _ in COLUMNS]
  rows.append(["", "trivial", *("" if x is None else number(x) for x in baseline)])
  return Grid(("year", "model", *(title for _, title in COLUMNS)), rows, left=2)


def costs(measured: Measured) -> Grid:
  rows = []
  for arm in measured.arms:
    runs = [run for run in measured.records if run.arm == arm.name]
    if not runs:
      continue
    experiment = overrides.from_json(measured.configs[runs[0]]["experiment"])
    counted = experiment.is_counted
    tokens = experiment.model.tokens if counted else tokens_read(measured.configs[runs[0]])
    seconds = statistics.fmean(processor_seconds(measured, run) for run in runs)
    rows.append(
      [
        arm.name,
        f"{measured.records[runs[0]]['parameters']:,}",
        f"{tokens:,}" if tokens else "",
        f"{seconds:.1f}",
        f"{tokens / seconds:,.0f}" if tokens and seconds else "",
        "" if counted else f"{operations(experiment):.1f}",
        str(len(runs)),
      ]
    )
  header = ("model", "parameters", "tokens read", "processor seconds", "tokens per second")
  return Grid((*header, "million operations per token", "seeds"), rows)


def processor_seconds(measured: Measured, run: PlannedRun) -> float:
  """Of the training steps."""
  records = read_records(workdir_of(measured.out, run) / "timing.jsonl")
  return sum(record.get("processor_seconds", 0.0) for record in records)


def values(measured: Measured, arm: str, metric: str) -> list[float]:
  """Of all seeds."""
  if metric != SECONDS:
    return measured.values(arm, metric)
  seconds = (processor_seconds(measured, run) for run in measured.records if run.arm == arm)
  return [x for x in seconds if x]


@functools.cache
def operations(experiment) -> float:
  """Millions of operations for each token of a training step."""
  total = estimate.step_operations(experiment)
  return total / experiment.global_batch / experiment.data.length / 1e6


def samples(measured: Measured) -> list[PageBlock]:
  """The texts of seed 0."""
  rows = []
  for arm in measured.arms:
    record = measured.records.get(PlannedRun(arm.name, 0)) or {}
    if text := record.get("sample"):
      rows.append([arm.name, " ".join(text.split())])
  if not rows:
    return []
  head = Text(
    "Forty tokens at a temperature of 0.7, seed 0; nothing was chosen. An encoder-decoder reads "
    "the beginning and writes from it. Encoders and word vectors write no text."
  )
  return [Heading("Written samples"), head, Grid(("model", "text"), rows, left=2)]


def lengths(measured: Measured) -> list[PageBlock]:
  """The result of benchmarks/row_length.py, if the directory of the sweep has it."""
  try:
    record = read_json(measured.out / LENGTHS)
  except (UserError, OSError):
    return []
  models = record["microseconds"]
  columns = list(next(iter(models.values())))
  rows = [[name, *(f"{times[length]:.0f}" for length in columns)] for name, times in models.items()]
  steps = [["dependent steps, lstm", *columns], ["dependent steps, gpt", *("1" for _ in columns)]]
  text = (
    f"Microseconds of processor time per token of a training step of {record['tokens']:,} tokens, "
    "in rows of the given length. Attention made training parallel: all tokens of a row are "
    "computed at once, where an LSTM needs a step after the other. One core computes one thing at "
    "a time anyway, so this table shows no such gain. It shows the two prices: the products of an "
    "LSTM become small when rows are few, and the work of attention grows with the length. "
    "`python benchmarks/row_length.py` measures it."
  )
  header = ("tokens in a row", *columns)
  return [Heading("Length of rows"), Text(text), Grid(header, [*rows, *steps])]


def draw(
  measured: Measured, families: Sequence[Family], years: Mapping[str, int], path: Path
) -> None:
  """The picture: a panel for each measure, a row for each arm."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  present = {arm.name for arm in measured.arms}
  rows = [(arm, family.colour) for family in families for arm in family.arms if arm in present]
  rows.sort(key=lambda row: years[row[0]])
  figure = Figure(figsize=(13.5, 1.5 + 0.31 * len(rows)), layout="constrained")
  axes = figure.subplots(1, len(PANELS), sharey=True)
  for axis, panel in zip(axes, PANELS, strict=True):
    for row, (arm, colour) in enumerate(rows):
      _dots(axis, row, measured, arm, panel, colour)
    _finish(axis, panel, measured.references.get(panel.metrics[0]), len(rows))
  axes[0].set_yticks(range(len(rows)), [f"{arm}  {years[arm]}" for arm, _ in rows], fontsize=10.5)
  axes[0].set_ylim(len(rows) - 0.5, -0.5)
  for label, (_, colour) in zip(axes[0].get_yticklabels(), rows, strict=True):
    label.set_color(colour)
  figure.savefig(path, dpi=110, facecolor="white")


def _dots(axis, row: int, measured: Measured, arm: str, panel: Panel, colour: str) -> None:
  """An arm's seeds and their mean, hollow for a measure of another kind."""
  for metric in panel.metrics:
    if dots := values(measured, arm, metric):
      fill = colour if metric == panel.metrics[0] else "white"
      axis.plot(dots, [row] * len(dots), "o", ms=7, mfc=fill, mec=colour, zorder=3)
      axis.plot(statistics.fmean(dots), row, "|", color="black", ms=15, mew=1.4, zorder=4)
      return


def _finish(axis, panel: Panel, baseline: float | None, rows: int) -> None:
  """Titles, the baseline and a stripe for every second row."""
  if baseline is not None:
    axis.axvline(baseline, color="gray", ls="--", lw=1)
  axis.set_title(panel.title, fontsize=10.5)
  axis.set_xlabel(f"{panel.better} is better", fontsize=9.5, color="#555555")
  if panel.metrics[0] == SECONDS:
    axis.set_xscale("log")
    axis.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
    axis.minorticks_off()
  else:
    axis.locator_params(axis="x", nbins=4)
  axis.grid(axis="x", alpha=0.3)
  axis.margins(x=0.12)
  for side in ("top", "right", "left"):
    axis.spines[side].set_visible(False)
  axis.tick_params(axis="y", length=0)
  for row in range(0, rows, 2):
    axis.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", zorder=0)
