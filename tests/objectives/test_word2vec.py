"""Gradients of skip-gram, CBOW and hierarchical softmax are those of the loops of word2vec.c."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.data.draws import Draws
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError
from plm_jax.models.compute import Compute
from plm_jax.models.glove import Glove
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.cooccurrence import LogCounts
from plm_jax.objectives.huffman import huffman
from plm_jax.objectives.word2vec import CBOW, SkipGram

COMPUTE = Compute(dtype="float32")
V, D, T = 20, 6, 16
COUNTS = np.append(np.zeros(4, int), np.arange(1, V - 3)[::-1] ** 2)
VOCAB = Vocab(size=V, pad=0, special=np.arange(V) < 4, word_start=np.ones(V, bool), counts=COUNTS)


def batch_of(objective, seed=0):
  """Two rows: a full one of two documents, and one with padding."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(4, V, (2, T)).astype(np.int32)
  length = np.array([T, T - 5], np.int32)
  documents = np.where(np.arange(T) < 7, 0, 1)[None].repeat(2, 0)
  documents[1, T - 5 :] = -1
  ids[1, T - 5 :] = 0
  rows = {
    "input_ids": ids,
    "length": length,
    "document_ids": documents.astype(np.int32),
    "row_weight": np.ones(2, np.float32),
  }
  return objective.corrupt(rows, Draws(seed, 0, np.arange(2)), VOCAB)


def model_of(seed=0):
  params = WordVectors(width=D, vocab_size=V).init(jax.random.key(0), {})
  rng = np.random.default_rng(seed)
  for table in (params.token, params.output):
    table.table = jnp.asarray(rng.normal(size=(V, D)).astype(np.float32))
  return params


def gradients(objective, params, batch):
  """(loss, count, gradient of the token table, of the output table), of the sum of the losses."""

  def loss(params):
    terms = objective.loss(params, params(batch, COMPUTE), batch, None)
    return terms["loss"][0], terms["loss"][1]

  (value, count), grads = jax.value_and_grad(loss, has_aux=True)(params)
  assert float(count) == float(objective.count(batch))
  return float(value), float(count), *(np.asarray(t.table) for t in (grads.token, grads.output))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def windows(batch):
  """(row, place, places of its window), as word2vec.c moves over a sentence."""
  for row, ids in enumerate(batch["input_ids"]):
    for at in range(batch["length"][row]):
      reach, document = batch["reach"][row, at], batch["document_ids"][row]
      near = [
        c
        for c in range(at - reach, at + reach + 1)
        if c != at and 0 <= c < len(ids) and document[c] == document[at]
      ]
      yield row, at, near


def outputs_of(objective, batch, row, at):
  """(row of the output table, label, weight) of a word: as `target`, `label` in word2vec.c."""
  block, place = divmod(at, objective.block)
  word = batch["input_ids"][row, at]
  stored = batch["outputs"][row, block]
  if "codes" in batch:
    codes = batch["codes"][row, block].reshape(objective.block, -1)[place]
    nodes = stored.reshape(objective.block, -1)[place]
    return [(n, 1 - c, 1.0) for n, c in zip(nodes, codes, strict=True) if c >= 0]
  weight = objective.negatives / objective.shared
  negatives = [(n, 0, weight) for n in stored[objective.block :] if n != word]
  return [(word, 1, 1.0), *negatives]


def loops(objective, params, batch):
  """Loss and gradients by the loops of word2vec.c in float64."""
  syn0, syn1 = (np.asarray(t.table, np.float64) for t in (params.token, params.output))
  g0, g1, loss, count = np.zeros_like(syn0), np.zeros_like(syn1), 0.0, 0
  for row, at, near in windows(batch):
    ids = batch["input_ids"][row]
    groups = [near] if isinstance(objective, CBOW) else [[c] for c in near]
    for group in groups:
      if not group:
        continue
      neu1, count = syn0[ids[group]].mean(axis=0), count + 1
      neu1e = np.zeros(D)
      for target, label, weight in outputs_of(objective, batch, row, at):
        f = neu1 @ syn1[target]
        loss += -weight * np.log(sigmoid(f if label else -f))
        if "codes" in batch and abs(f) >= 6:
          continue
        g = weight * (sigmoid(f) - label)
        neu1e += g * syn1[target]
        g1[target] += g * neu1
      for c in group:  # the whole of it to every word of the window, not a share
        g0[ids[c]] += neu1e
  return loss, count, g0, g1


@pytest.mark.parametrize("kind", [SkipGram, CBOW])
@pytest.mark.parametrize("negatives", [3, 0])
def test_gradients_are_those_of_the_loops_of_word2vec(kind, negatives):
  objective = kind(window=3, negatives=negatives, block=8, shared=6)
  params, batch = model_of(), batch_of(objective)
  ours, expected = gradients(objective, params, batch), loops(objective, params, batch)
  for mine, theirs in zip(ours, expected, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)
  assert abs(expected[2]).max() > 0.1 and abs(expected[3]).max() > 0.1


