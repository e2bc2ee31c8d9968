"""Experiment: everything that determines a run's numbers, as one frozen dataclass.

An experiment file has one function per row of a paper's table. Each takes a budget and returns an
`Experiment`, derived from the file's `base` with `dataclasses.replace`:

    def no_nsp(budget: Budget = "paper") -> Experiment:
      return replace(base(budget), objectives=(MLM(),))

The budget is an argument, not a later rescaling, because a row may change a field that the budget
scales (Table 6 of BERT is about size itself), and so that each function shows its own settings.
"""

import dataclasses
import math
from typing import Literal, Protocol, Self

import jax

from plm_jax.data.tokenizers import TokenizerConfig
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.model import Model
from plm_jax.objectives.objective import Objective
from plm_jax.optim.adafactor import Adafactor
from plm_jax.optim.adamw import LAMB, AdamW
from plm_jax.optim.muon import Muon
from plm_jax.optim.sgd import SGD, Adagrad
from plm_jax.peft.adapted import FROZEN, Peft, adapted
from plm_jax.peft.methods import AnyPeft
from plm_jax.sharding import MeshShape
from plm_jax.sizes import check_sizes

Budget = Literal["smoke", "small", "paper"]
"""smoke: seconds on any laptop. small: minutes on one GPU or up to an hour on a CPU, the size at
which the project itself measures. paper: as published."""

BUDGETS: tuple[Budget, ...] = ("smoke", "small", "paper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
  """Intervals of logging, evaluation and checkpoints. None of them changes the parameters.

  log: steps between two lines of metrics. evaluate: steps between two evaluations on held-out
  documents (0: only before and after). early: whether there are evaluations before the first of
  them too, at 1, 2, 4, 8, ... times `log` steps, where the loss falls fastest. evaluation_rows: the
  most held-out rows. save: steps between checkpoints. keep: the number of checkpoints kept.
  """

  log: int = 10
  evaluate: int = 0
  early: bool = False
  evaluation_rows: int = 2048
  save: int = 100
  keep: int = 2

  def __post_init__(self):
    if min(self.log, self.save, self.keep, self.evaluation_rows) < 1 or self.evaluate < 0:
      raise UserError(
        "schedule.log, .save, .keep and .evaluation_rows must be at least 1, .evaluate at least 0"
      )

  def evaluates(self, step: int) -> bool:
    """Whether there is an evaluation after a step, apart from the last."""
    if self.early and 0 < step < self.evaluate:
      times, rest = divmod(step, self.log)
      return rest == 0 and times.bit_count() == 1
    return self.evaluate > 0 and step % self.evaluate == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
  """Options of fine-tuning, all off.

  freeze: path patterns of parameters that are not trained and have no optimiser state, such as
    "embed/*" and "blocks/*".
  patience: evaluations on the dev split without a better score after which training stops; the best
    parameters are kept. 0 trains all steps and keeps the last parameters.
  every: steps between these evaluations; 0 is an epoch.
  adversarial: FGM (Miyato et al. 2017): each update also descends on the loss after a step of this
    length of the token table, along its gradient; with micro-batches, each part after its own step.
  sparse: a weight of a linear map that is 0 at the start stays 0, so that a pruned model stays
    pruned (plm_jax/compression/pruning.py).
  """

  freeze: tuple[str, ...] = ()
  patience: int = 0
  every: int = 0
  adversarial: float = 0.0
  sparse: bool = False

  def __post_init__(self):
    if min(self.patience, self.every, self.adversarial) < 0:
      raise UserError("tuning.patience, tuning.every and tuning.adversarial must be at least 0")


class Rows(Protocol):
  """The source of the rows: a frozen dataclass, `Corpus` for text, `LabelledText` for a task."""

  tokenizer: TokenizerConfig
  length: int  # tokens per row, special tokens included
  workers: int  # processes that make batches; 0 is a thread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run. `global_batch` rows per update on any number of devices; `steps` updates.

  The loss is the sum over `objectives` of weight * mean. `seed` determines parameters, dropout,
  data order and corruption. A model that is not trained (made from counts, imported) has `steps=0`;
  then `objectives` may be empty, and `optim` is not read. on_spike: what follows when the loss
  explodes (plm_jax/train/spikes.py): a note, the end of the run, updates that are left out, or the
  last good checkpoint and other rows. peft: a method that trains few parameters beside the model
  that the run starts from; none trains all.
  """

  model: Model
  objectives: tuple[Objective, ...]
  data: Rows
  optim: AdamW | LAMB | Muon | Adafactor | SGD | Adagrad
  global_batch: int
  steps: int
  schedule: Intervals = Intervals()
  mesh: MeshShape = MeshShape()  # noqa: RUF009  frozen
  compute: Compute = Compute()  # noqa: RUF009  frozen
  tuning: Tuning = Tuning()
  on_spike: Literal["tell", "stop", "skip", "rewind"] = "tell"
  peft: AnyPeft | None = None
  seed: int = 0

  def __post_init__(self):
    if self.global_batch < 1 or self.steps < 0:
      raise UserError(
        f"global_batch={self.global_batch} must be at least 1, and steps={self.steps} at least 0"
      )
    if max(self.global_batch, self.steps) >= 2**31:  # devices count in int32
      raise UserError(
        f"global_batch={self.global_batch} and steps={self.steps} must both be below 2**31"
      )
    if self.is_counted and self.steps:
      raise UserError(
        f"steps={self.steps} was given, and the model {type(self.model).__name__} is made from "
        "counts: it takes no steps, and is neither trained nor fine-tuned; leave steps at 0"
      )
    if self.is_counted and len(getattr(self.data, "texts", "")) > 1:
      raise UserError(
        f"data.source={self.data.source} has several texts, and the model "
        f"{type(self.model).__name__} counts one; give one text"
      )
    if self.steps and self.optim.warmup > self.steps:
      raise UserError(
        f"optim.warmup={self.optim.warmup} is more than steps={self.steps}, so the learning rate "
        f"would never reach optim.peak; lower it too: --set=optim.warmup={self.steps // 10}"
      )
    if not 0 <= self.seed < 2**32:  # beyond it different seeds give the same parameters
      raise UserError(f"seed={self.seed} must be at least 0 and below 2**32")
    if self.steps and not self.objectives:
      raise UserError("an experiment with steps needs at least one objective, for example MLM")
    if len({o.name for o in self.objectives}) < len(self.objectives):
      raise UserError("an experiment has each objective at most once")
    for objective in self.objectives:
      check_pairs(objective, self.data)
      if not 0 <= objective.weight < math.inf:
        raise UserError(
          f"{objective.name}.weight={objective.weight} must be at least 0, and finite"
        )
    if self.data.length > self.model.positions:
      raise UserError(
        f"data.length={self.data.length} is more than the model's {self.model.positions} "
        "positions; lower data.length or raise model.positions"
      )
    parts = max(self.compute.micro_batches, 1)
    if self.global_batch % parts:
      raise UserError(
        f"global_batch={self.global_batch} cannot be computed in compute.micro_batches={parts} "
        "equal parts"
      )
    if self.on_spike not in ("tell", "stop", "skip", "rewind"):
      raise UserError(f"on_spike={self.on_spike!r}; expected tell, stop, skip or rewind")
    if self.on_spike == "rewind" and self.tuning.patience:
      raise UserError("on_spike=rewind cannot go back in a selection; set tuning.patience=0")
    check_sizes(self)
    if self.peft is not None:
      check_peft(self.peft, self)

  @property
  def is_counted(self) -> bool:
    """Whether the model is estimated from counts (plm_jax/train/counted.py)."""
    return hasattr(self.model, "counted")

  def check_trains(self) -> None:
    """A `UserError` if there is nothing to train or to count."""
    if not (self.steps or self.is_counted) or not self.objectives:
      raise UserError(
        f"steps={self.steps} with {len(self.objectives)} objectives trains nothing; set steps to at"
        " least 1 and give an objective"
      )

  @property
  def heads(self) -> dict[str, int]:
    """The heads that the objectives need."""
    return {name: size for o in self.objectives for name, size in o.heads.items()}

  @property
  def frozen(self) -> tuple[str, ...]:
    """Path patterns of parameters that are not trained."""
    return self.omitted or (*self.model.frozen, *self.tuning.freeze)

  @property
  def omitted(self) -> tuple[str, ...]:
    """Path patterns of parameters that checkpoints leave out: those of a base in its own run."""
    return () if self.peft is None else FROZEN

  def resolve(self, vocab_size: int) -> Self:
    """The experiment with the model's vocabulary filled in from the tokenizer."""
    if self.model.vocab_size is None:
      return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=vocab_size))
    if self.model.vocab_size < vocab_size:
      raise UserError(
        f"the tokenizer has {vocab_size} tokens but model.vocab_size={self.model.vocab_size}; "
        "leave model.vocab_size at none to take the tokenizer's"
      )
    return self

  def init_parameters(self, key: jax.Array):
    """The model of a resolved experiment with random parameters."""
    base = self.model.init(key, self.heads)
    if self.peft is None:
      return base
    labelled = [name for name, size in self.heads.items() if size or name == "span"]
    below = ["mix", "reader"]  # of layers; what classes are read from
    below += ["pooler", "bilstm"] if "classes" in labelled else []
    heads = tuple(f"*{name}/*" for name in (*labelled, *below))
    return adapted(self.peft, base, jax.random.fold_in(key, 1), heads)


