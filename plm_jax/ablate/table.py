"""A table of a paper as data: its arms, their published numbers, and claims that a sweep tests.

    def table_4() -> Table:
      arm = partial(Arm.of, columns=("Parameters", "Avg"))
      return Table(
        title="ALBERT, Table 4: sharing",
        source="Lan et al. 2020, arXiv:1909.11942",
        arms=(
          arm(all_shared, "12M", 80.1),
          arm(not_shared, "89M", 81.6),
        ),
        claims=(Better("mlm_loss", "not-shared", than="all-shared"),),
      )

An arm's experiment is a function of an experiment file, so every arm is also a plain
run_pretrain.py command. A claim names a metric of docs/ablation.md.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from plm_jax import cli
from plm_jax.ablate.verdict import SeedScores, Tested, difference, level, student, usual_error
from plm_jax.errors import UserError
from plm_jax.experiment import Experiment

METRICS = re.compile(  # of a named text: `new/clm_loss`
  r"(\w+/)?((mlm|clm|bilm|seq2seq)_(loss|perplexity|accuracy)|pseudo_perplexity"
  r"|(nsp|sop)_(accuracy|majority)|(clm|pseudo|gap)_bits_per_byte|gap_loss)|probe_(topic|order)_(all|\d+)_accuracy|probe_tag_accuracy"
  r"|blimp(/\w+)?|finetune_(all|\d+)_(accuracy|macro_f1)"
  r"|(classify|pairs|multi|regress|similar|tag|answer|choose|write|word_order)_[a-z]\w*"  # --tasks
)


def check_settings(whose: str, settings: Sequence[str]) -> None:
  """Errors: `UserError` for one text instead of several."""
  if isinstance(settings, str):
    raise UserError(
      f'{whose} has the settings {settings!r}; write them as ("{settings}",), a tuple of texts.'
    )


@dataclasses.dataclass(frozen=True)
class Arm:
  """A row of a table.

  name: also its directory. experiment: `row(budget) -> Experiment` of an experiment file, or in a
    notebook an `Experiment`, which is the same at every budget.
  published: column -> number or text, both as printed. note: a remark for the report.
  start: an earlier arm, from whose run of the same seed this one goes on.
  settings: as after --set, of this arm alone. laptop: more of them at the budget `laptop`.
  dial: the value of what a table varies beside its rows, such as the text; arms of other values are
    measured on other sets, and drawn against it.
  """

  name: str
  experiment: Callable[..., Any]
  published: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
  note: str = ""
  start: str = ""
  settings: tuple[str, ...] = ()
  laptop: tuple[str, ...] = ()
  dial: float | None = None

  def __post_init__(self):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", self.name):
      raise UserError(f"the arm {self.name!r} names a directory; take letters, digits and _ . + -")
    for value in (self.settings, self.laptop):
      check_settings(f"the arm {self.name!r}", value)
    if isinstance(self.experiment, Experiment):
      made = self.experiment
      object.__setattr__(self, "experiment", lambda budget="small": made)

  @classmethod
  def of(
    cls,
    row: Callable[..., Any],
    *numbers: float | str | None,
    columns: Sequence[str] = (),
    capitals: Sequence[str] = (),
    name: str = "",
    note: str = "",
    start: str = "",
    settings: Sequence[str] = (),
    laptop: Sequence[str] = (),
    dial: float | None = None,
    **more: float | str,
  ) -> Self:
    """The arm of a row function, with the numbers that the paper prints for it.

    numbers: one for each of `columns`, None where the paper prints none. more: further columns, if
    their names are identifiers (`GLUE=84.3`). name: by default that of the function, without
    `table_N_`, with dashes, and with the words of `capitals` in capitals: `table_4_e128_shared_ffn`
    becomes E128-shared-FFN by ("E", "FFN").
    Errors: `UserError` if there are more or fewer numbers than columns.
    """
    if not name:
      words = re.split("([a-z]+)", re.sub(r"^table_\d+_", "", row.__name__).replace("_", "-"))
      name = "".join(w.upper() if w.upper() in capitals else w for w in words)
    if len(numbers) != len(columns):
      raise UserError(f"the arm {name} has {len(numbers)} numbers for the columns {columns}")
    printed = {column: x for column, x in zip(columns, numbers) if x is not None}
    if dial is not None:
      name += f"-{dial:g}"
    for given in (settings, laptop):
      check_settings(f"the arm {name!r}", given)
    own = tuple(settings), tuple(laptop)
    return cls(name, row, printed | more, note, start, *own, dial)

  @property
  def row(self) -> str:
    """The name without the value of the dial."""
    return self.name if self.dial is None else self.name.removesuffix(f"-{self.dial:g}")

  @property
  def numbers(self) -> str:
    """The published numbers on one line, such as `MNLI 83.9, QNLI 84.9`."""
    return ", ".join(f"{column} {number}" for column, number in self.published.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Claim:
  """sentence: the claim in a report, instead of the default one."""

  sentence: str = ""

  def __str__(self) -> str:
    return self.sentence or self._sentence()


@dataclasses.dataclass(frozen=True)
class _OfTwo(_Claim):
  metric: str
  arm: str
  than: str

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm, self.than)


@dataclasses.dataclass(frozen=True)
class _AgainstChance(_Claim):
  """chance: a number, or the name of the metric that is chance, such as "sop_majority"."""

  metric: str
  arm: str
  chance: float | str
  margin: float = 0.05

  @property
  def arms(self) -> tuple[str, ...]:
    return (self.arm,)


@dataclasses.dataclass(frozen=True)
class Better(_OfTwo):
  """`arm` is better than `than`, paired by seed."""

  def _sentence(self) -> str:
    return f"{self.arm} has a better {self.metric} than {self.than}"

  def test(self, scores: SeedScores, exact: bool = False) -> Tested:
    values = difference(scores, self.metric, self.arm, self.than)
    return student(values, 0.0, usual_error(scores, self.metric), exact=exact)


@dataclasses.dataclass(frozen=True)
class NotWorse(_OfTwo):
  """`arm` is worse than `than` by less than `margin`, which is on the logarithm of perplexities."""

  margin: float

  def __post_init__(self):
    if not self.margin > 0:
      raise UserError(f"NotWorse needs a margin above 0, not {self.margin}")

  def _sentence(self) -> str:
    limit = f"that of {self.than} by {self.margin:g}"
    return f"the {self.metric} of {self.arm} is not worse than {limit}"

  def test(self, scores: SeedScores, exact: bool = False) -> Tested:
    values = difference(scores, self.metric, self.arm, self.than)
    return student(values, -self.margin, usual_error(scores, self.metric), exact=exact)


@dataclasses.dataclass(frozen=True)
class Ordered(_Claim):
  """Each of `arms`, from the worst to the best, is better than the one before it."""

  metric: str
  arms: tuple[str, ...]

  def __post_init__(self):
    object.__setattr__(self, "arms", tuple(self.arms))
    if len(self.arms) < 2:
      raise UserError("Ordered needs at least two arms, from the worst to the best")

  def _sentence(self) -> str:
    return f"{self.metric} becomes better from {' to '.join(self.arms)}"

  def test(self, scores: SeedScores, exact: bool = False) -> Tested:
    """As sure as its weakest link; the opposite by its worst one, with Bonferroni's correction."""
    usual = usual_error(scores, self.metric)
    pairs = list(zip(self.arms[1:], self.arms))
    links = [
      student(difference(scores, self.metric, a, b), 0.0, usual, exact=exact) for a, b in pairs
    ]
    weakest = max(range(len(links)), key=lambda i: links[i].p_for)
    return Tested(
      links[weakest].p_for,
      min(1.0, len(links) * min(link.p_against for link in links)),
      f"weakest link {pairs[weakest][0]} over {pairs[weakest][1]}: {links[weakest].numbers}",
    )