def test_windows_do_not_cross_documents_and_have_all_sizes():
  objective = SkipGram(window=3, negatives=2, block=8)
  batch = batch_of(objective)
  assert set(batch["reach"].ravel()) == {1, 2, 3}
  lone = dict(batch, document_ids=np.arange(T, dtype=np.int32)[None].repeat(2, 0))
  assert float(objective.count(batch)) > 0 == float(objective.count(lone))


@pytest.mark.parametrize("power", [0.75, 0.5])
def test_negatives_are_drawn_by_a_power_of_the_counts(power):
  objective = SkipGram(negatives=5, power=power, block=8, shared=64)
  ids = np.full((400, 8), 5, np.int32)
  rows = {"input_ids": ids, "length": np.full(400, 8, np.int32)}
  drawn = objective.corrupt(rows, Draws(0, 0, np.arange(400)), VOCAB)["outputs"][..., 8:]
  shares = np.bincount(drawn.ravel(), minlength=V) / drawn.size
  expected = COUNTS**power / (COUNTS**power).sum()
  np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / drawn.size))
  assert not shares[:4].any()


def test_the_huffman_code_is_optimal_and_no_code_begins_another():
  tree = huffman(COUNTS)
  codes = ["".join(map(str, row[row >= 0])) for row in tree.codes[4:]]
  assert not any(b.startswith(a) for a in codes for b in codes if a != b)
  assert not (tree.codes[:4] >= 0).any()
  heap, total = sorted(COUNTS[4:].tolist()), 0
  while len(heap) > 1:
    total += heap[0] + heap[1]
    heap = sorted([heap[0] + heap[1], *heap[2:]])
  assert sum(c * len(code) for c, code in zip(COUNTS[4:], codes, strict=True)) == total
  roots = tree.nodes[4:, 0]
  assert (roots == len(codes) - 2).all()  # the last inner node, as in word2vec.c


def test_the_probabilities_of_the_tree_sum_to_one():
  objective, params = SkipGram(negatives=0, block=8), model_of()
  tree, vector = huffman(COUNTS), np.asarray(params.token.table)[7]
  scores = np.asarray(params.output.table)[tree.nodes[4:]] @ vector
  signs = np.where(tree.codes[4:] == 1, -1, 1)
  logs = np.where(tree.codes[4:] >= 0, np.log(sigmoid(signs * scores)), 0).sum(axis=1)
  assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5)
  assert objective.baseline(COUNTS, [batch_of(objective)], {}).scores["loss"] > 1


def test_too_few_words_for_the_negatives_are_refused():
  with pytest.raises(UserError, match=r"16 words, and objectives\.skipgram\.negatives=16"):
    SkipGram(negatives=16).check(VOCAB)


@pytest.mark.parametrize("change", [{"window": 0}, {"window": 9}, {"negatives": -1}])
def test_settings_without_a_meaning_are_refused(change):
  with pytest.raises(UserError, match=r"objectives\.skipgram"):
    dataclasses.replace(SkipGram(block=8), **change)


def test_a_row_that_blocks_do_not_divide_is_refused():
  with pytest.raises(UserError, match=r"must be a multiple of objectives\.skipgram\.block=12"):
    batch_of(SkipGram(block=12))


def test_the_loss_of_glove_is_the_papers_sum():
  params = Glove(width=D, vocab_size=V).init(jax.random.key(1), {})
  rng = np.random.default_rng(0)
  word, context = rng.integers(4, V, (2, 3, 8))
  counts = rng.uniform(0.2, 300, (3, 8)).astype(np.float32)
  counts[2, 5:] = 0  # padding
  batch = {
    "input_ids": word,
    "context_ids": context,
    "cooccurrences": counts,
    "row_weight": np.ones(3, np.float32),
  }
  tables = (params.token, params.context, params.token_bias, params.context_bias)
  w, c, b, d = (np.asarray(t.table, np.float64) for t in tables)
  f = np.minimum(1, (counts.astype(np.float64) / 100) ** 0.75)
  real = counts > 0
  error = (w[word] * c[context]).sum(-1) + b[word, 0] + d[context, 0] - np.log(counts + ~real)
  total, count = LogCounts().loss(params, params(batch, COMPUTE), batch, None)["loss"]
  assert float(total) == pytest.approx(0.5 * (f * error**2)[real].sum(), rel=1e-5)
  assert float(count) == real.sum()
  assert f[counts >= 100].min() == 1 and pytest.approx(0.0316, abs=1e-4) == 0.01**0.75  # F39
