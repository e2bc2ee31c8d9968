"""The story in one table: a model of every generation on the same text. Each function is a run.

All read the installed text once, in one vocabulary of 4,096 byte pairs. They have two layers of about
400,000 parameters beside the token table (an encoder-decoder one in its encoder and one in its
decoder), and the learning rate of their `tiny` experiment. A step has 4 rows of 64 tokens, that of
encoders and encoder-decoders 32 of 32, as their `tiny` experiments have it: in rows of 64 tokens
BERT stayed near the unigram model. Nothing else was tuned for this page. The n-gram model counts as
many tokens as the others read. Word vectors have words for tokens, and read the whole text five
times, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from experiments.fasttext import base as fasttext_base
from experiments.glove import base as glove_base
from experiments.word2vec import base as word2vec_base
from plm_jax.ablate.story import Family, blocks
from plm_jax.ablate.table import Arm, Better, Ordered, Table
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.packing import DocSentences
from plm_jax.data.pipeline import Corpus
from plm_jax.data.running_text import RunningText
from plm_jax.data.segments import SegmentPair
from plm_jax.data.tokenizers import BytePairs
from plm_jax.experiment import Budget, Experiment, Intervals
from plm_jax.models.albert import Albert
from plm_jax.models.bart import Bart
from plm_jax.models.bert import Bert
from plm_jax.models.electra import Electra
from plm_jax.models.elmo import Elmo
from plm_jax.models.gpt import Gpt2
from plm_jax.models.lstm import Lstm
from plm_jax.models.model import Model
from plm_jax.models.ngram import NGram
from plm_jax.models.nnlm import Nnlm
from plm_jax.models.t5 import T5v11
from plm_jax.objectives.bilm import BiLM
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.denoising import Denoising
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from plm_jax.objectives.rtd import RTD, GeneratorMLM
from plm_jax.objectives.sop import SOP
from plm_jax.objectives.span_corruption import SpanCorruption
from plm_jax.optim.adafactor import Adafactor
from plm_jax.optim.adamw import AdamW

ROWS, LENGTH = 4, 64
SHORT = {"rows": 32, "length": 32}  # of encoders and encoder-decoders
BUDGETS: dict[Budget, Budget] = {"smoke": "smoke", "small": "small", "paper": "small"}
STEPS = {"smoke": 10, "small": 5_600, "paper": 5_600}  # one pass over the text
TEXT = Corpus(
  source="tfds:installed_text",
  tokenizer=BytePairs(vocab_size=4096, sentinels=20),  # T5's; unused by the others
  segments=PackedDocuments(),
  length=LENGTH,
  held_out=0.05,
)
PAIRS = SegmentPair()
STREAM = PackedDocuments(ordered=True)
SIZE = {"layers": 2, "width": 128, "heads": 2, "positions": LENGTH}
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.05}


def ngram(budget: Budget = "small") -> Experiment:
  """Kneser-Ney of order 5 (1995 to 1999)."""
  tokens = STEPS[budget] * ROWS * LENGTH
  return replace(gpt(budget), model=NGram(tokens=tokens), steps=0)


def nnlm(budget: Budget = "small") -> Experiment:
  """The neural probabilistic language model (2003): 4 tokens of context, 100 hidden units."""
  model = Nnlm(hidden=100, direct=False)
  return _run(budget, model, CLM(), AdamW(peak=2e-3, schedule="wsd", decay=0.01))


def word2vec(budget: Budget = "small") -> Experiment:
  """Skip-gram with negative sampling (2013), 128 dimensions."""
  return _vectors(word2vec_base(BUDGETS[budget]))


def glove(budget: Budget = "small") -> Experiment:
  """GloVe (2014), 128 dimensions, 5 passes over the counts."""
  experiment = _vectors(glove_base(BUDGETS[budget]))
  return replace(experiment, steps=min(experiment.steps, 1_200))


def fasttext(budget: Budget = "small") -> Experiment:
  """fastText (2017), 128 dimensions, n-grams in 100,000 buckets."""
  return _vectors(fasttext_base(BUDGETS[budget]))


def lstm(budget: Budget = "small") -> Experiment:
  """An LSTM (2014) of 2 layers of 160, whose state is carried."""
  optim = AdamW(peak=4e-3, clip=1.0, decay=0.0)
  return _run(budget, Lstm(width=160, tied=True), CLM(), optim, STREAM)


def elmo(budget: Budget = "small") -> Experiment:
  """ELMo's language model (2018): 2 layers in each direction, 192 units projected to 64."""
  model = Elmo(
    width=64, cell=192, filters=((1, 8), (2, 16), (3, 32)), longest=12, highways=1, dropout=0.0
  )
  return _run(budget, model, BiLM(), AdamW(peak=4e-3, clip=10.0, decay=0.0), STREAM)


