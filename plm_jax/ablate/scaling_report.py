"""The blocks that experiments/scaling.py adds to its report: the fitted law (scaling_law.py) beside
the published ones, a picture, the prediction of the held-out run, and runs that follow no law."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from plm_jax.ablate.gathering import Measured
from plm_jax.ablate.page import Grid, Heading, PageBlock, Picture, Points, Text
from plm_jax.ablate.report_numbers import number, shown_tokens
from plm_jax.ablate.scaling_law import (
  FEWEST,
  FORMS,
  LEVEL,
  OPERATIONS,
  RESAMPLES,
  Fit,
  Form,
  Interval,
  fit,
)
from plm_jax.ablate.scaling_plot import draw
from plm_jax.ablate.scaling_runs import COUNTS, PLATEAU, ScaledRun, planned_run, rises, runs_of
from plm_jax.errors import UserError

PICTURE = "scaling.png"
CONSTANTS = {"E": "E", "A": "A", "B": "B", "of_parameters": "alpha", "of_tokens": "beta"}
CONSTANTS |= {"a": "a", "b": "b"}
PUBLISHED: Mapping[str, tuple[float | None, ...]] = {  # CONSTANTS
  "Hoffmann et al. 2022, approach 3": (1.69, 406.4, 410.7, 0.34, 0.28, 0.46, 0.54),
  "Besiroglu et al. 2024, the same runs": (1.8172, 482.01, 2085.43, 0.3478, 0.3658, 0.5126, 0.4874),
  "Hoffmann et al. 2022, approach 1": (*(None,) * 5, 0.50, 0.50),
  "Kaplan et al. 2020": (None, None, None, 0.076, 0.103, 0.73, 0.27),
}
SLOPES = {"Hoffmann 3": 0.46, "Besiroglu": 0.51, "Hoffmann 1": 0.50, "Kaplan": 0.73}  # a

LOOSE = 0.03  # error of a left-out run

Fits = Mapping[tuple[Form, str], Fit]
"""(form of the law, count of N) -> its fit."""


def blocks(measured: Measured, to: Path, metric: str, held_out: str) -> list[PageBlock]:
  """metric: the loss. held_out: the arm that is predicted and not fitted."""
  runs = runs_of(measured, metric)
  if not runs:
    return []
  usable = [run for run in runs if run.arm != held_out and not run.exploded]
  rising = [run for run in usable if not run.flat]
  kept = rising if len(rising) >= FEWEST else usable
  try:
    fits = fits_of(kept)
  except UserError as error:
    return [Heading("The law"), Text(f"No law is fitted: {error}."), *losses(runs, held_out)]
  form, count = min(fits, key=lambda key: fits[key].spread)
  goal = planned_run(measured, held_out)
  found = [run.loss for run in runs if run.arm == held_out]
  draw(to / PICTURE, runs, fits[form, count], count, goal, SLOPES)
  return [
    Text(lesson(fits, form, count, goal, found)),
    Picture(to / PICTURE, CAPTION),
    Heading("The law"),
    constants(fits),
    Text(EXPLAINED),
    Heading("The held-out run"),
    *predictions(fits, goal, found, usable if len(kept) < len(usable) else ()),
    *losses(runs, held_out),
  ]


def fits_of(runs: Sequence[ScaledRun]) -> Fits:
  """Both forms, with both counts of N."""
  return {
    (form, count): fit([run.point(count) for run in runs], form)
    for form in FORMS
    for count in COUNTS
  }


CAPTION = (
  "Left: dots are runs, lines the law; hollow dots are not fitted. Red: the line of the held-out "
  f"run, and its prediction with an interval of {LEVEL:.0%}. Right: the number of parameters with "
  "the lowest loss for a compute, with its interval; grey dots are the runs. Published lines have "
  "their slope only, drawn through the middle of ours."
)
EXPLAINED = (
  f"Hoffmann: L = {FORMS['Hoffmann']}. Kaplan: L = {FORMS['Kaplan']}; alpha and beta in the table "
  "are the exponents of the loss: alpha gamma and gamma for Kaplan. In brackets: intervals of "
  f"{LEVEL:.0%} from {RESAMPLES} resamples of the runs. a and b are the exponents of compute in "
  "the best N and D. E, A and B depend on the text and the tokenizer, so only exponents can be "
  "compared. The published numbers are those of Hoffmann et al. (Table 2, equation 10), of "
  "Besiroglu et al., who fitted the runs in a figure of theirs again, and of Kaplan et al. (alpha "
  "and beta of their Table 2, a and b as Hoffmann et al. quote them)."
)


def lesson(fits: Fits, form: Form, count: str, goal: ScaledRun, found: Sequence[float]) -> str:
  """The paragraph on top, with the law of the smallest error. found: measured losses of `goal`."""
  best = fits[form, count]
  law, N, D = best.law, getattr(goal.sizes, count), goal.tokens
  error = (
    f"**What scale does here.** The law of {form} et al.'s form, with N as {COUNTS[count]}, is "
    f"within {best.spread:.2%} of a run that it was not fitted to (root mean square over "
    f"{len(best.points)} runs, each left out once). It predicts {spoken(*best.predicted(N, D))} "
    f"for the held-out run ({goal.size}, {shown_tokens(D)} tokens). "
    + outcome(best.predicted(N, D), found)
  )
  if best.spread > LOOSE:
    return f"{error} **With such an error no power law describes these runs.**"
  a, C = best.interval("a"), OPERATIONS * N * D
  inside = [f"{slope:.2f} ({name})" for name, slope in SLOPES.items() if slope in a]
  return (
    f"{error} By this law that run would have {law.loss(2 * N, D):.2f} with twice the parameters, "
    f"{law.loss(N, 2 * D):.2f} with twice the tokens, and {law.loss(2 * N, 2 * D):.2f} with both. "
    f"The best number of parameters grows as compute to the power {law.a:.2f} ({a.low:.2f} to "
    f"{a.high:.2f}); this interval contains {', '.join(inside) or 'no published exponent'}. For "
    f"the compute of the held-out run it is {law.best_parameters(C):,.0f}, with "
    f"{law.best_tokens(C) / law.best_parameters(C):.1f} tokens for each parameter."
  )


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


def constants(fits: Fits) -> Grid:
  """Fitted and published constants."""
  rows = []
  for (form, count), law in fits.items():
    left_out = "EAB" if form == "Kaplan" else ""
    numbers = ("" if name in left_out else bracketed(law, name) for name in CONSTANTS)
    rows.append([f"{form}, {COUNTS[count]}", *numbers])
  for name, values in PUBLISHED.items():
    rows.append([name, *("" if value is None else f"{value:g}" for value in values)])
  return Grid(("law", *CONSTANTS.values()), rows)


def bracketed(law: Fit, constant: str) -> str:
  found = (getattr(law.law, constant), *law.interval(constant))
  value, low, high = (f"{x:.3g}" if x >= 1e-3 else "0" for x in found)  # E has a bound near 0
  return f"{value} [{low}, {high}]"


def predictions(
  fits: Fits, goal: ScaledRun, found: Sequence[float], everything: Sequence[ScaledRun]
) -> list[PageBlock]:
  """What each fit predicts. everything: with the runs of the plateau, if these are left out."""
  rows = [prediction(*key, law, goal, found) for key, law in fits.items()]
  if everything:
    rows += [
      prediction(*key, law, goal, found, ", with the plateau")
      for key, law in fits_of(everything).items()
    ]
  header = ("form", "N", "runs", "error of a left-out run", "predicted", "interval", "measured")
  text = (
    f"{goal.arm}: {goal.sizes.layers:,} parameters without tables, {goal.sizes.all:,} with them, "
    f"{shown_tokens(goal.tokens)} tokens; no fit has seen it. The interval ({LEVEL:.0%}) has the "
    "uncertainty of the constants (the bootstrap) and the scatter of runs about a law (the "
    "residual of each run from the law of all others). An error of the law's form is not in it. "
    "The law with the smallest error of a left-out run is used above and in the picture; the "
    "held-out run has no part in this choice."
  )
  return [Text(text), Grid((*header, "verdict"), rows, left=3)]


def prediction(
  form: Form, count: str, law: Fit, goal: ScaledRun, found: Sequence[float], which: str = ""
) -> list[str]:
  loss, interval = law.predicted(getattr(goal.sizes, count), goal.tokens)
  row = [form, COUNTS[count], f"{len(law.points)}{which}", f"{law.spread:.2%}", number(loss)]
  row.append(f"{interval.low:.4f} to {interval.high:.4f}")
  if not found:
    return [*row, "", ""]
  mean = statistics.fmean(found)
  return [*row, number(mean), "inside" if mean in interval else "outside"]


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
