"""A table of a paper as data: its arms, the published numbers and the claims to be put to the test.

    def table_4() -> Table:
      return Table(
        title="ALBERT, Table 4: what sharing costs",
        source="Lan et al. 2020, arXiv:1909.11942",
        arms=(
          Arm("all-shared", all_shared, published={"Parameters": "12M", "Avg": 80.1}),
          Arm("not-shared", not_shared, published={"Parameters": "89M", "Avg": 81.6}),
        ),
        claims=(Better("mlm_loss", "not-shared", than="all-shared"),),
      )

`experiment` is a function of an experiment file, so that every arm is also a plain run_pretrain.py
command. What can be measured, and so be named by a claim (plm_jax/ablate/evaluate.py):

    mlm_loss mlm_perplexity mlm_accuracy    held-out rows, one set of masks for all arms
    pseudo_perplexity                       one token masked at a time (Salazar et al. 2020)
    clm_loss clm_perplexity clm_accuracy    left-to-right arms only; comparable with no mlm_ metric
    seq2seq_loss seq2seq_perplexity ...     encoder-decoders, on sources and targets of their own
    nsp_accuracy nsp_majority               on random pairs; an SOP head is scored too
    sop_accuracy sop_majority               on swapped pairs; an NSP head is scored too
    blimp  blimp/PARADIGM                   share of minimal pairs (sweep with --blimp)
    finetune_500_accuracy finetune_all_macro_f1 ...      (sweep with --finetune=500,all)

Names that end in `loss` or `perplexity` are better when lower, all others when higher.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from plm_jax.ablate.verdict import Scores, Tested, difference, level, student, usual_error
from plm_jax.errors import UserError

METRICS = re.compile(
  r"(mlm|clm|seq2seq)_(loss|perplexity|accuracy)|pseudo_perplexity|(nsp|sop)_(accuracy|majority)"
  r"|blimp(/\w+)?|finetune_(all|\d+)_(accuracy|macro_f1)"
)


@dataclasses.dataclass(frozen=True)
class Arm:
  """A row. name: also its directory. experiment: `row(budget) -> Experiment` of an experiment file.
  published: column as printed -> number or text as printed. note: what a reader must know of it."""

  name: str
  experiment: Callable[..., Any]
  published: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
  note: str = ""

  def __post_init__(self):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", self.name):
      raise UserError(
        f"the arm {self.name!r} names a directory; take letters, digits and _ . + - only"
      )


@dataclasses.dataclass(frozen=True)
class Better:
  """`arm` is better than `than`, paired by seed."""

  metric: str
  arm: str
  than: str
  sentence: str = dataclasses.field(default="", kw_only=True)

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm, self.than)

  def __str__(self) -> str:
    return self.sentence or f"{self.arm} has a better {self.metric} than {self.than}"

  def test(self, scores: Scores) -> Tested:
    values = difference(scores, self.metric, self.arm, self.than)
    return student(values, 0.0, usual_error(scores, self.metric))


@dataclasses.dataclass(frozen=True)
class NotWorse:
  """`arm` is not worse than `than` by `margin` or more (of a perplexity: of its logarithm)."""

  metric: str
  arm: str
  than: str
  margin: float
  sentence: str = dataclasses.field(default="", kw_only=True)

  def __post_init__(self):
    if not self.margin > 0:
      raise UserError(f"NotWorse needs a margin above 0, but was given {self.margin}")

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm, self.than)

  def __str__(self) -> str:
    said = f"the {self.metric} of {self.arm} is not worse than that of {self.than}"
    return self.sentence or f"{said} by {self.margin:g}"

  def test(self, scores: Scores) -> Tested:
    values = difference(scores, self.metric, self.arm, self.than)
    return student(values, -self.margin, usual_error(scores, self.metric))


@dataclasses.dataclass(frozen=True)
class Ordered:
  """Each of `arms` is better than the one before it: from the worst to the best."""

  metric: str
  arms: tuple[str, ...]
  sentence: str = dataclasses.field(default="", kw_only=True)

  def __post_init__(self):
    object.__setattr__(self, "arms", tuple(self.arms))
    if len(self.arms) < 2:
      raise UserError("Ordered needs at least two arms, from the worst to the best")

  def __str__(self) -> str:
    return self.sentence or f"{self.metric} becomes better from {' to '.join(self.arms)}"

  def test(self, scores: Scores) -> Tested:
    """Supported by its weakest link; contradicted by its worst one, of as many as there are."""
    usual = usual_error(scores, self.metric)
    pairs = list(zip(self.arms[1:], self.arms))
    links = [student(difference(scores, self.metric, a, b), 0.0, usual) for a, b in pairs]
    weakest = max(range(len(links)), key=lambda i: links[i].p_for)
    return Tested(
      links[weakest].p_for,
      min(1.0, len(links) * min(link.p_against for link in links)),
      f"weakest link {pairs[weakest][0]} over {pairs[weakest][1]}: {links[weakest].numbers}",
    )


@dataclasses.dataclass(frozen=True)
class AtChance:
  """The metric of `arm` lies within `margin` of chance. chance: a number, or the metric that holds
  it, such as "sop_majority"."""

  metric: str
  arm: str
  chance: float | str
  margin: float = 0.05
  sentence: str = dataclasses.field(default="", kw_only=True)

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm,)

  def __str__(self) -> str:
    said = f"the {self.metric} of {self.arm} is within {self.margin:g} of chance"
    return self.sentence or said

  def test(self, scores: Scores) -> Tested:
    """Two one-sided tests (Schuirmann 1987): above chance - margin, and below chance + margin."""
    values = level(scores, self.metric, self.arm, self.chance)
    usual = usual_error(scores, self.metric, paired=False)
    low, high = (
      student(values, bound, usual, constant=True) for bound in (-self.margin, self.margin)
    )
    outside = min(1.0, 2 * min(low.p_against, high.p_for))
    return Tested(max(low.p_for, high.p_against), outside, low.numbers)


@dataclasses.dataclass(frozen=True)
class AboveChance:
  """The metric of `arm` is above chance by more than `margin`. chance: as in `AtChance`."""

  metric: str
  arm: str
  chance: float | str
  margin: float = 0.05
  sentence: str = dataclasses.field(default="", kw_only=True)

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm,)

  def __str__(self) -> str:
    said = f"the {self.metric} of {self.arm} is above chance by more than {self.margin:g}"
    return self.sentence or said

  def test(self, scores: Scores) -> Tested:
    values = level(scores, self.metric, self.arm, self.chance)
    usual = usual_error(scores, self.metric, paired=False)
    return student(values, self.margin, usual, constant=True)


Claim = Better | NotWorse | Ordered | AtChance | AboveChance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of a paper. source: where it was published.

  beside: published column -> measured metric of the same kind, for a report to set side by side.
  caveat: what a reader of the measured numbers must know.
  """

  title: str
  source: str
  arms: tuple[Arm, ...]
  claims: tuple[Claim, ...] = ()
  beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
  caveat: str = ""

  def __post_init__(self):
    names = [arm.name for arm in self.arms]
    if not names or len(set(names)) < len(names):
      raise UserError(f"the table {self.title!r} needs arms with different names, not {names}")
    for claim in self.claims:
      for name in claim.arms:
        self._known(name)
    for metric in [claim.metric for claim in self.claims] + list(self.beside.values()):
      if not METRICS.fullmatch(metric):
        raise UserError(
          f"nothing measures {metric!r}, which {self.title!r} names; the metrics are listed at the "
          "top of plm_jax/ablate/table.py"
        )
    columns = self.columns
    for column in self.beside:
      if column not in columns:
        raise UserError(f"the table {self.title!r} has no published column {column!r}: {columns}")

  @property
  def columns(self) -> list[str]:
    """The published columns, in the order of their first appearance."""
    return list(dict.fromkeys(column for arm in self.arms for column in arm.published))

  def arm(self, name: str) -> Arm:
    """Errors: `UserError` for a name that is no arm's."""
    self._known(name)
    return next(arm for arm in self.arms if arm.name == name)

  def _known(self, name: str) -> None:
    names = [arm.name for arm in self.arms]
    if name not in names:
      near = difflib.get_close_matches(name, names, n=1)
      meant = f" Did you mean {near[0]!r}?" if near else ""
      raise UserError(f"{self.title!r} has no arm {name!r}.{meant} It has: {', '.join(names)}.")