def check_peft(peft: Peft, experiment: Experiment) -> None:
  """A `UserError` for settings that a method of parameter-efficient tuning excludes."""
  tuning = experiment.tuning
  if tuning.freeze or tuning.adversarial or tuning.sparse:
    raise UserError(
      f"peft={type(peft).__name__} freezes the whole base, so tuning.freeze, tuning.adversarial "
      "and tuning.sparse have no effect; leave them out"
    )
  if experiment.data.length + peft.columns > experiment.model.positions:
    raise UserError(
      f"data.length={experiment.data.length} and {peft.columns} positions of "
      f"peft={type(peft).__name__} are more than the model's {experiment.model.positions}; lower "
      "data.length"
    )


def check_pairs(objective: Objective, data: Rows) -> None:
  """A `UserError` if the rows' `pair_label` does not mean what the objective predicts."""
  needed = getattr(objective, "pairs", None)
  made = getattr(getattr(data, "segments", None), "next", None)
  if needed is None or made == needed:
    return
  because = {
    None: "makes no pairs of segments",
    "none": "labels every pair 0",
    "random": "labels pairs of different documents",
    "swapped": "labels swapped pairs",
  }[made]
  rows = f"data.segments.next={made}" if made else "the data of this experiment"
  has_field = made and "next" in {f.name for f in dataclasses.fields(data.segments)}
  remedy = f".next={needed}" if has_field else f"=SegmentPair(next='{needed}')"
  raise UserError(
    f"{rows} {because}, so {objective.name} could not learn its task; set "
    f"data.segments{remedy} or leave {objective.name} out of objectives"
  )
