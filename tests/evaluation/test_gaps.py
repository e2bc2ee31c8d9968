"""A gap in a text is filled by every kind of model from what it can read."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.packing import DocSentences
from plm_jax.data.running_text import RunningText
from plm_jax.data.tokenizers import WordPiece
from plm_jax.evaluation import gaps as module
from plm_jax.evaluation.gaps import AROUND, GAP, gap_texts, gaps
from plm_jax.evaluation.scores import Scores
from plm_jax.models.bart import Bart
from plm_jax.models.elmo import Elmo
from plm_jax.models.gpt import Gpt2
from plm_jax.models.t5 import T5v11
from plm_jax.objectives.bilm import BiLM
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.denoising import Denoising
from plm_jax.objectives.span_corruption import SpanCorruption
from plm_jax.runs import Run
from tests.data.toy_store import ToyStore
from tests.toy_run import TOY, prepared

SIZE = {"layers": 1, "width": 16, "heads": 2, "positions": 64}
WITH_SENTINELS = WordPiece(vocab_size=64, sentinels=8)
KINDS = {
  "bert": (dataclasses.replace(TOY.model, positions=64), TOY.objectives, TOY.data.segments),
  "gpt": (Gpt2(**SIZE), (CLM(),), PackedDocuments()),
  "elmo": (
    Elmo(width=8, cell=8, filters=((1, 4),), longest=6),
    (BiLM(),),
    PackedDocuments(ordered=True),
  ),
  "t5": (T5v11(layers=1, width=16, heads=2, hidden=16), (SpanCorruption(),), RunningText()),
  "bart": (Bart(**SIZE), (Denoising(),), DocSentences()),
}


@functools.cache
def random_run(kind: str) -> Run:
  """A model with random parameters."""
  model, objectives, segments = KINDS[kind]
  ready = prepared(tokenizer=WITH_SENTINELS)
  data = dataclasses.replace(TOY.data, segments=segments, tokenizer=WITH_SENTINELS)
  experiment = dataclasses.replace(TOY, model=model, objectives=objectives, data=data)
  experiment = experiment.resolve(ready.tokenizer.vocab.size)
  params = jax.jit(experiment.init_parameters)(jax.random.key(0))
  scale = 1 if kind == "t5" else 3  # so that a context tells much
  params = jax.tree.map(lambda x: scale * x if x.dtype == jnp.float32 else x, params)
  if hasattr(params, "spelled"):
    params = params.spelled(ready.tokenizer)
  return Run(experiment=experiment, params=params, tokenizer=ready.tokenizer)


def loss_of(run: Run, texts: np.ndarray) -> float:
  """The loss of the gaps of some texts."""
  scores = Scores.of(run)
  original = module.gap_texts
  module.gap_texts = lambda store: texts
  try:
    gaps(run, prepared(tokenizer=WITH_SENTINELS), scores)
  finally:
    module.gap_texts = original
  assert scores.counts["gap_loss"] == texts.shape[0] * GAP
  assert scores.metrics["gap_bits_per_byte"] > 0
  return scores.metrics["gap_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind",
  ["bert", "gpt", "t5", *(pytest.param(k, marks=pytest.mark.slow) for k in ("elmo", "bart"))],
)
def test_both_sides_are_read_by_encoders_and_encoder_decoders_and_the_left_one_by_all(kind):
  run = random_run(kind)
  rng = np.random.default_rng(0)
  texts, another = rng.integers(8, 38, (2, 2, 2 * AROUND + GAP)).astype(np.int32)
  column = np.arange(texts.shape[1])
  before = np.where(column < AROUND, another, texts)
  after = np.where(column >= AROUND + GAP, another, texts)
  loss = loss_of(run, texts)
  assert loss_of(run, before) != pytest.approx(loss, abs=1e-5)
  reads_right = kind in ("bert", "t5", "bart")
  assert (loss_of(run, after) != pytest.approx(loss, abs=1e-5)) == reads_right


@pytest.mark.parametrize("kind", ["bert", "gpt", "t5"])
def test_equal_scores_of_all_tokens_cost_the_logarithm_of_their_number(kind):
  run = random_run(kind)
  run = dataclasses.replace(run, params=jax.tree.map(jnp.zeros_like, run.params))
  texts = np.full((2, 2 * AROUND + GAP), 9, np.int32)
  assert loss_of(run, texts) == pytest.approx(math.log(run.tokenizer.vocab.size), rel=1e-4)


def test_texts_begin_with_a_sentence_and_end_within_its_document():
  store = ToyStore([[30, 20, 60], [10], [44, 43, 42], [12] * 9])
  texts = gap_texts(store)
  length = 2 * AROUND + GAP
  starts = [0, 30, 50, 120, 164, 207, *range(249, 249 + 7 * 12, 12)]
  expected = [store.tokens[start : start + length] for start in starts]
  np.testing.assert_array_equal(texts, expected)