def gpt(budget: Budget = "small") -> Experiment:
  """GPT-2 (2019)."""
  return _run(budget, Gpt2(**SIZE, **PLAIN), CLM(), AdamW(peak=2e-3, b2=0.98, schedule="wsd"))


def bert(budget: Budget = "small") -> Experiment:
  """BERT (2018), 40% of the tokens masked, with NSP."""
  return _run(budget, Bert(**SIZE, **PLAIN), (MLM(rate=0.4), NSP()), _encoder(), PAIRS, **SHORT)


def albert(budget: Budget = "small") -> Experiment:
  """ALBERT (2019): two passes of one layer of 176, with SOP."""
  model = Albert(**SIZE | {"width": 176}, **PLAIN, embedding=64)
  swapped = SegmentPair(next="swapped")
  return _run(budget, model, (MLM(rate=0.4), SOP()), _encoder(), swapped, **SHORT)


def electra(budget: Budget = "small") -> Experiment:
  """ELECTRA (2020), a generator of half the width."""
  model = Electra(**SIZE, **PLAIN, generator_width=1 / 2)
  segments = SegmentPair(next="none")
  return _run(budget, model, (GeneratorMLM(), RTD()), _encoder(), segments, **SHORT)


def t5(budget: Budget = "small") -> Experiment:
  """T5 1.1 (2020), spans of 3."""
  model = T5v11(layers=1, width=128, heads=2, hidden=256)
  optim = Adafactor(peak=2e-2, hold=max(2, STEPS[budget] // 12))  # a third of its steps
  return _run(budget, model, SpanCorruption(z_loss=1e-4), optim, RunningText(), **SHORT)


def bart(budget: Budget = "small") -> Experiment:
  """BART (2020), text infilling."""
  model = Bart(**SIZE | {"layers": 1}, dropout=0.0, initializer_range=0.05)
  return _run(budget, model, Denoising(), _encoder(), DocSentences(), **SHORT)


def _encoder() -> AdamW:
  return AdamW(peak=1.5e-3, b2=0.98, schedule="wsd")


def _run(
  budget: Budget,
  model: Model,
  objectives,
  optim,
  segments=None,
  rows: int = ROWS,
  length: int = LENGTH,
) -> Experiment:
  """A model of the story on the common text. rows, length: of a step; their number follows."""
  steps = STEPS[budget] * ROWS * LENGTH // (rows * length)
  objectives = objectives if isinstance(objectives, tuple) else (objectives,)
  schedule = Intervals(log=max(1, steps // 20), evaluate=max(1, steps // 4), evaluation_rows=256)
  return Experiment(
    model=model,
    objectives=objectives,
    data=replace(TEXT, segments=segments or TEXT.segments, length=length),
    optim=replace(optim, warmup=max(1, steps // 12)),
    global_batch=rows,
    steps=steps,
    schedule=replace(schedule, save=max(1, steps // 2)),
  )


def _vectors(experiment: Experiment) -> Experiment:
  data = replace(experiment.data, held_out=TEXT.held_out)
  return replace(experiment, model=replace(experiment.model, width=128), data=data)


# The same processor time for all: SECONDS of one core, at the rates that `story` measured.

SECONDS = 90
RATES = {  # tokens per second of one core, the mean of the seeds' medians
  **{"nnlm": 16_600, "lstm": 8_800, "elmo": 5_000, "gpt": 9_400, "bert": 16_400},
  **{"albert": 12_100, "electra": 11_600, "t5": 20_200, "bart": 10_500},
}


def ngram_whole(budget: Budget = "small") -> Experiment:
  """The n-gram model of the whole text, which it counts in seconds."""
  return replace(ngram(budget), model=NGram())


def nnlm_in_time(budget: Budget = "small") -> Experiment:
  """The NNLM in the same time."""
  return _in_time(budget, nnlm)


def lstm_in_time(budget: Budget = "small") -> Experiment:
  """The LSTM in the same time."""
  return _in_time(budget, lstm)


def elmo_in_time(budget: Budget = "small") -> Experiment:
  """ELMo in the same time."""
  return _in_time(budget, elmo)


def gpt_in_time(budget: Budget = "small") -> Experiment:
  """GPT-2 in the same time."""
  return _in_time(budget, gpt)


def bert_in_time(budget: Budget = "small") -> Experiment:
  """BERT in the same time."""
  return _in_time(budget, bert)


def albert_in_time(budget: Budget = "small") -> Experiment:
  """ALBERT in the same time."""
  return _in_time(budget, albert)


def electra_in_time(budget: Budget = "small") -> Experiment:
  """ELECTRA in the same time."""
  return _in_time(budget, electra)


def t5_in_time(budget: Budget = "small") -> Experiment:
  """T5 in the same time."""
  return _in_time(budget, t5)


def bart_in_time(budget: Budget = "small") -> Experiment:
  """BART in the same time."""
  return _in_time(budget, bart)


def _in_time(budget: Budget, row: Callable[..., Experiment]) -> Experiment:
  """A run of as many steps as fit into `SECONDS`."""
  experiment = row(budget)
  if budget == "smoke":
    return experiment
  steps = SECONDS * RATES[row.__name__] // (experiment.global_batch * experiment.data.length)
  optim = replace(experiment.optim, warmup=steps // 12)
  if isinstance(optim, Adafactor):
    optim = replace(optim, hold=steps // 3)
  return replace(experiment, steps=steps, optim=optim)


ARMS = (
  *(Arm.of(ngram, name="n-gram"), Arm.of(nnlm), Arm.of(lstm), Arm.of(elmo), Arm.of(gpt)),
  *(Arm.of(word2vec), Arm.of(glove), Arm.of(fasttext)),
  *(Arm.of(bert), Arm.of(albert), Arm.of(electra), Arm.of(t5), Arm.of(bart)),
)
FAMILIES = (
  Family("counts", "#555555", ("n-gram",)),
  Family("networks before the Transformer", "#b45309", ("nnlm", "lstm", "elmo")),
  Family("word vectors", "#4d7c0f", ("word2vec", "glove", "fasttext")),
  Family("decoders", "#1d4ed8", ("gpt",)),
  Family("encoders", "#be123c", ("bert", "albert", "electra")),
  Family("encoder-decoders", "#7e22ce", ("t5", "bart")),
)
YEARS = {
  **{"n-gram": 1995, "nnlm": 2003, "lstm": 2014, "elmo": 2018, "gpt": 2018},
  **{"word2vec": 2013, "glove": 2014, "fasttext": 2017},
  **{"bert": 2018, "albert": 2019, "electra": 2020, "t5": 2020, "bart": 2020},
}
BITS, ORDER, TAGS = "clm_bits_per_byte", "probe_order_all_accuracy", "probe_tag_accuracy"


CLAIMS = (
  Ordered(
    BITS,
    ("n-gram", "nnlm", "lstm", "gpt"),
    sentence="every generation of left-to-right models predicts the text better",
  ),
  Better(
    TAGS,
    "bert",
    than="gpt",
    sentence="encoders read: BERT's states know parts of speech better than GPT's",
  ),
  Better(
    ORDER,
    "bert",
    than="gpt",
    sentence="encoders read: BERT's states know the order of words better than GPT's",
  ),
  Better(
    "blimp",
    "gpt",
    than="n-gram",
    sentence="decoders write: GPT prefers grammatical sentences more often than the n-grams",
  ),
  Better(
    "gap_bits_per_byte",
    "bart",
    than="gpt",
    sentence="encoder-decoders transform: BART fills a gap of three tokens better than GPT",
  ),
)
CAVEAT = (
  "Perplexities of left-to-right (`clm`) and of masked models (`pseudo`) are not of the same kind: "
  "a masked model reads both sides. ELECTRA's are those of its generator. No recipe was tuned for "
  "this table, but for the rows of encoders: in rows of 64 tokens BERT stayed near the unigram model."
)


def story() -> Table:
  """A model of every generation on the same text, with the same number of tokens."""
  static = "states in context know the order of words, static vectors do not"
  return Table(
    title="The story: a model of every generation on the same text",
    source="ours",
    question="Thirty years of language models read the same text. What can each of them do afterwards?",
    arms=ARMS,
    claims=(*CLAIMS, Better(ORDER, "gpt", than="word2vec", sentence=static)),
    blocks=partial(blocks, families=FAMILIES, years=YEARS),
    caveat=CAVEAT,
  )


def story_in_time() -> Table:
  """A model of every generation on the same text, in the same processor time."""
  arms = (
    *(Arm.of(ngram_whole, name="n-gram"), Arm.of(nnlm_in_time, name="nnlm")),
    *(Arm.of(lstm_in_time, name="lstm"), Arm.of(elmo_in_time, name="elmo")),
    *(Arm.of(gpt_in_time, name="gpt"), Arm.of(bert_in_time, name="bert")),
    *(Arm.of(albert_in_time, name="albert"), Arm.of(electra_in_time, name="electra")),
    *(Arm.of(t5_in_time, name="t5"), Arm.of(bart_in_time, name="bart")),
  )
  return Table(
    title="The story in the same processor time",
    source="ours",
    question="The same models have the same processor time instead of the same text. Which of them is worth it?",
    arms=arms,
    claims=CLAIMS,
    blocks=partial(blocks, families=FAMILIES, years=YEARS),
    caveat=CAVEAT + " The n-gram model counts the whole text, which takes seconds.",
  )
