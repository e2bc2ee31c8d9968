"""ELECTRA (Clark et al. 2020, arXiv:2003.10555). Each function is a run, as in experiments/bert.py.

The budgets are those of experiments/bert.py. At `paper` ELECTRA-base takes 766k steps of 256 rows
of 512 tokens. A token costs more than in BERT, because two models read it; the rows of one table
have equal steps, as in the paper's own ablation.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.bert import PAPER_CORPUS, SMALL_CORPUS
from experiments.budgets import at, third
from plm_jax.ablate.table import Arm, Better, Table
from plm_jax.data.segments import SegmentPair
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.electra import Electra
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.replaced_mlm import ReplacedMLM
from plm_jax.objectives.rtd import RTD, GeneratorMLM
from plm_jax.optim.adamw import AdamW


def base(budget: Budget = "paper") -> Experiment:
  """ELECTRA-base, section 3 and appendix A. Repository, dev: MNLI 88.8, QNLI 93.2, SST-2 95.1, CoLA 67.7."""
  return _run(budget, _model(budget))


def small(budget: Budget = "paper") -> Experiment:
  """ELECTRA-small: 14M parameters, rows of 128 tokens, one GPU for four days. GLUE dev 79.9 (BERT-small 75.1, GPT 78.8)."""
  experiment = _run(budget, _small_model(budget))
  if budget != "paper":
    return experiment
  return replace(
    experiment,
    data=replace(experiment.data, length=128),
    optim=replace(experiment.optim, peak=5e-4),
    global_batch=128,
    steps=1_000_000,
  )


def large(budget: Budget = "paper") -> Experiment:
  """ELECTRA-large, 400k steps, 25% masked. Repository, dev: MNLI 90.9, QNLI 95.0, SST-2 96.9, CoLA 69.1."""
  experiment = _run(budget, _model(budget, 24, 1024, 16, generator_width=1 / 4))
  experiment = replace(experiment, objectives=(GeneratorMLM(rate=0.25), RTD()))
  return replace(experiment, global_batch=2048, steps=400_000) if budget == "paper" else experiment


def base_faithful(budget: Budget = "paper") -> Experiment:
  """ELECTRA-base as in its code: Adam without bias correction, decay under warmup."""
  experiment = base(budget)
  return replace(experiment, optim=experiment.optim.paper_faithful())


# The efficiency analysis: the sources of the gain over BERT.


def electra_15(budget: Budget = "paper") -> Experiment:
  """Efficiency analysis, "ELECTRA 15%": the discriminator's loss over the chosen 15% alone."""
  return replace(base(budget), objectives=(GeneratorMLM(), RTD(positions="masked")))


def replace_mlm(budget: Budget = "paper") -> Experiment:
  """Efficiency analysis, "Replace MLM": BERT's task with a generator's tokens instead of [MASK]."""
  return replace(base(budget), objectives=(GeneratorMLM(), ReplacedMLM()))


def all_tokens_mlm(budget: Budget = "paper") -> Experiment:
  """Efficiency analysis, "All-Tokens MLM": Replace MLM on all tokens, with a copy mechanism."""
  every = ReplacedMLM(positions="all", copy=True)
  return replace(base(budget), objectives=(GeneratorMLM(), every))


def bert(budget: Budget = "paper") -> Experiment:
  """Efficiency analysis, "BERT": the discriminator alone, as a masked language model."""
  electra = base(budget)
  return replace(electra, model=electra.model.encoder, objectives=(MLM(),))


# Generator sizes. Published as a figure: a quarter to a half of the discriminator's width is best.


def generator_quarter(budget: Budget = "paper") -> Experiment:
  """Generator sizes, a quarter of the width. Published as a figure: near the best."""
  return replace(base(budget), model=_model(budget, generator_width=1 / 4))


def generator_half(budget: Budget = "paper") -> Experiment:
  """Generator sizes, half of the width. Published as a figure: near the best."""
  return replace(base(budget), model=_model(budget, generator_width=1 / 2))


