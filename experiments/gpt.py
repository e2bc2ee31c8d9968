"""GPT-1 and GPT-2 (Radford et al. 2018, 2019). Each function is a run, as in experiments/bert.py.

`paper` is GPT-1's recipe on packed documents. They are those of a prepared TFDS Wikipedia, because
BooksCorpus and WebText are not distributed. GPT-2's learning rates were never published. Ours are
those of the nearest sizes in GPT-3's Table 2.1, over its 300 billion tokens. GPT-2 attends across
the documents of a row, as published; GPT-1 does not. `small` and `smoke` are those of
experiments/budgets.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from experiments.budgets import at, third
from plm_jax.ablate.table import Arm, Better, Ordered, Table
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.gpt import Gpt1, Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW

PAPER_CORPUS = Corpus(
  source="tfds:wikipedia/20230601.en",
  tokenizer=BytePairs(vocab_size=40478),
  segments=PackedDocuments(),
  length=512,
)
SMALL_CORPUS = Corpus(
  source="tfds:installed_text",
  tokenizer=BytePairs(vocab_size=4096),
  segments=PackedDocuments(),
  length=64,
  held_out=0.05,  # fine-tuning is tested on these documents
)
GPT2_TOKENS = 300_000_000_000


def base(budget: Budget = "paper") -> Experiment:
  """GPT-1, Table 5, "Transformer w/ aux LM (full)"."""
  return _run(budget, Gpt1(**_sizes(budget, 12, 768, 12)))


def tiny(budget: Budget = "small") -> Experiment:
  """A GPT-2 of 4 layers of 128. At `small`, it learns to write text in some minutes on a laptop."""
  experiment = _run(budget, Gpt2(layers=4, width=128, heads=4))
  if budget != "small":
    return experiment
  return replace(
    experiment,
    model=replace(
      experiment.model, positions=128, dropout=0.0, attention_dropout=0.0, initializer_range=0.05
    ),
    data=replace(experiment.data, length=128),  # it can write no longer text than it was trained on
    optim=AdamW(peak=2e-3, warmup=100, b2=0.98, schedule="wsd"),
    global_batch=8,
    steps=1_500,
    schedule=Intervals(log=20, evaluate=300, early=True, evaluation_rows=512, save=300),
  )


# GPT-1, Table 5: the ablations of its section 5.


def table_5_no_pretraining(budget: Budget = "paper") -> Experiment:
  """Table 5, "Transformer w/o pre-training"."""
  # A run must take a step; at this rate it changes nothing.
  nothing = AdamW(peak=1e-12, warmup=0, schedule="constant", decay=0.0)
  return replace(base(budget), optim=nothing, steps=1)


def table_5() -> Table:
  """GPT-1, Table 5: with and without pretraining."""
  columns = ("avg", "CoLA", "SST2", "MRPC", "STSB", "QQP", "MNLI", "QNLI", "RTE")
  arm = partial(Arm.of, columns=columns)
  return Table(
    title="GPT-1, Table 5: pretraining",
    source="Radford et al. 2018, Table 5",
    question="What is pretraining worth, compared with training the same model on the labels alone?",
    arms=(
      arm(base, 74.7, 45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0, name="full"),
      arm(table_5_no_pretraining, 59.9, 18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    ),
    claims=(
      Better("finetune_500_accuracy", "full", than="no-pretraining"),
      Better("finetune_all_accuracy", "full", than="no-pretraining"),
    ),
    laptop=("model.layers=2",),
    caveat="Two rows of the table differ in fine-tuning or in the model and are not run here: "
    "without the auxiliary language model the paper's average is higher (75.0), with an LSTM it is "
    "69.1.",
  )


# GPT-2, Table 3: zero-shot perplexity falls with size.


def gpt2_small(budget: Budget = "paper") -> Experiment:
  """GPT-2 "117M" (124,439,808 parameters)."""
  return _gpt2(budget, 12, 768, 12, 6e-4)


def gpt2_medium(budget: Budget = "paper") -> Experiment:
  """GPT-2 "345M" (354,823,168 parameters)."""
  return _gpt2(budget, 24, 1024, 16, 3e-4)


def gpt2_large(budget: Budget = "paper") -> Experiment:
  """GPT-2 "762M" (774,030,080 parameters)."""
  return _gpt2(budget, 36, 1280, 20, 2.5e-4)


def gpt2_xl(budget: Budget = "paper") -> Experiment:
  """GPT-2 "1542M" (1,557,611,200 parameters)."""
  return _gpt2(budget, 48, 1600, 25, 2e-4)


def table_3() -> Table:
  """GPT-2, Table 3: zero-shot perplexity falls with size."""
  columns = ("LAMBADA (ppl)", "LAMBADA (acc)", "WikiText2", "PTB", "WikiText103", "1BW")
  arm = partial(Arm.of, columns=columns)

  def size(layers: int, width: int) -> tuple[str, ...]:
    heads = width // 32  # of the published 64
    return (f"model.layers={layers}", f"model.width={width}", f"model.heads={heads}")

  arms = (
    arm(gpt2_small, 35.13, 45.99, 29.41, 65.85, 37.50, 75.20, name="117M", laptop=size(1, 96)),
    arm(gpt2_medium, 15.60, 55.48, 22.76, 47.33, 26.37, 55.72, name="345M", laptop=size(2, 128)),
    arm(gpt2_large, 10.87, 60.12, 19.93, 40.31, 22.05, 44.575, name="762M", laptop=size(3, 160)),
    arm(gpt2_xl, 8.63, 63.24, 18.34, 35.76, 17.48, 42.16, name="1542M", laptop=size(4, 192)),
  )
  return Table(
    title="GPT-2, Table 3: zero-shot perplexity",
    source="Radford et al. 2019, Table 3",
    question="Does the perplexity on new text fall with every step in size?",
    arms=arms,
    claims=(
      Ordered(
        "clm_perplexity",
        tuple(arm.name for arm in arms),
        sentence="the perplexity falls with every step in size",
      ),
      Better("clm_perplexity", "1542M", than="117M"),
      Better("blimp", "1542M", than="117M"),
    ),
    caveat="At the budgets small and smoke every size has a third of the published layers, heads "
    "and width, at laptop a twelfth of the layers and an eighth of the width; names are the paper's. "
    "Its numbers are of texts whose tokenisation was undone; "
    "measured here is held-out text of the kind that was trained on.",
  )


def _run(budget: Budget, model: Gpt1 | Gpt2) -> Experiment:
  """GPT-1's recipe at a budget, for a model of a given size."""
  paper = Experiment(
    model=model,
    objectives=(CLM(),),
    data=PAPER_CORPUS,
    optim=AdamW(peak=2.5e-4, warmup=2_000, schedule="cosine", decay=0.01),
    global_batch=64,
    steps=2_400_000,  # 100 passes over about 0.8 billion tokens
    schedule=Intervals(log=100, evaluate=20_000, save=10_000, keep=3),
  )
  return at(budget, paper, SMALL_CORPUS, AdamW(peak=1e-3, warmup=300, schedule="cosine"))


def _gpt2(budget: Budget, layers: int, width: int, heads: int, peak: float) -> Experiment:
  """A size of GPT-2: 512 rows of 1,024 tokens."""
  experiment = _run(budget, Gpt2(**_sizes(budget, layers, width, heads)))
  segments = PackedDocuments(separate=False)
  if budget != "paper":
    return replace(experiment, data=replace(experiment.data, segments=segments))
  data = replace(
    PAPER_CORPUS, segments=segments, tokenizer=BytePairs(vocab_size=50257), length=1024
  )
  steps = GPT2_TOKENS // (512 * 1024)
  optim = AdamW(peak=peak, warmup=2_000, schedule="cosine", b2=0.95, decay=0.1)
  return replace(experiment, data=data, optim=optim, global_batch=512, steps=steps)


def _sizes(budget: Budget, layers: int, width: int, heads: int) -> dict[str, int]:
  """A published size, or a third of it."""
  size = {"layers": layers, "width": width, "heads": heads}
  return size if budget == "paper" else third(**size)
