"""Claims of the papers, each in a controlled language in which its mechanism can be seen alone.

Real text has topics, order, repetition and long distances all at once, so a small model can fail
for many reasons. Each table here takes a language with one dial (plm_jax/data/controlled.py), the
arms and the claims of a paper, and several values of the dial:

    python -m plm_jax.sweep --table=experiments/mechanisms.py:two_sides --seeds=5 --inline
    python -m plm_jax.report sweeps/mechanisms_two_sides_small

A verdict says what a mechanism does where it is present and where it is absent. It does not say how
much of it real text has. The models have 2 layers of 64 and read rows of 35 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from plm_jax.ablate.dials import blocks, dialled
from plm_jax.ablate.table import AboveChance, Arm, AtChance, Better, Claim, NotWorse, Table
from plm_jax.data.controlled import open_controlled
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.pipeline import Corpus
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tokenizers import WordPiece
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.albert import Albert
from plm_jax.models.bert import Bert
from plm_jax.models.gpt import Gpt2
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.objectives.sop import SOP
from plm_jax.optim.muon import Muon

STEPS = {"smoke": 10, "small": 1_000, "paper": 1_000}
LENGTH = 35  # "[CLS] A [SEP] B [SEP]" with 32 words
SIZE = {"layers": 2, "width": 64, "heads": 2, "positions": 64}
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.05}
FOLLOWING = SegmentPair(next="none", short=0.0)
HELD_OUT = 0.1
SOURCE = "A controlled language, not real text: `{}` of plm_jax/data/controlled.py. The claim: {}"


def _run(budget: Budget, model, objectives, segments=FOLLOWING, source="controlled:topics/0.3"):
  steps = STEPS[budget]
  return Experiment(
    model=model,
    objectives=objectives,
    data=Corpus(
      source=source,
      tokenizer=WordPiece(vocab_size=2048),
      segments=segments,
      length=LENGTH,
      held_out=HELD_OUT,
    ),
    # With AdamW a masked model is still on its plateau at the end (docs/mechanisms.md).
    optim=Muon(peak=3e-3, warmup=max(1, steps // 12), b2=0.98, schedule="wsd"),
    global_batch=32,
    steps=steps,
    schedule=Intervals(log=max(1, steps // 12), evaluate=0, save=steps, evaluation_rows=512),
  )


def _bert(budget: Budget, *objectives, **more) -> Experiment:
  return _run(budget, Bert(**SIZE, **PLAIN), objectives or (MLM(),), **more)


def _table(
  title: str,
  language: str,
  claim: str,
  arms: tuple[Arm, ...],
  claims: tuple[Claim, ...],
  dial: str,
  metrics: Mapping[str, str],
  lesson: str,
) -> Table:
  """The report of a mechanism draws its metrics against the dial, beside the best in theory.
  language: its name, with {} where the value of the dial stands."""

  def best(metric: str, value: float) -> float | None:
    return open_controlled(f"controlled:{language.format(f'{value:g}')}").language.best(metric)

  return Table(
    title=title,
    source=SOURCE.format(language.partition("/")[0], claim),
    arms=arms,
    claims=claims,
    blocks=partial(blocks, dial=dial, metrics=metrics, best=best, lesson=lesson),
  )


# Next-sentence prediction (Lan et al. 2020, section 3.1).


def nsp(budget: Budget = "small") -> Experiment:
  """MLM and next-sentence prediction."""
  return _bert(budget, MLM(), NSP(), segments=SegmentPair(short=0.0))


def sop(budget: Budget = "small") -> Experiment:
  """MLM and sentence-order prediction."""
  return _bert(budget, MLM(), SOP(), segments=SegmentPair(next="swapped", short=0.0))


def topic() -> Table:
  """NSP can be solved by topic alone."""
  pairs = {"nsp_accuracy": "next sentence, accuracy", "sop_accuracy": "sentence order, accuracy"}
  return _table(
    "NSP by topic",
    "topics/{}",
    "NSP conflates topic and coherence, and topic is easy (ALBERT, section 3.1)",
    dialled((nsp,), "data.source=controlled:topics/{}", (0, 0.3, 0.6)),
    (
      AboveChance("nsp_accuracy", "nsp-0.6", chance=0.5),
      # Not "at chance without a topic": the length of the second segment tells a little.
      Better("nsp_accuracy", "nsp-0.6", than="nsp-0"),
      AtChance("sop_accuracy", "nsp-0.6", chance=0.5),
    ),
    "share of words of the topic",
    pairs,
    "A high accuracy of next-sentence prediction does not show that a model has learnt order or "
    "coherence: here there is none to learn.",
  )


def order() -> Table:
  """SOP teaches order where NSP takes the topic."""
  pairs = {"nsp_accuracy": "next sentence, accuracy", "sop_accuracy": "sentence order, accuracy"}
  return _table(
    "SOP and NSP, with topic and order in the text",
    "places/{}",
    "NSP cannot solve sentence order, SOP can (ALBERT, Table 5)",
    dialled((nsp, sop), "data.source=controlled:places/{}", (0, 0.1, 0.3)),
    (
      AboveChance("sop_accuracy", "sop-0.3", chance=0.5),
      AtChance("sop_accuracy", "sop-0", chance=0.5),
      AtChance("sop_accuracy", "nsp-0.1", chance=0.5),
      Better("sop_accuracy", "sop-0.1", than="nsp-0.1"),
      Better("nsp_accuracy", "nsp-0.1", than="sop-0.1"),
    ),
    "share of words that tell the place",
    pairs,
    "An objective teaches what its negatives lack. Random negatives differ in topic, swapped ones in "
    "order only.",
  )


# Static and dynamic masks (Liu et al. 2019, section 4.1).


def static(budget: Budget = "small") -> Experiment:
  """Ten static masks of each row."""
  return _bert(budget, MLM(masking="static", copies=10))


def dynamic(budget: Budget = "small") -> Experiment:
  """A new mask in every epoch."""
  return _bert(budget, MLM())


def masks() -> Table:
  """Static masks cost something once they repeat often."""
  return _table(
    "Static masks when a text is repeated",
    "markov/0.4/{}",
    "dynamic masking becomes crucial when a text is read often (RoBERTa, section 4.1)",
    dialled((static, dynamic), "data.source=controlled:markov/0.4/{}", (40, 320, 2560)),
    (
      Better("mlm_loss", "dynamic-40", than="static-40"),
      NotWorse("mlm_loss", "static-2560", than="dynamic-2560", margin=0.02),
    ),
    "documents of the text",
    {"mlm_loss": "held-out MLM loss, nats"},
    "Static masks are as good until they repeat often. BERT saw each of its masks four times "
    "(RoBERTa, section 4.1).",
  )


# Two-sided context (Devlin et al. 2019, section 1).


def bert(budget: Budget = "small") -> Experiment:
  """A masked model, which reads both sides."""
  return _bert(budget, MLM())


def gpt(budget: Budget = "small") -> Experiment:
  """A left-to-right model of the same size."""
  return _run(budget, Gpt2(**SIZE, **PLAIN), (CLM(),), PackedDocuments())


def two_sides() -> Table:
  """Both sides help where the clue is on the right."""
  return _table(
    "Words that only the right side tells",
    "echoes/{}",
    "left-to-right models are sub-optimal where context from both sides matters (BERT, section 1)",
    dialled((bert, gpt), "data.source=controlled:echoes/{}", (0, 0.5, 0.9)),
    (
      Better("gap_loss", "bert-0.9", than="gpt-0.9"),
      NotWorse("gap_loss", "gpt-0", than="bert-0", margin=0.1),
    ),
    "share of words that are repeated to the right",
    {"gap_loss": "gap of three words, nats per word"},
    "The gain of both sides is the information of the right side that the left one lacks; without "
    "any, there is none.",
  )


# Spans (Joshi et al. 2020; Lan et al. 2020, section 4.1; Raffel et al. 2020, section 3.3.4).


def tokens(budget: Budget = "small") -> Experiment:
  """Single tokens are masked."""
  return _bert(budget, MLM())


def spans(budget: Budget = "small") -> Experiment:
  """Runs of up to three words are masked, as in ALBERT."""
  return _bert(budget, MLM(unit="ngram"))


def long_context() -> Table:
  """Masked spans make a model read further away than masked tokens."""
  return _table(
    "Masked tokens, masked spans, and a clue that is far away",
    "motifs/{}",
    "spans cannot be filled from the next word, and teach longer context (SpanBERT, section 1)",
    dialled((tokens, spans), "data.source=controlled:motifs/{}", (0, 0.5, 1)),
    (
      Better("gap_loss", "spans-1", than="tokens-1"),
      NotWorse("gap_loss", "spans-0", than="tokens-0", margin=0.1),
    ),
    "share of words that the neighbour tells",
    {"gap_loss": "gap of three words, nats per word", "mlm_loss": "held-out MLM loss, nats"},
    "Where neighbours tell a word, single masks leave little to learn from further away.",
  )


# Factorised embeddings (Lan et al. 2020, section 3.1 and Table 3).


def narrow(budget: Budget = "small") -> Experiment:
  """Embeddings of width 16, projected to 64."""
  return _run(budget, Albert(**SIZE, **PLAIN, embedding=16, sharing="none"), (MLM(),))


def whole(budget: Budget = "small") -> Experiment:
  """Embeddings of the whole width."""
  return _run(budget, Albert(**SIZE, **PLAIN, embedding=64, sharing="none"), (MLM(),))


def factorised() -> Table:
  """Narrow embeddings cost little when words fall into classes."""
  return _table(
    "Factorised embeddings and the size of the vocabulary",
    "classes/{}",
    "a vocabulary does not need embeddings as wide as the layers (ALBERT, section 3.1)",
    dialled((narrow, whole), "data.source=controlled:classes/{}", (64, 128, 256)),
    (
      NotWorse("mlm_loss", "narrow-64", than="whole-64", margin=0.05),
      NotWorse("mlm_loss", "narrow-256", than="whole-256", margin=0.05),
    ),
    "words of the vocabulary",
    {"mlm_loss": "held-out MLM loss, nats"},
    "Width of embeddings is needed for what distinguishes words, not for their number.",
  )


# Sharing (Lan et al. 2020, Table 4).


def shared(budget: Budget = "small") -> Experiment:
  """All layers share their parameters."""
  return _facts(budget, "all")


def separate(budget: Budget = "small") -> Experiment:
  """Each layer has its parameters."""
  return _facts(budget, "none")


def _facts(budget: Budget, sharing) -> Experiment:
  model = Albert(**SIZE | {"layers": 4, "width": 32}, **PLAIN, embedding=32, sharing=sharing)
  return _run(budget, model, (MLM(),))


def capacity() -> Table:
  """Shared layers hold fewer facts."""
  return _table(
    "Shared layers and the number of facts",
    "facts/{}",
    "sharing all parameters costs accuracy (ALBERT, Table 4)",
    dialled((shared, separate), "data.source=controlled:facts/{}", (8, 12, 16)),
    (
      Better("mlm_loss", "separate-16", than="shared-16"),
      NotWorse("mlm_loss", "shared-8", than="separate-8", margin=0.05),
    ),
    "words; the facts are their square",
    {"mlm_loss": "held-out MLM loss, nats"},
    "Sharing costs what has to be stored, and nothing where there is little to store.",
  )


# The share of predicted tokens (Wettig et al. 2023; Clark et al. 2020, section 3.4).


def share_05(budget: Budget = "small") -> Experiment:
  """5% of the tokens are predicted."""
  return _bert(budget, MLM(rate=0.05))


def share_15(budget: Budget = "small") -> Experiment:
  """15% of the tokens are predicted, as in BERT."""
  return _bert(budget, MLM(rate=0.15))


def share_40(budget: Budget = "small") -> Experiment:
  """40% of the tokens are predicted."""
  return _bert(budget, MLM(rate=0.4))


def share_80(budget: Budget = "small") -> Experiment:
  """80% of the tokens are predicted."""
  return _bert(budget, MLM(rate=0.8))


def predictions() -> Table:
  """More predicted tokens teach more, until the context is gone."""
  rows = (share_05, share_15, share_40, share_80)
  arms = tuple(
    Arm.of(
      row,
      name=row.__name__.replace("_", "-"),
      dial=steps,
      settings=["data.source=controlled:markov/0.4", f"steps={steps}", f"schedule.save={steps}"],
    )
    for steps in (250, 500, 1000)
    for row in rows
  )
  return _table(
    "The share of predicted tokens",
    "markov/0.4",
    "a model learns from what it predicts: 15% waste most of a step (ELECTRA, section 1), and 40% "
    "are better (Wettig et al. 2023)",
    arms,
    (
      Better("mlm_loss", "share-15-500", than="share-05-500"),
      Better("mlm_loss", "share-40-500", than="share-15-500"),
      Better("mlm_loss", "share-40-1000", than="share-80-1000"),
    ),
    "steps of training",
    {"mlm_loss": "held-out MLM loss at 15%, nats"},
    "Early in training the number of predictions counts, later the context that is left.",
  )
