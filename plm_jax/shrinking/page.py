"""The page of smaller runs: verdicts, a table, and the score against bytes and latency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from plm_jax.ablate.page import Code, Grid, Heading, PageBlock, Picture, Text, markdown, page
from plm_jax.ablate.plots import colours
from plm_jax.shrinking.verdicts import cards
from plm_jax.shrinking.ways import FULL
from plm_jax.tasks.comparison import mean_and_deviation, named
from plm_jax.train.workdir import write_whole

PICTURE = "scores.png"


def write_page(record: Mapping[str, Any], out: Path, command: str = "") -> Path:
  """Writes page.md, index.html and the figure; returns the path of index.html. record: the content
  of results.json."""
  draw(record, out / PICTURE)
  title = f"Smaller {record['model']['family']}: {', '.join(record['from'])}"
  blocks: list[PageBlock] = [Heading(title, 1), Text(introduction(record))]
  blocks += [Code(command)] if command else []
  blocks += [Heading("Popular claims"), *cards(record)]
  blocks += [Heading("Numbers"), table(record), Text(notes(record))]
  blocks += [Heading("Score against size and latency"), Picture(out / PICTURE, caption(record))]
  blocks += [Heading("The ways"), Grid(("way", "the model"), ways_of(record), left=2)]
  write_whole(out / "page.md", markdown(blocks))
  write_whole(out / "index.html", page(title, blocks))
  return out / "index.html"


def introduction(record: Mapping[str, Any]) -> str:
  model, runs = record["model"], len(record["from"])
  where = "the held-out documents" if record["is_loss"] else "the test split"
  sizes = ", ".join(f"{model[name]} {name}" for name in ("layers", "width") if model[name])
  steps = record["trained_steps"]
  training = f"Ways that train on had {steps} steps." if steps else "No way was trained on."
  seeds = f"{runs} runs with different seeds" if runs > 1 else "one run"
  return (
    f"A {model['family']} ({sizes}), {seeds}, {record['labels']} labels, scored by "
    f"{named(record['metric'])} on {where} of {record['data']['source']} (sha256 "
    f"{record['data']['test'][:12]}). {training}"
  )


def values(record: Mapping[str, Any], way: str, which: str = "scores") -> np.ndarray:
  """The metric of every run of a way."""
  cells = [cell for cell in record["cells"] if cell["way"] == way and cell[which]]
  return np.array([cell[which][record["metric"]] for cell in cells])


def table(record: Mapping[str, Any]) -> Grid:
  """A row for each way."""
  metric = named(record["metric"])
  unit = "token" if record["writes"] else "row"
  header = (
    "way", f"{metric}", "before training on", "bytes on disk", "bytes in memory",
    f"p50, ms a {unit}", f"p95, ms a {unit}", f"{unit}s a second, batch 32",
  )  # fmt: skip
  rows = []
  for way, size in record["sizes"].items():
    speed = record["speeds"][way]
    rows.append([
      f"`{way}`",
      mean_and_deviation(values(record, way)),
      mean_and_deviation(values(record, way, "at_once")),
      megabytes(size["disk"]),
      megabytes(size["memory"]),
      f"{speed['p50']:.2f}",
      f"{speed['p95']:.2f}",
      f"{speed['throughput']:,.0f}",
    ])  # fmt: skip
  return Grid(header, rows)


def megabytes(count: int) -> str:
  return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def notes(record: Mapping[str, Any]) -> str:
  spread = "The spread is the standard deviation over the runs. " if len(record["from"]) > 1 else ""
  timed = (
    "Latency is the time of a text of 32 new tokens after a prompt of 16, for each token, of one "
    "text; the throughput is that of 32 texts side by side. "
    if record["writes"]
    else "Latency is the time of a forward pass of one text, of mixed lengths as in the test "
    "split, from the ids to the last states; the throughput is that of 32 texts at a time. "
  )
  machine = record["versions"].get("devices") or record["versions"].get("device") or ""
  return (
    f"{spread}{timed}All ways were timed in turns, and the median of three or more rounds counts. "
    "Bytes on disk are those of the checkpoint without an optimiser's state, which is compressed; "
    f"bytes in memory are those of the parameters as they are loaded. {machine}"
  ).strip()


def caption(record: Mapping[str, Any]) -> str:
  return f"{named(record['metric'])} of every run (dots) and its mean (crosses)"


def ways_of(record: Mapping[str, Any]) -> list[list[str]]:
  return [[f"`{way}`", text] for way, text in record["texts"].items()]


def draw(record: Mapping[str, Any], path: Path) -> None:
  """Two panels: the score against bytes in memory, and against the median latency."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib.figure import Figure

  names = list(record["sizes"])
  colour = colours(names)
  figure = Figure(figsize=(10, 4), layout="constrained")
  axes = figure.subplots(1, 2, sharey=True)
  unit = "token" if record["writes"] else "text"
  panels = {
    "bytes in memory, MB": {way: record["sizes"][way]["memory"] / 1e6 for way in names},
    f"milliseconds a {unit}, median": {way: record["speeds"][way]["p50"] for way in names},
  }
  for axis, (label, places) in zip(axes, panels.items(), strict=True):
    for way in names:
      scores = values(record, way)
      axis.plot([places[way]] * len(scores), scores, ".", color=colour[way], ms=5, alpha=0.6)
      axis.plot(places[way], fmean(scores), "x", color=colour[way], ms=9, mew=2, label=way)
    axis.set_xlabel(label)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
  axes[0].axhline(fmean(values(record, FULL)), color="gray", lw=0.8, ls=":")
  axes[0].set_ylabel(named(record["metric"]))
  handles = axes[0].get_legend_handles_labels()
  figure.legend(*handles, loc="outside right center", frameon=False)
  figure.savefig(path, dpi=110)
