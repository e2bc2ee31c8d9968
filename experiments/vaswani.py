"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762). Each function is a run, as in
experiments/bert.py.

Table 3 varies the base model on newstest2013, English to German: perplexity per piece, BLEU, and
parameters. Deviation: this project comes without WMT's sentence pairs (`translation` takes your
file). So at every budget the task of the table is to restore a text from a copy in which masks
replace spans, 30% of the words. Otherwise `paper` is the paper's recipe: 100,000 steps of about
25,000 tokens on either side, Noam's schedule, label smoothing .1. Its perplexities are of a text
that is not the paper's, so only their order can be compared. `small` and `smoke` are those of
experiments/budgets.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from experiments.budgets import at
from plm_jax.ablate.table import Arm, Better, NotWorse, Table
from plm_jax.data.packing import DocSentences
from plm_jax.data.pipeline import Corpus
from plm_jax.data.source_target import SourceTarget
from plm_jax.data.tokenizers import BytePairs, WordPiece
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.vaswani import Transformer
from plm_jax.objectives.denoising import Denoising
from plm_jax.objectives.seq2seq import Translation
from plm_jax.optim.adamw import AdamW, noam_peak

PAPER_CORPUS = Corpus(
  source="tfds:wikipedia/20230601.en",
  tokenizer=BytePairs(vocab_size=37_000),
  segments=DocSentences(),
  length=128,
)
SMALL_CORPUS = Corpus(
  source="tfds:installed_text",
  tokenizer=WordPiece(vocab_size=4096),
  segments=DocSentences(),
  length=64,
  held_out=0.05,
)
WIDER = ("model.width=256",)  # at `laptop`, what 1024 is beside 512
METRIC = "seq2seq_perplexity"
NOISE = 0.02  # of the logarithm of the perplexity: a difference below is none


def base(budget: Budget = "paper") -> Experiment:
  """Table 3, base: 6 + 6 layers, d 512, ff 2048, 8 heads."""
  sizes = {} if budget == "paper" else {"layers": 2, "width": 256, "heads": 4}
  paper = Experiment(
    model=Transformer(positions=128, **sizes),
    objectives=(Denoising(label_smoothing=0.1),),
    data=PAPER_CORPUS,
    optim=_noam(512, 4_000),
    global_batch=192,
    steps=100_000,
    schedule=Intervals(log=100, evaluate=5_000, save=2_000, keep=3),
  )
  return at(budget, paper, SMALL_CORPUS, _noam(256, 1_000))


def big(budget: Budget = "paper") -> Experiment:
  """Table 3, big: d 1024, ff 4096, 16 heads, dropout .3, 300,000 steps."""
  experiment = table_3_d1024(budget)
  experiment = _changed(experiment, hidden=None, heads=16 if budget == "paper" else 8, dropout=0.3)
  return replace(experiment, steps=300_000) if budget == "paper" else experiment


def translation(budget: Budget = "paper") -> Experiment:
  """The base model on your pairs of sentences, --set=data.source=PAIRS.tsv."""
  experiment = base(budget)
  pairs = replace(experiment.data, source="pairs.tsv", segments=SourceTarget())
  return replace(experiment, data=pairs, objectives=(Translation(label_smoothing=0.1),))


# Table 3: variations of the base model. Parameters are printed where they are not the base's.


def table_3_heads_1(budget: Budget = "paper") -> Experiment:
  """Table 3 (A), 1 head."""
  return _changed(base(budget), heads=1)


def table_3_heads_16(budget: Budget = "paper") -> Experiment:
  """Table 3 (A), 16 heads."""
  return _changed(base(budget), heads=16)


def table_3_heads_32(budget: Budget = "paper") -> Experiment:
  """Table 3 (A), 32 heads."""
  return _changed(base(budget), heads=32)


def table_3_keys_16(budget: Budget = "paper") -> Experiment:
  """Table 3 (B), keys of width 16 (here values too)."""
  return _changed(base(budget), head_width=16)


