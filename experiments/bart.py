"""BART (Lewis et al. 2020, arXiv:1910.13461). Each function is a run, as in experiments/bert.py.

Table 1 compares kinds of noise with a base model of 6 + 6 layers: by SQuAD 1.1 (F1), MNLI
(accuracy), and perplexities of ELI5, XSum, ConvAI2 and CNN/DM. All other settings are those of
fairseq's recipe, as an author posted it (facebookresearch/fairseq issue #1899): 30% of the words, a
rate of 4e-4 with 10,000 steps of warmup, clip .1. Deviations: 256 rows of 512 tokens, as many steps
as BERT's, and a prepared TFDS Wikipedia instead of the paper's texts.

`small` and `smoke` are those of experiments/budgets.py: the text and the 4,096 word pieces of
experiments/bert.py, with [CLS] and [SEP] in the places of <s> and </s>.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from experiments.budgets import at
from plm_jax.ablate.table import Arm, Better, NotWorse, Table
from plm_jax.data.packing import DocSentences
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import BytePairs, Unigram, WordPiece
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.bart import Bart, MBart
from plm_jax.objectives.denoising import Denoising, mbart
from plm_jax.optim.adamw import AdamW

PAPER_CORPUS = Corpus(
  source="tfds:wikipedia/20230601.en",
  tokenizer=BytePairs(vocab_size=50265),
  segments=DocSentences(),
  length=512,
)
SMALL_CORPUS = Corpus(
  source="tfds:installed_text",
  tokenizer=WordPiece(vocab_size=4096),
  segments=DocSentences(),
  length=64,
  held_out=0.05,
)
SCORES = ("SQuAD", "MNLI", "ELI5", "XSum", "ConvAI2", "CNNDM")
METRIC = "tag_accuracy"
NOISE = 0.02  # of accuracy: a difference below is none


def base(budget: Budget = "paper") -> Experiment:
  """Table 1, text infilling and sentence shuffling, which is BART's own noise."""
  model = Bart()
  if budget != "paper":
    model = Bart(layers=2, width=256, heads=4)
  paper = Experiment(
    model=model,
    objectives=(Denoising(permute=1.0),),
    data=PAPER_CORPUS,
    optim=AdamW(peak=4e-4, warmup=10_000, decay=0.01, clip=0.1),
    global_batch=256,
    steps=1_000_000,
    schedule=Intervals(log=100, evaluate=10_000, save=5_000, keep=3),
  )
  return at(budget, paper, SMALL_CORPUS, AdamW(peak=1e-3, warmup=300))


def large(budget: Budget = "paper") -> Experiment:
  """BART-large, 12 + 12 layers, 8,000 rows. GLUE dev: MNLI 89.9, QNLI 94.9, QQP 92.5, RTE 87.0, SST 96.6, MRPC 90.4, CoLA 62.8, STS 91.2."""
  experiment = base(budget)
  if budget != "paper":
    return replace(experiment, model=replace(experiment.model, layers=4, width=320, heads=5))
  large = Bart(layers=12, width=1024, heads=16)
  return replace(experiment, model=large, global_batch=8_000, steps=500_000)


def mbart_large(budget: Budget = "paper") -> Experiment:
  """mBART's architecture and noise on one language: 35% in spans of 3.5, all sentences permuted.

  Its tables are about translation, which is not measured here.
  """
  experiment = large(budget)
  m = experiment.model
  tokenizer = replace(experiment.data.tokenizer, languages=("en_XX",))
  if budget == "paper":
    tokenizer = Unigram(vocab_size=250_000, languages=("en_XX",))
  return replace(
    experiment,
    model=MBart(layers=m.layers, width=m.width, heads=m.heads, positions=m.positions),
    objectives=(mbart("en_XX"),),
    data=replace(experiment.data, tokenizer=tokenizer),
  )


def tiny(budget: Budget = "small") -> Experiment:
  """A BART of 2 + 2 layers of 128. At `small`, some minutes on a laptop, and it fills in masked spans."""
  experiment = base(budget)
  model = Bart(layers=2, width=128, heads=2)
  if budget != "small":
    return replace(experiment, model=model)
  return replace(
    experiment,
    model=replace(model, positions=64, dropout=0.0, initializer_range=0.05),
    data=replace(experiment.data, length=40),
    optim=AdamW(peak=1.5e-3, warmup=100, b2=0.98, schedule="wsd"),
    global_batch=32,
    steps=1_000,
    schedule=Intervals(log=20, evaluate=250, early=True, evaluation_rows=512, save=250),
  )


# Table 1: kinds of noise.


def table_1_token_masking(budget: Budget = "paper") -> Experiment:
  """Table 1, token masking."""
  return _noise(budget, Denoising(unit="token", replace="each"))


def table_1_token_deletion(budget: Budget = "paper") -> Experiment:
  """Table 1, token deletion."""
  return _noise(budget, Denoising(unit="token", replace="delete"))


def table_1_text_infilling(budget: Budget = "paper") -> Experiment:
  """Table 1, text infilling."""
  return _noise(budget, Denoising())


def table_1_rotation(budget: Budget = "paper") -> Experiment:
  """Table 1, document rotation."""
  return _noise(budget, Denoising(mask=0.0, rotate=1.0))


def table_1_shuffling(budget: Budget = "paper") -> Experiment:
  """Table 1, sentence shuffling."""
  return _noise(budget, Denoising(mask=0.0, permute=1.0))


def table_1_infilling_and_shuffling(budget: Budget = "paper") -> Experiment:
  """Table 1, text infilling and sentence shuffling."""
  return base(budget)


def table_1() -> Table:
  """Table 1: kinds of noise."""
  arm = partial(Arm.of, columns=SCORES)
  return Table(
    title="BART, Table 1: kinds of noise",
    source="Lewis et al. 2020, arXiv:1910.13461, Table 1",
    question="Which kind of damage to a text teaches most when it is repaired?",
    arms=(
      arm(table_1_token_masking, 90.4, 84.1, 25.05, 7.08, 11.73, "6.10"),
      arm(table_1_token_deletion, 90.4, 84.1, 24.61, "6.90", 11.46, 5.87),
      arm(table_1_text_infilling, 90.8, "84.0", 24.26, 6.61, 11.05, 5.83),
      arm(table_1_rotation, 77.2, 75.3, 53.69, 17.14, 19.87, 10.59),
      arm(table_1_shuffling, 85.4, 81.5, 41.87, 10.93, 16.67, 7.89),
      arm(table_1_infilling_and_shuffling, 90.8, 83.8, 24.17, 6.62, 11.12, 5.41),
    ),
    claims=(
      Better(METRIC, "text-infilling", than="rotation"),
      Better(METRIC, "text-infilling", than="shuffling"),
      NotWorse(METRIC, "text-infilling", than="token-masking", margin=NOISE),
      NotWorse(METRIC, "text-infilling", than="token-deletion", margin=NOISE),
    ),
    caveat="What is compared is fine-tuning (sweep with --tasks=tag:FILE.conllu). The table's other "
    "rows (masked and permuted language models, a left-to-right one, masked sequence to sequence, and "
    "multitask) are other models than BART and are not run here.",
  )


# Shared parts of the rows.


def _noise(budget: Budget, objective: Denoising) -> Experiment:
  return replace(base(budget), objectives=(objective,))
