"""What scale does: the held-out loss of GPT and of BERT against parameters and tokens.

Several sizes by several numbers of tokens, and one larger run on more tokens that is not fitted: its loss
is predicted from the others (plm_jax/ablate/scaling_law.py), and then measured.

    python -m plm_jax.sweep --table=experiments/scaling.py:gpt --seeds=1 --inline
    python -m plm_jax.report sweeps/scaling_gpt_small

A function is a number of tokens, the settings of an arm are its size. All arms of a table have one
recipe: Muon, with the warmup and the decay at the same shares of the steps, so that every run has
ended its schedule, as in Hoffmann et al. 2022. docs/scaling_laws.md says how the peaks were chosen.
At `smoke` a run has a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from experiments.bert import SMALL_CORPUS as BERT_CORPUS
from experiments.gpt import SMALL_CORPUS as GPT_CORPUS
from plm_jax.ablate.scaling_report import blocks
from plm_jax.ablate.table import Arm, Table
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tokenizers import BytePairs, WordPiece
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.optim.muon import Muon

TOKENS = 1_024  # of a step
GPT_SIZES = ((1, 32), (1, 64), (2, 64), (2, 96), (4, 96), (4, 128))  # layers, width
GPT_LARGER = (6, 160)
GPT_PEAK = 6e-3  # of every width
BERT_SIZES = ((1, 32), (1, 64), (2, 64), (2, 96), (4, 96))
BERT_LARGER = (5, 128)
BERT_PEAK = 0.192  # times 1 / width; 1.5e-3 at 128
VOCABULARY = 2_048  # so that the token table does not outweigh the layers of small models
PLAIN = {"positions": 64, "dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.05}


def gpt_quarter(budget: Budget = "small") -> Experiment:
  """A GPT-2, 0.26 million tokens."""
  return _gpt(budget, 250)


def gpt_half(budget: Budget = "small") -> Experiment:
  """A GPT-2, 0.51 million tokens."""
  return _gpt(budget, 500)


def gpt_one(budget: Budget = "small") -> Experiment:
  """A GPT-2, 1.02 million tokens."""
  return _gpt(budget, 1_000)


def gpt_two(budget: Budget = "small") -> Experiment:
  """A GPT-2, 2.05 million tokens."""
  return _gpt(budget, 2_000)


def gpt_four(budget: Budget = "small") -> Experiment:
  """A GPT-2, 4.10 million tokens, for the held-out run."""
  return _gpt(budget, 4_000)


def bert_half(budget: Budget = "small") -> Experiment:
  """A BERT, 0.51 million tokens."""
  return _bert(budget, 500)


def bert_one(budget: Budget = "small") -> Experiment:
  """A BERT, 1.02 million tokens."""
  return _bert(budget, 1_000)


def bert_one_and_a_half(budget: Budget = "small") -> Experiment:
  """A BERT, 1.54 million tokens."""
  return _bert(budget, 1_500)


def bert_two_and_a_half(budget: Budget = "small") -> Experiment:
  """A BERT, 2.56 million tokens."""
  return _bert(budget, 2_500)


def bert_four(budget: Budget = "small") -> Experiment:
  """A BERT, 4.10 million tokens, for the held-out run."""
  return _bert(budget, 4_000)


def _gpt(budget: Budget, steps: int) -> Experiment:
  data = replace(GPT_CORPUS, tokenizer=BytePairs(vocab_size=VOCABULARY))
  return _run(budget, Gpt2(layers=1, width=32, heads=1, **PLAIN), CLM(), data, steps, GPT_PEAK)


def _bert(budget: Budget, steps: int) -> Experiment:
  segments = SegmentPair(next="none", short=0.0)
  data = replace(
    BERT_CORPUS, tokenizer=WordPiece(vocab_size=VOCABULARY), segments=segments, length=32
  )
  return _run(
    budget, Bert(layers=1, width=32, heads=1, **PLAIN), MLM(), data, steps, BERT_PEAK / 32
  )


def _run(budget: Budget, model, objective, data, steps: int, peak: float) -> Experiment:
  """The recipe of all arms of a table. steps: at `small`."""
  steps = steps // 100 if budget == "smoke" else steps
  rows = TOKENS // data.length
  return Experiment(
    model=model,
    objectives=(objective,),
    data=data,
    optim=Muon(peak=peak, warmup=max(1, steps // 12), b2=0.98, schedule="wsd"),
    global_batch=2 if budget == "smoke" else rows,
    steps=steps,
    schedule=Intervals(
      log=max(1, steps // 10), save=steps, keep=1, evaluation_rows=32_768 // data.length
    ),
  )


def _arm(row: Callable[..., Experiment], size: tuple[int, int], *more: str, note: str = "") -> Arm:
  """A size, layers and width, with the tokens of a row. more: further settings."""
  layers, width = size
  name = f"{layers}x{width}-{row.__name__.partition('_')[2].replace('_', '-')}"
  shape = (f"model.layers={layers}", f"model.width={width}", f"model.heads={width // 32}")
  return Arm.of(row, name=name, note=note, settings=(*shape, *more))


def _table(title: str, fitted: Sequence[Arm], larger: Arm, metric: str, caveat: str) -> Table:
  return Table(
    title=title,
    source="Ours; the law and its fit are those of Hoffmann et al. 2022, section 3.3",
    arms=(*fitted, larger),
    blocks=partial(blocks, metric=metric, held_out=larger.name),
    caveat=CAVEAT + caveat,
  )


HELD_OUT = "held out: predicted from the others, and not fitted"
CAVEAT = (
  "One seed of each run, one text: it claims no order. Arms are named by layers x width and millions of tokens. The text "
  "has about 1.5 million tokens, so longer runs read it again. The published laws are of models a "
  "thousand times as large or more, trained on text that was not repeated. "
)


def gpt() -> Table:
  """The loss of GPT against parameters and tokens, and a prediction of a larger run."""
  rows = (gpt_quarter, gpt_half, gpt_one, gpt_two)
  fitted = [_arm(row, size) for size in GPT_SIZES for row in rows]
  larger = _arm(gpt_four, GPT_LARGER, note=HELD_OUT)
  caveat = "All widths have one peak of the learning rate."
  return _table("What scale does: GPT", fitted, larger, "clm_loss", caveat)


def bert() -> Table:
  """The loss of BERT against parameters and tokens, and a prediction of a larger run."""

  def arm(row, size: tuple[int, int], note: str = "") -> Arm:
    return _arm(row, size, f"optim.peak={BERT_PEAK / size[1]:.4g}", note=note)

  rows = (bert_half, bert_one, bert_one_and_a_half, bert_two_and_a_half)
  fitted = [arm(row, size) for size in BERT_SIZES for row in rows]
  larger = arm(bert_four, BERT_LARGER, note=HELD_OUT)
  caveat = "Of the tokens that BERT reads 15% are predicted. Peaks are in proportion to 1 / width."
  return _table("What scale does: BERT", fitted, larger, "mlm_loss", caveat)