def table_3_layers_2(budget: Budget = "paper") -> Experiment:
  """Table 3 (C), 2 + 2 layers."""
  return _changed(base(budget), layers=2 if budget == "paper" else 1)


def table_3_d1024(budget: Budget = "paper") -> Experiment:
  """Table 3 (C), d 1024."""
  width = 1024 if budget == "paper" else 512
  experiment = _changed(base(budget), width=width, hidden=2 * width)
  warmup = experiment.optim.warmup
  return replace(experiment, optim=replace(experiment.optim, peak=noam_peak(width, warmup)))


def table_3_ff_4096(budget: Budget = "paper") -> Experiment:
  """Table 3 (C), ff 4096."""
  return _changed(base(budget), hidden=4096 if budget == "paper" else 2048)


def table_3_no_dropout(budget: Budget = "paper") -> Experiment:
  """Table 3 (D), dropout 0."""
  return _changed(base(budget), dropout=0.0)


def table_3_no_smoothing(budget: Budget = "paper") -> Experiment:
  """Table 3 (D), no label smoothing."""
  return replace(base(budget), objectives=(Denoising(),))


def table_3_smoothing_20(budget: Budget = "paper") -> Experiment:
  """Table 3 (D), label smoothing .2."""
  return replace(base(budget), objectives=(Denoising(label_smoothing=0.2),))


def table_3_learned_positions(budget: Budget = "paper") -> Experiment:
  """Table 3 (E), learned positions."""
  return _changed(base(budget), position="learned")


def table_3() -> Table:
  """Table 3: variations of the Transformer."""
  arm = partial(Arm.of, columns=("ppl", "BLEU"))
  return Table(
    title="Transformer, Table 3: variations",
    source="Vaswani et al. 2017, arXiv:1706.03762, Table 3, newstest2013",
    question="Which parts of the Transformer matter: the number of heads, its size, dropout, label smoothing, the kind of positions?",
    arms=(
      arm(base, 4.92, 25.8, params="65M"),
      arm(table_3_heads_1, 5.29, 24.9),
      arm(table_3_heads_16, 4.91, 25.8),
      arm(table_3_heads_32, 5.01, 25.4),
      arm(table_3_keys_16, 5.16, 25.1, params="58M"),
      arm(table_3_layers_2, 6.11, 23.7, params="36M"),
      arm(table_3_d1024, 4.66, "26.0", params="168M", laptop=(*WIDER, "model.hidden=512")),
      arm(table_3_ff_4096, 4.75, 26.2, params="90M", laptop=("model.hidden=1024",)),
      arm(table_3_no_dropout, 5.77, 24.6, laptop=("model.dropout=0.0",)),
      arm(table_3_no_smoothing, 4.67, 25.3),
      arm(table_3_smoothing_20, 5.47, 25.7),
      arm(table_3_learned_positions, 4.92, 25.7),
      arm(big, 4.33, 26.4, params="213M", laptop=(*WIDER, "model.heads=4", "model.dropout=0.3")),
    ),
    claims=(
      Better(METRIC, "base", than="heads-1"),
      NotWorse(METRIC, "learned-positions", than="base", margin=NOISE),
      Better(METRIC, "no-smoothing", than="base"),
    ),
    laptop=("model.dropout=0.1",),
    caveat="The paper translates; here text with masked spans is restored, and nothing measures "
    "BLEU, which label smoothing improves while it worsens the perplexity. At small the base has "
    "2 + 2 layers of width 256, at laptop of 128.",
  )


# Shared parts of the rows.


def _noam(width: int, warmup: int) -> AdamW:
  """Section 5.3: Adam with b2 .98 and eps 1e-9. The rate rises over the warmup, then falls with the
  inverse root of the step."""
  return AdamW(
    peak=noam_peak(width, warmup),
    warmup=warmup,
    schedule="inverse_sqrt",
    b2=0.98,
    eps=1e-9,
    decay=0.0,
    clip=0.0,
  )


def _changed(experiment: Experiment, **sizes) -> Experiment:
  return replace(experiment, model=replace(experiment.model, **sizes))
