"""GPT-3 (Brown et al. 2020, arXiv:2005.14165). Each function is a size of its Table 2.1.

`paper` is the recipe of appendix B: rows of 2,048 tokens, 300 billion of them, documents that share
a row and see each other, AdamW with b2 of 0.95, clipping at 1, a decay of 0.1, 375 million tokens
of warmup. Deviations: the text is a prepared TFDS Wikipedia; the learning rate falls to 0, not to a
tenth of the peak; batches have their full size from the first step; attention is dense in every
layer (see plm_jax/models/gpt.py). `small` and `smoke` are those of experiments/budgets.py.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.budgets import at
from experiments.gpt import PAPER_CORPUS, SMALL_CORPUS
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.gpt import GPT3, Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW

LENGTH, TOKENS, WARMUP = 2048, 300_000_000_000, 375_000_000
SEGMENTS = PackedDocuments(separate=False)


def base(budget: Budget = "paper") -> Experiment:
  """Small, 125M: batches of 0.5 million tokens."""
  return _run(budget, "125M", 256, 6e-4)


def medium(budget: Budget = "paper") -> Experiment:
  """Medium, 350M: batches of 0.5 million tokens."""
  return _run(budget, "350M", 256, 3e-4)


def large(budget: Budget = "paper") -> Experiment:
  """Large, 760M: batches of 0.5 million tokens."""
  return _run(budget, "760M", 256, 2.5e-4)


def xl(budget: Budget = "paper") -> Experiment:
  """XL, 1.3B: batches of 1 million tokens."""
  return _run(budget, "1.3B", 512, 2e-4)


def b2_7(budget: Budget = "paper") -> Experiment:
  """2.7B: batches of 1 million tokens."""
  return _run(budget, "2.7B", 512, 1.6e-4)


def b6_7(budget: Budget = "paper") -> Experiment:
  """6.7B: batches of 2 million tokens."""
  return _run(budget, "6.7B", 1024, 1.2e-4)


def b13(budget: Budget = "paper") -> Experiment:
  """13B: batches of 2 million tokens."""
  return _run(budget, "13B", 1024, 1e-4)


def b175(budget: Budget = "paper") -> Experiment:
  """175B: batches of 3.2 million tokens."""
  return _run(budget, "175B", 1600, 0.6e-4)


def _run(budget: Budget, size: str, rows: int, peak: float) -> Experiment:
  """A size at a budget. At `small` it has an eighth of the layers and a sixteenth of the width, in
  heads of 32."""
  model, batch = GPT3[size], rows * LENGTH
  data = replace(SMALL_CORPUS, segments=SEGMENTS)
  paper = Experiment(
    model=model,
    objectives=(CLM(),),
    data=replace(
      PAPER_CORPUS, segments=SEGMENTS, tokenizer=BytePairs(vocab_size=50257), length=LENGTH
    ),
    optim=AdamW(peak=peak, warmup=WARMUP // batch, schedule="cosine", b2=0.95, decay=0.1, clip=1.0),
    global_batch=rows,
    steps=TOKENS // batch,
    schedule=Intervals(log=20, evaluate=5_000, save=1_000, keep=3),
  )
  if budget != "paper":
    heads = max(2, model.width // 512)
    small = Gpt2(layers=max(2, model.layers // 8), width=32 * heads, heads=heads)
    paper = replace(paper, model=small, data=data)
  return at(budget, paper, data, AdamW(peak=1e-3, warmup=300, schedule="cosine", b2=0.95))
