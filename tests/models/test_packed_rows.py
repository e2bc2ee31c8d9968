"""Several documents in one row: encoders compute what they compute for rows of one document."""

import dataclasses

import jax
import numpy as np
import pytest

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.models.albert import Albert
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.distilbert import DistilBert
from plm_jax.models.electra import ElectraEncoder
from plm_jax.models.modernbert import ModernBert
from plm_jax.models.roberta import Roberta
from plm_jax.objectives.mlm import MLM
from tests import toy_run

SIZES = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 50, "positions": 24}
MODELS = {
  "bert": Bert(**SIZES),
  "roberta": Roberta(**SIZES),  # positions count from 2
  "modernbert": ModernBert(**SIZES | {"layers": 4, "hidden": 24, "window": 3}),
  "left_to_right": Bert(**SIZES, attention="causal"),
  "albert": Albert(**SIZES, embedding=8),
  "electra": ElectraEncoder(**SIZES, embedding=8),
  "distilbert": DistilBert(**SIZES),
}
FAST = ("bert", "roberta", "modernbert")
LENGTHS = [7, 4, 9]  # of documents; the packed row has 24 columns


def batches():
  """Three documents in rows of one document, and in one row; int32, as segment ids too."""
  random, columns = np.random.default_rng(0), np.arange(max(LENGTHS))
  real = columns < np.array(LENGTHS)[:, None]
  ids = np.where(real, random.integers(5, 50, real.shape), 0).astype(np.int32)
  apart = {"input_ids": ids, "segment_ids": np.zeros_like(ids), "length": np.array(LENGTHS)}
  documents = np.repeat([0, 1, 2, -1], [*LENGTHS, 24 - sum(LENGTHS)])[None].astype(np.int32)
  packed = {
    "input_ids": np.pad(ids[real], (0, 24 - sum(LENGTHS)))[None],
    "segment_ids": np.zeros((1, 24), np.int32),
    "length": np.array([sum(LENGTHS)]),
    "document_ids": documents,
  }
  return apart, packed, real


@pytest.mark.parametrize(
  "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_packed_documents_have_the_states_of_separate_rows(name):
  model = jax.jit(lambda key: MODELS[name].init(key, {"mlm": 0}))(jax.random.key(0))
  apart, packed, real = batches()
  for layers in ("scan", "unroll"):
    compute = Compute(dtype="float32", layers=layers)
    run = jax.jit(lambda batch, compute=compute: model(batch, compute))
    states = np.asarray(run(packed))[0, : sum(LENGTHS)]
    np.testing.assert_allclose(states, np.asarray(run(apart))[real], atol=2e-5)
    as_one = {name: x for name, x in packed.items() if name != "document_ids"}
    assert np.abs(np.asarray(run(as_one))[0, : sum(LENGTHS)] - states).max() > 1e-2


@pytest.mark.slow
def test_a_masked_model_trains_on_full_rows_of_many_documents(tmp_path):
  data = dataclasses.replace(toy_run.TOY.data, segments=PackedDocuments())
  experiment = dataclasses.replace(toy_run.TOY, data=data, objectives=(MLM(),), steps=6)
  train, _ = toy_run.batches(experiment)
  assert train.fill() > 0.98
  batch, vocab = train(0), toy_run.prepared().tokenizer.vocab
  begins = np.diff(batch["document_ids"], axis=1) > 0
  assert begins.any()
  assert (batch["input_ids"][:, 1:][begins] == vocab.cls).all()  # never masked
  _, records = toy_run.run(tmp_path / "run", experiment)
  losses = [record["mlm/loss"] for record in records if record["split"] == "train"]
  assert losses[-1] < losses[0]
