"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108). Functions are runs, as in experiments/bert.py.

The teacher is a finished run of experiments/bert.py:base at the same budget, in the directory that
run_pretrain.py gives it; --set=model.teacher=DIR names another. The student has the teacher's
tokenizer, and starts from about every second of its layers.

The budgets are those of experiments/bert.py. `paper` follows the repository's README: 3 epochs of
Wikipedia and BooksCorpus in batches of 4,000 rows. At `small` the student has 2 layers and the
teacher 4.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from experiments import bert
from experiments.budgets import at
from plm_jax.ablate.table import Arm, Better, NotWorse, Ordered, Table
from plm_jax.data.segments import SegmentPair
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.distilbert import Distilled
from plm_jax.objectives.distillation import Cosine, Distillation
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.rare_mlm import RareWordMLM
from plm_jax.optim.adamw import AdamW

TEACHERS = {
  "paper": "runs/bert_base_paper",
  "small": "runs/bert_base",
  "smoke": "runs/bert_base_smoke",
}


def base(budget: Budget = "paper") -> Experiment:
  """DistilBERT, section 3: 5 x KL + 2 x MLM + 1 x cosine. Table 1 also has ELMo, GLUE 68.7."""
  teacher = bert.base(budget)
  paper = Experiment(
    model=Distilled(
      layers=teacher.model.layers // 2,
      width=teacher.model.width,
      heads=teacher.model.heads,
      teacher=TEACHERS[budget],
    ),
    objectives=(MLM(weight=2.0), Distillation(weight=5.0), Cosine(weight=1.0)),
    data=replace(teacher.data, segments=SegmentPair(next="none")),
    optim=AdamW(peak=5e-4, warmup=315, decay=0.0, clip=5.0),
    global_batch=4_000,
    steps=6_300,  # 3 epochs of about 4.3 billion word pieces
    schedule=Intervals(log=10, evaluate=500, save=100, keep=3),
  )
  return at(budget, paper, paper.data, replace(paper.optim, warmup=75), steps=1_500)


def base_faithful(budget: Budget = "paper") -> Experiment:
  """DistilBERT with its code's masking: a token is chosen in proportion to its count^-0.7."""
  return replace(base(budget), objectives=(RareWordMLM(weight=2.0), Distillation(), Cosine()))


# Table 4: the recipe without one of its parts.


def no_distillation(budget: Budget = "paper") -> Experiment:
  """Table 4, without the distillation loss."""
  return replace(base(budget), objectives=(MLM(weight=2.0), Cosine()))


def no_cosine(budget: Budget = "paper") -> Experiment:
  """Table 4, without the cosine loss."""
  return replace(base(budget), objectives=(MLM(weight=2.0), Distillation()))


def no_mlm(budget: Budget = "paper") -> Experiment:
  """Table 4, without the masked-LM loss; the rows are still masked."""
  return replace(base(budget), objectives=(MLM(weight=0.0), Distillation(), Cosine()))


def random_start(budget: Budget = "paper") -> Experiment:
  """Table 4, triple loss, with a randomly initialised student."""
  experiment = base(budget)
  return replace(experiment, model=replace(experiment.model, start="random"))


def table_1() -> Table:
  """Table 1: the student beside its teacher."""
  return Table(
    title="DistilBERT, Table 1: the student beside its teacher",
    source="Sanh et al. 2019, Table 1, GLUE dev macro-score",
    question="How much of a model does a student of half its layers keep?",
    arms=(
      Arm.of(bert.base, name="bert", GLUE=79.5),
      Arm.of(base, name="distilbert", GLUE=77.0, note="of one teacher for all seeds"),
    ),
    claims=tuple(
      NotWorse(f"finetune_{labels}_accuracy", "distilbert", than="bert", margin=0.05)
      for labels in ("500", "all")
    ),
    caveat="The teacher of every seed is the run that model.teacher names, not the arm beside it.",
  )


def table_4() -> Table:
  """Table 4: losses and start."""
  arms = "random-start", "no-distillation", "distilbert"
  arm = partial(Arm.of, columns=("change of GLUE",))
  return Table(
    title="DistilBERT, Table 4: losses and start",
    source="Sanh et al. 2019, Table 4, change of the GLUE macro-score",
    question="A student learns from its teacher's probabilities and states, from the text, and starts from the teacher's layers. Which of these matters?",
    arms=(
      arm(base, None, name="distilbert"),
      arm(no_distillation, -2.96),
      arm(no_cosine, -1.46),
      arm(no_mlm, -0.31),
      arm(random_start, -3.69),
    ),
    claims=(
      Better("mlm_loss", "distilbert", than="random-start"),
      Better("finetune_all_accuracy", "distilbert", than="random-start"),
      Ordered(
        "finetune_500_accuracy",
        arms,
        sentence="the start from the teacher is worth most, then the distillation loss",
      ),
      NotWorse("finetune_all_accuracy", "no-mlm", than="distilbert", margin=0.02),
    ),
    caveat="All arms and seeds learn from one teacher. Without the masked-LM loss the rows are "
    "still masked, so that the teacher has something to say.",
  )