def generator_equal(budget: Budget = "paper") -> Experiment:
  """Generator sizes, the full width. Published as a figure: worse, though it costs the most."""
  return replace(base(budget), model=_model(budget, generator_width=1.0))


def table_5() -> Table:
  """The efficiency analysis: is it the task, the missing [MASK], or the loss on every token?"""
  scores = "finetune_500_accuracy", "finetune_all_accuracy"
  return Table(
    title="ELECTRA, efficiency analysis: what the gain comes from",
    source="Clark et al. 2020, ablations of ELECTRA-base, GLUE dev average",
    question="ELECTRA learns from every word of a row, BERT from 15% of them. Is that the reason why it learns more from the same text?",
    arms=(
      Arm.of(base, name="electra", GLUE=85.0),
      Arm.of(all_tokens_mlm, GLUE=84.3),
      Arm.of(replace_mlm, GLUE=82.4),
      Arm.of(electra_15, GLUE=82.4),
      Arm.of(bert, GLUE=82.2, note="the discriminator alone, so each step is cheaper"),
    ),
    claims=tuple(
      Better(score, "electra", than=arm) for score in scores for arm in ("electra-15", "bert")
    )
    + tuple(Better(score, "all-tokens-mlm", than="replace-mlm") for score in scores),
    laptop=("model.layers=2",),
    caveat="Equal steps, not equal compute: a step with a generator costs more. Masked-LM scores "
    "of all arms but bert are the generator's and say nothing of the discriminator; fine-tuning "
    "does. The paper's spread between Replace MLM and BERT (0.2) is noise and no claim here.",
  )


def generator_sizes() -> Table:
  """How strong a generator should be."""
  scores = "finetune_500_accuracy", "finetune_all_accuracy"
  return Table(
    title="ELECTRA, generator sizes",
    source="Clark et al. 2020, section 3.2, GLUE against generator size (a figure: no numbers)",
    question="A small network proposes the wrong words that ELECTRA must find. How good should it be?",
    arms=(
      Arm.of(generator_quarter, name="quarter"),
      Arm.of(generator_half, name="half"),
      Arm.of(generator_equal, name="equal"),
    ),
    claims=tuple(
      Better(score, arm, than="equal") for score in scores for arm in ("quarter", "half")
    ),
    laptop=("model.layers=2",),
    caveat="Masked-LM scores are the generator's, so a larger one has better ones of necessity.",
  )


# The budgets.


def _run(budget: Budget, model: Electra) -> Experiment:
  """The recipe of ELECTRA-base at a budget, for a model of a given size."""
  paper = Experiment(
    model=model,
    objectives=(GeneratorMLM(), RTD()),
    data=replace(PAPER_CORPUS, segments=SegmentPair(next="none")),
    optim=AdamW(peak=2e-4, warmup=10_000, decay=0.01),
    global_batch=256,
    steps=766_000,
    schedule=Intervals(log=100, evaluate=10_000, save=5_000, keep=3),
  )
  data = replace(SMALL_CORPUS, segments=SegmentPair(next="none"))
  return at(budget, paper, data, AdamW(peak=1e-3, warmup=300))


def _model(budget: Budget, layers=12, width=768, heads=12, generator_width=None) -> Electra:
  """A published size, or a third of it. Heads of 64 do not fit a generator a third as wide as 256,
  so it has a quarter of the width there."""
  if budget == "paper":
    share = generator_width or 1 / 3
    return Electra(layers=layers, width=width, heads=heads, generator_width=share)
  return Electra(**third(layers, width, heads), generator_width=generator_width or 1 / 4)


def _small_model(budget: Budget) -> Electra:
  """ELECTRA-small; at `small` and `smoke` a third of its layers and half its width."""
  if budget == "paper":
    return Electra(width=256, heads=4, embedding=128, generator_width=1 / 4)
  return Electra(layers=4, width=128, heads=2, embedding=64, generator_width=1 / 4)
