"""The blocks that experiments/scaling.py adds to its report: the fitted law (scaling_law.py) beside
the published ones, a picture, the prediction of the held-out run, and runs that follow no law."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, Heading, PageBlock, Picture, Points, Text
from plm_jax.ablate.report_numbers import number, shown_tokens
from plm_jax.ablate.scaling_law import FEWEST, LEVEL, RESAMPLES, Fit, Interval, fit
from plm_jax.ablate.scaling_plot import draw
from plm_jax.ablate.scaling_runs import COUNTS, PLATEAU, ScaledRun, planned_run, rises, runs_of
from plm_jax.errors import UserError

PICTURE = "scaling.png"
CONSTANTS = ("E", "A", "B", "alpha", "beta", "a", "b")
PUBLISHED: Mapping[str, tuple[float | None, ...]] = {  # CONSTANTS
  "Hoffmann et al. 2022, approach 3": (1.69, 406.4, 410.7, 0.34, 0.28, 0.46, 0.54),
  "Besiroglu et al. 2024, the same runs": (1.8172, 482.01, 2085.43, 0.3478, 0.3658, 0.5126, 0.4874),
  "Hoffmann et al. 2022, approach 1": (*(None,) * 5, 0.50, 0.50),
  "Kaplan et al. 2020": (*(None,) * 5, 0.73, 0.27),
}
SLOPES = {"Hoffmann 3": 0.46, "Besiroglu": 0.51, "Hoffmann 1": 0.50, "Kaplan": 0.73}  # a


def blocks(measured: Measured, to: Path, metric: str, held_out: str) -> list[PageBlock]:
  """metric: the loss. held_out: the arm that is predicted and not fitted."""
  runs = runs_of(measured, metric)
  if not runs:
    return []
  usable = [run for run in runs if run.arm != held_out and not run.exploded]
  rising = [run for run in usable if not run.flat]
  kept = rising if len(rising) >= FEWEST else usable
  try:
    fits = {count: fit([run.point(count) for run in kept]) for count in COUNTS}
  except UserError as error:
    return [Heading("The law"), Text(f"No law is fitted: {error}."), *losses(runs, held_out)]
  count = min(fits, key=lambda count: fits[count].spread)
  goal = planned_run(measured, held_out)
  predicted = fits[count].predicted(getattr(goal.sizes, count), goal.tokens)
  draw(to / PICTURE, runs, fits[count], count, goal, predicted, SLOPES)
  found = [run.loss for run in runs if run.arm == held_out]
  return [
    Text(lesson(fits[count], count, goal, predicted, found)),
    Picture(to / PICTURE, CAPTION),
    Heading("The law"),
    constants(fits, count),
    Text(EXPLAINED),
    Heading("The held-out run"),
    *predictions(fits, count, goal, found, usable, kept),
    *losses(runs, held_out),
  ]


CAPTION = (
  "Left: dots are runs, lines the law; hollow dots are not fitted. Red: the line of the held-out "
  f"run, and its prediction with an interval of {LEVEL:.0%}. Right: the number of parameters with "
  "the lowest loss for a compute, with its interval; grey dots are the runs. Published lines have "
  "their slope only, drawn through the middle of ours."
)
EXPLAINED = (
  f"L(N, D) = E + A N^-alpha + B D^-beta, in nats. In brackets: intervals of {LEVEL:.0%} from "
  f"{RESAMPLES} resamples of the runs. a and b are the exponents of compute in the best N and D. "
  "E, A and B depend on the text and the tokenizer, so only the exponents can be compared. The "
  "published numbers are those of Hoffmann et al., Table 2 and equation 10 (with the exponents of "
  "Kaplan et al.), and of Besiroglu et al., who fitted the runs in a figure of theirs again."
)


def lesson(
  law: Fit, count: str, goal: ScaledRun, predicted: tuple[float, Interval], found: Sequence[float]
) -> str:
  """The paragraph on top."""
  best = law.law
  parameters, tokens = getattr(goal.sizes, count), goal.tokens
  of_size = best.A * parameters**-best.alpha
  of_tokens = best.B * tokens**-best.beta
  a = law.interval("a")
  inside = [name for name, slope in SLOPES.items() if slope in a]
  agrees = f"The interval contains {' and '.join(f'{SLOPES[n]:.2f} ({n})' for n in inside)}"
  sentences = [
    f"**What scale does here.** The law is within {law.spread:.2%} of a run that it was not fitted "
    f"to (root mean square over {len(law.points)} runs, each left out once).",
    f"Twice the parameters leave {2**-best.alpha:.2f} of the loss that is due to size, twice the "
    f"tokens {2**-best.beta:.2f} of the loss that is due to tokens.",
    f"At the size of the held-out run ({goal.size}, {shown_tokens(tokens)} tokens) size is worth "
    f"{of_size:.2f} nats and tokens {of_tokens:.2f}.",
    f"The best number of parameters grows as compute to the power {best.a:.2f} "
    f"({a.low:.2f} to {a.high:.2f}).",
    (agrees if inside else "The interval contains none of the published exponents") + ".",
    f"The held-out run was predicted at {spoken(*predicted)}. {outcome(predicted, found)}",
  ]
  return " ".join(sentences)


def spoken(loss: float, interval: Interval) -> str:
  return f"{number(loss)} ({interval.low:.4f} to {interval.high:.4f})"


def outcome(predicted: tuple[float, Interval], found: Sequence[float]) -> str:
  """Whether the measured loss, the mean of its seeds, is in the interval."""
  if not found:
    return "It is not measured yet."
  loss, (value, interval) = statistics.fmean(found), predicted
  error = f"{abs(loss - value):.4f} nats {'above' if loss > value else 'below'} the prediction"
  if loss in interval:
    return f"It has {number(loss)}: inside, {error}."
  miss = max(interval.low - loss, loss - interval.high)
  return f"It has {number(loss)}: outside by {miss:.4f} nats, {error}."


def constants(fits: Mapping[str, Fit], chosen: str) -> Grid:
  """Fitted and published constants."""
  rows = []
  for count, law in fits.items():
    name = f"here, N: {COUNTS[count]}" + (" (used above)" if count == chosen else "")
    rows.append([name, *(bracketed(law, constant) for constant in CONSTANTS)])
  for name, values in PUBLISHED.items():
    rows.append([name, *("" if value is None else f"{value:g}" for value in values)])
  return Grid(("law", *CONSTANTS), rows)


def bracketed(law: Fit, constant: str) -> str:
  low, high = law.interval(constant)
  return f"{getattr(law.law, constant):.3g} [{low:.3g}, {high:.3g}]"


def predictions(
  fits: Mapping[str, Fit],
  chosen: str,
  goal: ScaledRun,
  found: Sequence[float],
  usable: Sequence[ScaledRun],
  kept: Sequence[ScaledRun],
) -> list[PageBlock]:
  """What each fit predicts. If runs of the plateau were left out, also what all runs predict."""
  named = {(count, "fitted runs"): law for count, law in fits.items()}
  if len(kept) < len(usable):
    for count in COUNTS:
      named[count, "with the plateau"] = fit([run.point(count) for run in usable])
  rows = []
  for (count, which), law in named.items():
    loss, interval = law.predicted(getattr(goal.sizes, count), goal.tokens)
    mean = statistics.fmean(found) if found else math.nan
    rows.append(
      [
        COUNTS[count] + (" (used above)" if law is fits[chosen] else ""),
        f"{which}: {len(law.points)}",
        f"{law.spread:.2%}",
        number(loss),
        f"{interval.low:.4f} to {interval.high:.4f}",
        number(mean) if found else "",
        ("inside" if mean in interval else "outside") if found else "",
      ]
    )
  header = (
    "N",
    "fitted to",
    "error of a left-out run",
    "predicted",
    "interval",
    "measured",
    "verdict",
  )
  text = (
    f"{goal.arm}: {goal.sizes.layers:,} parameters without tables, {goal.sizes.all:,} with them, "
    f"{shown_tokens(goal.tokens)} tokens; no fit has seen it. The interval ({LEVEL:.0%}) has the "
    "uncertainty of the constants (the bootstrap) and the scatter of runs about a law (the "
    "residual of each run from the law of all others). An error of the law's form is not in it. Of "
    "the two counts of N, that with the smaller error of a left-out run is used above; the "
    "held-out run has no part in this choice."
  )
  return [Text(text), Grid(header, rows, left=2)]


def losses(runs: Sequence[ScaledRun], held_out: str) -> list[PageBlock]:
  """A row for each size, a column for each number of tokens, and what does not follow a law."""
  columns = sorted({run.tokens for run in runs})
  rows = []
  for size in dict.fromkeys(run.size for run in runs):
    of_size = [run for run in runs if run.size == size]
    entries = ([run for run in of_size if run.tokens == tokens] for tokens in columns)
    n = of_size[0].sizes
    rows.append([size, f"{n.layers:,}", f"{n.all:,}", *map(entry, entries)])
  header = ("size", *COUNTS.values(), *(f"{shown_tokens(tokens)} tokens" for tokens in columns))
  notes = [f"{rise}." for rise in rises([r for r in runs if r.arm != held_out])]
  notes += [
    f"{run.arm}: its training loss exploded, so it is not fitted." for run in runs if run.exploded
  ]
  if flat := [run.arm for run in runs if run.flat]:
    notes.append(
      f"*: within {PLATEAU:g} nats of the unigram model. These runs know how frequent words are, "
      "and little of their context: they are on the plateau of docs/recipe.md. A power law does "
      f"not describe how a run leaves it, so they are not fitted if {FEWEST} others are left. They "
      f"are {', '.join(flat)}."
    )
  return [Heading("Losses"), Grid(header, rows), *([Points(notes)] if notes else [])]


def entry(runs: Sequence[ScaledRun]) -> str:
  if not runs:
    return ""
  return number(statistics.fmean(run.loss for run in runs)) + "*" * any(run.flat for run in runs)
