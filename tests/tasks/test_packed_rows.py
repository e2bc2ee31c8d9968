"""Examples that share rows in training: the same losses and gradients, with less padding."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.bilstm import BiLstm
from plm_jax.models.compute import Compute
from plm_jax.models.gpt import Gpt2
from plm_jax.models.modernbert import ModernBert
from plm_jax.models.packed import PLACE, PREFIX
from plm_jax.models.roberta import Roberta
from plm_jax.models.t5 import T5
from plm_jax.objectives.objective import Terms
from plm_jax.peft.prompt import Prompt
from plm_jax.tasks.classification import Classification
from plm_jax.tasks.packed_rows import check_packing, placed
from plm_jax.tasks.rows import EncodedRows, LabelledBatches
from plm_jax.train.step import forward

SIZES = {
  "layers": 2,
  "width": 16,
  "heads": 2,
  "vocab_size": 50,
  "positions": 32,
  "initializer_range": 0.3,
}
MODELS = {
  "bert": Bert(**SIZES),
  "mean": Bert(**SIZES, classifier="mean"),
  "roberta": Roberta(**SIZES),
  "bilstm": Bert(**SIZES, classifier="bilstm"),
  "modernbert": ModernBert(**SIZES | {"layers": 4, "hidden": 24, "window": 3}),
  "gpt": Gpt2(**SIZES),  # reads its classes at the last token
}
FAST = ("mean",)


def rows_of(count: int, width: int = 30) -> EncodedRows:
  """Rows of 3 to `width` tokens, with a label each."""
  random = np.random.default_rng(1)
  length = random.integers(3, width + 1, count).astype(np.int32)
  length[0] = width
  ids = np.where(np.arange(width) < length[:, None], random.integers(5, 50, (count, width)), 0)
  ids = ids.astype(np.int32)
  segments = (np.arange(width) > length[:, None] // 2).astype(np.int32) * (ids > 0)
  values = {"length": length, "label": np.arange(count, dtype=np.int32) % 3}
  tokens = {"input_ids": ids, "segment_ids": segments.astype(np.int32)}
  return EncodedRows(tokens, values, np.arange(count), ids * 0, ids * 0)


def packed_batches(count: int = 48, **settings) -> LabelledBatches:
  return LabelledBatches(rows_of(count), seed=3, global_batch=8, packed=True, **settings)


def without_packing(batch: dict) -> dict:
  return {name: x for name, x in batch.items() if not name.startswith(PREFIX)}


def test_examples_fit_without_overlap_the_longest_first():
  lengths = np.array([3, 7, 5, 2, 4, 10])
  row, start, count = placed(lengths, 10)
  assert count == 4
  assert start[[5, 1, 2]].tolist() == [0, 0, 0]
  assert (row[3], start[3], row[0], row[4]) == (3, 0, row[1], row[2]) or row[3] != row[5]
  taken = {(r, s + i) for r, s, n in zip(row, start, lengths) for i in range(n)}
  assert len(taken) == lengths.sum() and max(column for _, column in taken) < 10


@pytest.mark.parametrize(
  "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_of_one_example(name):
  objective = Classification(labels=3)
  model = jax.jit(lambda key: MODELS[name].init(key, objective.heads))(jax.random.key(0))
  compute = Compute(dtype="float32")

  def loss(model, batch) -> Terms:
    terms, _ = forward(model, batch, (objective,), compute, None)
    return terms["class/loss"][0]

  batch = packed_batches()(0)
  assert len(batch[PREFIX + "input_ids"]) < len(batch["input_ids"])
  found = jax.jit(jax.value_and_grad(loss))(model, batch)
  expected = jax.jit(jax.value_and_grad(loss))(model, without_packing(batch))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)
  merged = {name: x for name, x in batch.items()}
  merged[PREFIX + "document_ids"] = np.zeros_like(batch[PREFIX + "document_ids"])
  assert abs(float(loss(model, merged)) - float(found[0])) > 1e-3  # documents matter


def test_an_epoch_has_every_row_once_in_one_shape_with_little_padding():
  made = [packed_batches()(step) for step in range(12)]
  for epoch in (made[:6], made[6:]):
    ids = np.concatenate([batch["input_ids"] for batch in epoch])
    assert sorted(map(tuple, ids)) == sorted(map(tuple, rows_of(48).tokens["input_ids"]))
  shapes = {batch[PREFIX + "input_ids"].shape for batch in made}
  assert len(shapes) <= 2
  used = sum(batch["length"].sum() for batch in made)
  assert used > 0.75 * sum(batch[PREFIX + "input_ids"].size for batch in made)
  for batch in made:
    real = np.arange(30) < batch["length"][:, None]
    flat = batch[PREFIX + "input_ids"].reshape(-1)
    assert (flat[batch[PLACE]][real] == batch["input_ids"][real]).all()


def test_processes_read_their_own_packed_rows_of_one_shape():
  whole = packed_batches(devices=2)(1)
  parts = [packed_batches(process_index=i, process_count=2)(1) for i in (0, 1)]
  together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  assert (together["input_ids"] == whole["input_ids"]).all()
  assert len(whole[PREFIX + "input_ids"]) % 2 == 0
  real = np.arange(30) < whole["length"][:, None]
  for batch in (whole, together):
    flat = batch[PREFIX + "input_ids"].reshape(-1)
    assert (flat[batch[PLACE]][real] == whole["input_ids"][real]).all()


def test_what_cannot_be_packed_is_refused_by_a_sentence():
  def experiment(model=MODELS["mean"], peft=None, micro_batches=0):
    compute = Compute(micro_batches=micro_batches)
    return SimpleNamespace(model=model, peft=peft, data=None, compute=compute)

  check_packing(experiment())
  for refused in (
    experiment(BiLstm(width=8)),
    experiment(T5(layers=1, width=16, heads=2, hidden=16)),
    experiment(peft=Prompt()),
    experiment(micro_batches=2),
  ):
    with pytest.raises(UserError, match="is not for"):
      check_packing(refused)


def test_rows_of_decoders_need_no_segments():
  rows = rows_of(16)
  del rows.tokens["segment_ids"]
  batch = LabelledBatches(rows, seed=3, global_batch=8, packed=True)(0)
  assert PREFIX + "input_ids" in batch and PREFIX + "segment_ids" not in batch


def test_rows_of_an_example_stay_together():
  rows = dataclasses.replace(rows_of(12), together=2)
  labels = LabelledBatches(rows, seed=3, global_batch=4, packed=True)(0)["input_ids"]
  place = [np.flatnonzero((rows.tokens["input_ids"] == ids).all(axis=1))[0] for ids in labels]
  assert all(a % 2 == 0 and b == a + 1 for a, b in zip(place[::2], place[1::2]))
