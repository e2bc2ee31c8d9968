"""Popular claims about smaller models, and the verdict of the measured numbers on each.

A claim is decided by the mean over the seeds. It is undecided if single seeds are on both sides of
its bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from plm_jax.ablate.page import Card
from plm_jax.shrinking.ways import FULL

POINT = 0.01  # of a score from 0 to 1; of a loss, this share of it
FASTER = 1.1  # times the rows or tokens a second; below it is the noise of a busy machine


@dataclasses.dataclass(frozen=True)
class Outcome:
  """values: a number for each seed. bound: the claim holds if a number is at least the bound."""

  values: list[float]
  bound: float

  @property
  def verdict(self) -> str:
    holds = [value >= self.bound for value in self.values]
    if len(set(holds)) > 1:
      return "undecided"
    return "supported" if holds[0] else "not supported"


def gains(record: Mapping[str, Any], way: str, scores: str = "scores") -> list[float]:
  """For each seed: how much better a way scores than the run that it was made from; of losses, as a
  share of that run's."""
  metric, starts = record["metric"], {}
  for cell in record["cells"]:
    if cell["way"] == FULL:
      starts[cell["start"]] = cell["scores"][metric]
  found = []
  for cell in record["cells"]:
    if cell["way"] == way and cell[scores]:
      before, after = starts[cell["start"]], cell[scores][metric]
      found.append((before - after) / before if record["is_loss"] else after - before)
  return found


def kept(record: Mapping[str, Any], way: str) -> list[float]:
  """For each seed: the score as a share of that of the run that it was made from."""
  metric = record["metric"]
  full = {c["start"]: c["scores"][metric] for c in record["cells"] if c["way"] == FULL}
  return [
    c["scores"][metric] / full[c["start"]]
    for c in record["cells"]
    if c["way"] == way and full[c["start"]]
  ]


def trained(record: Mapping[str, Any], way: str) -> list[float]:
  """`gains` of a way that was trained on."""
  was = any(cell["steps"] for cell in record["cells"] if cell["way"] == way)
  return gains(record, way) if was else []


def faster(record: Mapping[str, Any], way: str) -> list[float]:
  speeds = record["speeds"]
  return [speeds[way]["throughput"] / speeds[FULL]["throughput"]]


def smaller(record: Mapping[str, Any], way: str) -> list[float]:
  sizes = record["sizes"]
  return [sizes[FULL]["memory"] / sizes[way]["memory"]]


def cards(record: Mapping[str, Any]) -> list[Card]:
  """The verdict on each claim about a way that was measured."""
  made = []
  for way, claim, measure, bound, text in claims(record):
    if way not in record["sizes"]:
      continue
    outcome = Outcome(measure(record, way), bound)
    if not outcome.values:
      continue
    mean, *values = (round(x, 3) + 0.0 for x in (fmean(outcome.values), *outcome.values))  # no -0
    shown = ", ".join(f"{value:+.3f}" if bound <= 0 else f"{value:.3f}" for value in values)
    sentence = text.format(mean=mean, bound=bound)
    seeds = f"{len(outcome.values)} seeds" if len(outcome.values) > 1 else "one measurement"
    made.append(Card(outcome.verdict, claim, sentence, f"{seeds}: {shown}"))
  return made


Measure = Callable[[Mapping[str, Any], str], list[float]]


def claims(record: Mapping[str, Any]) -> list[tuple[str, str, Measure, float, str]]:
  """(way, claim, measure, bound, sentence)."""
  unit = "of the loss" if record["is_loss"] else "of the score"
  lost = f"The mean gain is {{mean:+.3f}} {unit}, and {{bound:+.2f}} is allowed."
  times = "It is {mean:.2f} times as fast, and {bound:.2f} times counts as faster."
  made: list[tuple[str, str, Measure, float, str]] = [
    ("bf16", "bfloat16 loses nothing", gains, -POINT, lost),
    ("bf16", "bfloat16 halves the memory", smaller, 1.95, "Float32 is {mean:.2f} times as large."),
    ("int8", "int8 loses almost nothing", gains, -POINT, lost),
    ("int8", "int8 is faster", faster, FASTER, times),
    ("static8", "Static int8 loses almost nothing", gains, -POINT, lost),
    ("static8", "Static int8 is faster", faster, FASTER, times),
    ("w8", "int8 weights lose almost nothing", gains, -POINT, lost),
    ("w4", "Four bits are enough", gains, -POINT, lost),
    ("w4", "int4 weights make writing faster", faster, FASTER, times),
  ]  # fmt: skip
  for way in record["sizes"]:
    if way.startswith("prune"):
      share = way.removeprefix("prune")
      made += [
        (way, f"{share}% of the weights can go, without training on", at_once, -POINT, lost),
        (way, f"{share}% of the weights can go, with training on", trained, -POINT, lost),
        (way, f"Pruning {share}% makes a model faster", faster, FASTER, times),
      ]
    if way.startswith("heads"):
      share = way.removeprefix("heads")
      made += [
        (way, f"{share}% of the heads can go, without training on", at_once, -POINT, lost),
        (way, f"{share}% of the heads can go, with training on", trained, -POINT, lost),
        (way, "Fewer heads make a model faster", faster, FASTER, times),
      ]
    if way == "distil" and not record["is_loss"]:
      text = "The student keeps {mean:.1%} of the score, and {bound:.0%} is claimed."
      made.append((way, "Half of the layers keep 97% (DistilBERT)", kept, 0.97, text))
    if way.startswith("layers"):
      made.append((way, f"{way} scores as well as all layers", gains, -POINT, lost))
    if way.startswith("layers") or way == "distil":
      made.append((way, f"Fewer layers make a model faster ({way})", faster, FASTER, times))
  return made


def at_once(record: Mapping[str, Any], way: str) -> list[float]:
  return gains(record, way, "at_once")