@dataclasses.dataclass(frozen=True)
class AtChance(_AgainstChance):
  """The metric of `arm` lies within `margin` of chance."""

  def _sentence(self) -> str:
    return f"the {self.metric} of {self.arm} is within {self.margin:g} of chance"

  def test(self, scores: SeedScores, exact: bool = False) -> Tested:
    """Two one-sided tests (Schuirmann 1987): above chance - margin, and below chance + margin."""
    values = level(scores, self.metric, self.arm, self.chance)
    usual = usual_error(scores, self.metric, paired=False)
    low, high = (
      student(values, at, usual, constant=True, exact=exact) for at in (-self.margin, self.margin)
    )
    outside = min(1.0, 2 * min(low.p_against, high.p_for))
    if low.p_for >= high.p_against:  # the side that decides
      return Tested(low.p_for, outside, low.numbers)
    return Tested(high.p_against, outside, high.numbers)


@dataclasses.dataclass(frozen=True)
class AboveChance(_AgainstChance):
  """The metric of `arm` is above chance by more than `margin`."""

  def _sentence(self) -> str:
    return f"the {self.metric} of {self.arm} is above chance by more than {self.margin:g}"

  def test(self, scores: SeedScores, exact: bool = False) -> Tested:
    values = level(scores, self.metric, self.arm, self.chance)
    usual = usual_error(scores, self.metric, paired=False)
    return student(values, self.margin, usual, constant=True, exact=exact)


