"""Directories that sentence-transformers writes and reads have the vectors that we compute."""

import dataclasses

import numpy as np
import pytest

import plm_jax as plm
from plm_jax.data.tokenizers import WordPiece
from plm_jax.export.from_run import from_run, write_directory
from plm_jax.export.sentence import Pooling
from plm_jax.models.bert import Bert
from plm_jax.runs import Run
from tests import toy_run
from tests.export.peers import initial

theirs = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow  # its import takes longer than all tests of this file

TEXTS = ["the old man", "the sea is cold, and the old man and the boy are tired " * 4, "a", ""]


@pytest.fixture(scope="module")
def tokenizer():
  lines = toy_run.text().read_text().splitlines()
  return WordPiece(vocab_size=90).train(line for line in lines if line)


def run_of(tokenizer, heads, document, **fields) -> Run:
  config = Bert(layers=1, width=12, heads=3, vocab_size=90, positions=40, **fields)
  experiment = dataclasses.replace(toy_run.TOY, model=config)  # rows of 27 tokens: one text is cut
  return Run(
    experiment=experiment, params=initial(config, heads), tokenizer=tokenizer, document=document
  )


def encoder(directory):
  return theirs.SentenceTransformer(str(directory), device="cpu")


def ids_of(tokenizer, text: str) -> list[list[int]]:
  vocab = tokenizer.vocab
  return [[vocab.cls, *tokenizer.encode(text).tolist(), vocab.sep]]


@pytest.mark.parametrize(
  "pooling",
  [
    Pooling(("mean",), True, 27),
    Pooling(("cls",), False, 27),
    Pooling(("cls", "max", "mean"), True, 20, True),
    Pooling(("mean_sqrt_len_tokens",), False, 40),
  ],
  ids=lambda pooling: "+".join(pooling.modes),
)
def test_both_read_what_the_other_writes(pooling, tokenizer, tmp_path):
  run = run_of(tokenizer, {"pooler": 0}, {})
  model = dataclasses.replace(from_run(run), pooling=pooling)
  write_directory(model, tokenizer, tmp_path / "ours", trained_here=True)
  expected = encoder(tmp_path / "ours").encode(TEXTS)
  encoder(tmp_path / "ours").save(str(tmp_path / "theirs"))
  for directory in ("ours", "theirs"):
    ours = plm.load(tmp_path / directory)
    if len(pooling.modes) == 1 and pooling.modes[0] in ("mean", "cls"):
      np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)
    vector = ours(input_ids=ids_of(tokenizer, TEXTS[0]))["sentence_embedding"]
    np.testing.assert_allclose(vector, expected[:1], atol=1e-5)


def test_their_dense_gives_the_scores_of_our_classes(tokenizer, tmp_path):
  run = run_of(tokenizer, {"classes": 3}, {"classes": ["bad", "fair", "good"]}, classifier="mean")
  write_directory(from_run(run), tokenizer, tmp_path / "ours", trained_here=True)
  logits = encoder(tmp_path / "ours").encode(TEXTS)
  ours = plm.load(tmp_path / "ours")
  for number in (0, 2):
    made = ours(input_ids=ids_of(tokenizer, TEXTS[number]))
    np.testing.assert_allclose(made["logits"][0], logits[number], atol=1e-5)
