"""The report of a sweep: published and measured numbers in one table, a verdict on each claim.

`report(directory)` writes it; `python -m plm_jax.report` is the command.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from plm_jax.ablate import plots
from plm_jax.ablate.gathering import Measured, gather
from plm_jax.ablate.page import Picture, markdown, page
from plm_jax.ablate.plan import workdir_of
from plm_jax.ablate.report_content import missing_notes, report_blocks
from plm_jax.ablate.report_numbers import main_metrics
from plm_jax.ablate.table import Table
from plm_jax.ablate.verdict import ALPHA
from plm_jax.errors import UserError
from plm_jax.train.workdir import read_records, write_whole

FILES = ("report.md", "report.html", "curves.png", "metrics.png", "results.json")


def report(
  directory: str | Path, to: str | Path | None = None, table: Table | None = None
) -> tuple[Measured, list[Path]]:
  """Writes the report of a sweep (default: to DIR/report); returns its content and its files.
  table: needed if it was made in Python."""
  measured = gather(Path(directory), table)
  to = Path(to or measured.out / "report")
  claim_folder(to, measured)
  return measured, [to / name for name in write_report(measured, to)]


def claim_folder(to: Path, measured: Measured) -> None:
  """Makes the folder. Errors: `UserError` if it holds `FILES` of anything but this sweep."""
  try:
    to.mkdir(parents=True, exist_ok=True)
  except FileExistsError:
    raise UserError(f"--to={to} is a file; a report needs a folder") from None
  existing = [name for name in FILES if (to / name).exists()]
  if not existing:
    return
  before = {}
  with contextlib.suppress(OSError, ValueError):
    before = json.loads((to / "results.json").read_text())
  plan = measured.plan
  sweep = {"table": plan.table, "budget": plan.budget, "settings": list(plan.settings)}
  if not isinstance(before, dict) or sweep != {name: before.get(name) for name in sweep}:
    raise UserError(
      f"{to / existing[0]} is not from a report of this sweep; take another folder by --to, or "
      "move it away"
    )


def write_report(measured: Measured, to: Path) -> list[str]:
  """Writes all files; returns their names."""
  # First: if this process is killed, a later one recognises the folder by this file.
  write_whole(to / "results.json", json.dumps(record_of(measured), indent=1) + "\n")
  pictures, arms = [], [arm.name for arm in measured.arms]
  if panels := curves(measured):
    plots.draw_learning_curves(panels, arms, to / "curves.png")
    caption = "Loss against steps: thin lines are seeds, thick ones their mean. The losses of the "
    caption += "first steps are above the axis; no line is drawn to them."
    pictures.append(Picture(to / "curves.png", caption))
  if shown := [m for m in main_metrics(measured) if not m.endswith("_loss")]:
    plots.draw_metrics(measured.scores, shown, arms, measured.references, to / "metrics.png")
    caption = "Dots are seeds, bars their mean. A dashed line, if within the axis, is the unigram "
    caption += "model or chance."
    pictures.append(Picture(to / "metrics.png", caption))
  blocks = report_blocks(measured, pictures, to)
  write_whole(to / "report.md", markdown(blocks))
  write_whole(to / "report.html", page(measured.table.title, blocks))
  return ["report.md", "report.html", "results.json", *(picture.path.name for picture in pictures)]


def curves(measured: Measured) -> dict[str, plots.Curves]:
  """Panel -> arm -> seed -> (step, loss): training and held-out losses of every objective. An arm
  alone has a panel only if no other panel shows it: alone it is compared with nothing."""
  panels: dict[str, dict[str, dict[int, list]]] = {}
  for run in measured.states:
    for record in read_records(workdir_of(measured.out, run) / "metrics.jsonl"):
      for name, value in record.items():
        if name.endswith("/loss"):
          split = "training" if record["split"] == "train" else plots.HELD_OUT
          title = f"{name.removesuffix('/loss').upper()} loss, {split}"
          seeds = panels.setdefault(title, {}).setdefault(run.arm, {})
          seeds.setdefault(run.seed, []).append((record["step"], value))
  steps = {
    title: {step for seeds in arms.values() for curve in seeds.values() for step, _ in curve}
    for title, arms in panels.items()
  }
  compared = {arm for arms in panels.values() if len(arms) > 1 for arm in arms}
  return {
    title: panels[title]
    for title in sorted(panels)
    if len(steps[title]) > 2 and (len(panels[title]) > 1 or not compared & panels[title].keys())
  }


def record_of(measured: Measured) -> dict[str, Any]:
  """The content of results.json: every number of the report."""
  return {
    "table": measured.plan.table,
    "title": measured.table.title,
    "budget": measured.plan.budget,
    "seeds": measured.plan.seeds,
    "settings": measured.plan.settings,
    "published": {arm.name: dict(arm.published) for arm in measured.arms},
    "states": {str(run): state.phase for run, state in measured.states.items()},
    "scores": measured.scores,
    "counts": next((r["counts"] for r in measured.records.values()), {}),
    "references": measured.references,
    "verdicts": [
      {
        "claim": str(v.claim),
        "test": f"{type(v.claim).__name__}({v.claim.metric}: {', '.join(v.claim.arms)})",
        "verdict": v.outcome,
        "p": v.p,
        "needed": v.threshold,
        "numbers": v.numbers,
      }
      for v in measured.verdicts
    ],
    "alpha": ALPHA,
    "notes": [*measured.notes, *missing_notes(measured)],
    "versions": [
      json.loads(text)
      for text in dict.fromkeys(json.dumps(c["versions"]) for c in measured.configs.values())
    ],
  }