Claim = Better | NotWorse | Ordered | AtChance | AboveChance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A table of a paper. source: where it was published. question: what it asks, in plain words.

  beside: published column -> measured metric of the same kind; the report prints them side by side.
  laptop: settings, as after --set, of all arms at the budget `laptop`, before an arm's own.
  caveat: how the measured numbers differ from the published ones, for the reader of a report.
  blocks: further blocks of the report, after the verdicts: (`Measured`, folder) -> `PageBlock`s.
  """

  title: str
  source: str
  arms: tuple[Arm, ...]
  question: str = ""
  claims: tuple[Claim, ...] = ()
  beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
  laptop: tuple[str, ...] = ()
  caveat: str = ""
  blocks: Callable[..., Sequence[Any]] | None = None

  def __post_init__(self):
    check_settings(f"the table {self.title!r}", self.laptop)
    names = [arm.name for arm in self.arms]
    if not names or len(set(names)) < len(names):
      raise UserError(f"the table {self.title!r} needs arms with different names, not {names}")
    for number, arm in enumerate(self.arms):
      if arm.start and arm.start not in names[:number]:
        raise UserError(
          f"the arm {arm.name} of {self.title!r} starts from {arm.start!r}, which must be an arm "
          "before it"
        )
    for claim in self.claims:
      for name in claim.arms:
        self.arm(name)
    for metric in [claim.metric for claim in self.claims] + list(self.beside.values()):
      if not METRICS.fullmatch(metric):
        raise UserError(
          f"nothing measures {metric!r}, which {self.title!r} names; docs/ablation.md lists the "
          "metrics"
        )
    columns = self.columns
    for column in self.beside:
      if column not in columns:
        raise UserError(f"the table {self.title!r} has no published column {column!r}: {columns}")

  @property
  def columns(self) -> list[str]:
    """The published columns, in the order of their first appearance."""
    return list(dict.fromkeys(column for arm in self.arms for column in arm.published))

  def settings_of(self, arm: Arm, budget: str) -> tuple[str, ...]:
    """The settings of an arm at a budget, as after --set."""
    laptop = budget == "laptop"
    return (*self.laptop * laptop, *arm.settings, *arm.laptop * laptop)

  def arm(self, name: str) -> Arm:
    """The arm of this name. Errors: `UserError` if there is none."""
    arms = {arm.name: arm for arm in self.arms}
    if name not in arms:
      same = [known for known in arms if known.lower() == name.lower()]
      near = same or difflib.get_close_matches(name, arms, n=1)
      meant = f" Did you mean {near[0]!r}?" if near else ""
      raise UserError(f"{self.title!r} has no arm {name!r}.{meant} It has: {', '.join(arms)}.")
    return arms[name]


def list_rows(folder: str) -> list[tuple[str, str]]:
  """(`experiments/bert.py:no_nsp`, its description and its published numbers) for every experiment
  of a folder. Unlike `cli.list_experiments`, this imports the files."""
  published: dict[Callable, str] = {}
  for reference, _ in cli.list_experiments(folder, returns="Table"):
    table: Table = cli.load_experiment(reference, returns="Table")()
    place = table.title.partition(":")[0]
    for arm in table.arms:
      if arm.published:
        earlier = published.get(arm.experiment, "")
        published[arm.experiment] = f"{earlier} Published in {place}: {arm.numbers}."
  return [
    (reference, line + published.get(cli.load_experiment(reference), ""))
    for reference, line in cli.list_experiments(folder)
  ]
