"""LLaMA (Touvron et al. 2023, arXiv:2302.13971). Each function is a size of its Table 2, with the
paper's numbers in its docstring.

`paper` is the paper's recipe: batches of 4 million tokens. Deviations: the text is a prepared TFDS
Wikipedia, a small part of the paper's; the learning rate falls to 0, not to a tenth of the peak.
`small` and `smoke` are those of experiments/budgets.py.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.budgets import at
from experiments.gpt import SMALL_CORPUS
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.pipeline import Corpus
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.llama import Llama
from plm_jax.objectives.clm import CLM
from plm_jax.optim.adamw import AdamW

PAPER_CORPUS = Corpus(
  source="tfds:wikipedia/20230601.en",
  tokenizer=BytePairs(vocab_size=32000),
  segments=PackedDocuments(separate=False),
  length=2048,
)
ROWS = 2048  # of 2,048 tokens: 4 million


def base(budget: Budget = "paper") -> Experiment:
  """Table 2, 6.7B (6,738,415,616 parameters): learning rate 3.0e-4, 1.0T tokens."""
  return _run(budget, 32, 4096, 32, 3e-4, 1.0e12)


def b13(budget: Budget = "paper") -> Experiment:
  """Table 2, 13.0B (13,015,864,320 parameters): learning rate 3.0e-4, 1.0T tokens."""
  return _run(budget, 40, 5120, 40, 3e-4, 1.0e12)


def b30(budget: Budget = "paper") -> Experiment:
  """Table 2, 32.5B (32,528,943,616 parameters): learning rate 1.5e-4, 1.4T tokens."""
  return _run(budget, 60, 6656, 52, 1.5e-4, 1.4e12)


def b65(budget: Budget = "paper") -> Experiment:
  """Table 2, 65.2B (65,285,660,672 parameters): learning rate 1.5e-4, 1.4T tokens."""
  return _run(budget, 80, 8192, 64, 1.5e-4, 1.4e12)


def _run(
  budget: Budget, layers: int, width: int, heads: int, peak: float, tokens: float
) -> Experiment:
  """The recipe of section 2.3 at a budget. Models at `small` have an eighth of the published layers
  and about a sixteenth of the width."""
  paper = Experiment(
    model=Llama(layers=layers, width=width, heads=heads),
    objectives=(CLM(),),
    data=PAPER_CORPUS,
    optim=AdamW(peak=peak, warmup=2_000, schedule="cosine", b2=0.95, decay=0.1, clip=1.0),
    global_batch=ROWS,
    steps=int(tokens / (ROWS * 2048)),
    schedule=Intervals(log=20, evaluate=5_000, save=1_000, keep=3),
  )
  if budget != "paper":
    size = {"layers": layers // 8, "width": width // 1024 * 64, "heads": width // 1024}
    paper = replace(paper, model=Llama(**size))
  optim = AdamW(peak=1e-3, warmup=300, schedule="cosine", b2=0.95, decay=0.1)
  return at(budget, paper, SMALL_CORPUS, optim)
