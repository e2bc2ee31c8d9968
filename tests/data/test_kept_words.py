"""Subsampled rows and counted pairs of words: by the published formulas, exact, and resumable."""

import math
from collections import Counter

import numpy as np
import pytest

from plm_jax.data import cooccurrences
from plm_jax.data.cooccurrences import Cooccurrences
from plm_jax.data.kept_words import KeptWords, keep_probability
from plm_jax.data.store import TokenStore
from plm_jax.data.vocab import Vocab
from plm_jax.errors import UserError

V = 12
VOCAB = Vocab(size=V, pad=0, special=np.arange(V) < 4, word_start=np.ones(V, bool))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
  """5,000 tokens in 40 documents; a few words are very frequent."""
  folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
  share = 1.0 / np.arange(1, V - 3) ** 1.5
  tokens = rng.choice(np.arange(4, V), 5000, p=share / share.sum())
  ends = np.sort(rng.choice(np.arange(1, 5000), 39, replace=False))
  tokens.astype("<u2").tofile(folder / "train.tokens")
  np.array([0, *ends, 5000], "<i8").tofile(folder / "train.sentences")
  np.arange(41, dtype="<i8").tofile(folder / "train.documents")
  np.bincount(tokens, minlength=V).astype("<i8").tofile(folder / "train.counts")
  return TokenStore(folder, "train", V)


def document_of(store):
  return np.searchsorted(np.asarray(store.sentence_starts), np.arange(5000), side="right")


def test_the_probability_is_that_of_the_published_code_and_not_of_the_paper():
  """F38: sqrt(t / f) + t / f; for f = .05 and t = 1e-3 .161, where the paper has .141."""
  counts = np.array([50, 1, 949])
  assert keep_probability(counts, 1e-3)[0] == pytest.approx(0.1614, abs=1e-4)
  assert keep_probability(counts, 1e-3)[1] == 1
  assert (keep_probability(counts, 0) == 1).all()


def test_rows_are_the_kept_words_of_the_text_in_order(store):
  segments = KeptWords(sample=0.01)
  table = segments.table(store, 8, seed=1, pass_=2)
  batch = segments.read(store, table, 8, VOCAB)
  assert (batch["length"] == 8).all() and (segments.tokens(table) == 8).all()
  kept = segments._kept(store, np.arange(5000), 1, 2)
  expected = np.asarray(store.tokens)[kept]
  np.testing.assert_array_equal(batch["input_ids"].ravel(), expected[: 8 * len(table)])
  assert len(expected) - 8 * len(table) < 8
  documents = document_of(store)[kept][: 8 * len(table)].reshape(-1, 8)
  np.testing.assert_array_equal(np.diff(batch["document_ids"]), np.diff(documents))
  share = Counter(expected.tolist())[4] / store.counts[4]
  assert share == pytest.approx(keep_probability(store.counts, 0.01)[4], rel=0.15)


def test_a_pass_leaves_out_other_words_and_repeats_itself(store):
  segments = KeptWords(sample=0.01)
  one, again, other = (segments._kept(store, np.arange(5000), 0, p) for p in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert 0.1 < (one != other).mean() < 0.9
  assert KeptWords(sample=0)._kept(store, np.arange(5000), 0, 0).all()


def test_a_text_shorter_than_a_row_is_one_padded_row(store):
  segments = KeptWords(sample=0.01)
  table = segments.table(store, 8192, 0, 0)
  batch = segments.read(store, table, 8192, VOCAB)
  assert len(table) == 1 and batch["length"][0] == table["kept"][0] < 8192
  assert (batch["document_ids"][0, batch["length"][0] :] == -1).all()


def counted(store, window, symmetric):
  """{(word, context): count} by the loops of cooccur.c."""
  tokens, documents, counts = np.asarray(store.tokens), document_of(store), Counter()
  for j in range(len(tokens)):
    for i in range(max(0, j - window), j):
      if documents[i] == documents[j]:
        counts[int(tokens[j]), int(tokens[i])] += 1 / (j - i)
        if symmetric:
          counts[int(tokens[i]), int(tokens[j])] += 1 / (j - i)
  return counts


def matrix(rows):
  pairs = zip(*(rows[name].ravel().tolist() for name in ("word", "context", "count")), strict=True)
  return {(w, c): x for w, c, x in pairs if x}


@pytest.mark.parametrize("symmetric", [True, False])
def test_counts_are_those_of_the_loops_in_parts_and_shards(store, symmetric, monkeypatch):
  expected = counted(store, 5, symmetric)
  whole = Cooccurrences(window=5, symmetric=symmetric).table(store, 1, 0, 0)
  monkeypatch.setattr(cooccurrences, "PART", 700)
  monkeypatch.setattr(cooccurrences, "SHARD", 10)
  monkeypatch.setattr(cooccurrences, "_FREQUENT", 3)
  parts = Cooccurrences(window=5, symmetric=symmetric).table(store, 1, 0, 0)
  for ours in (matrix(whole), matrix(parts)):
    assert ours.keys() == expected.keys()
    for pair, count in expected.items():
      assert math.isclose(ours[pair], count, rel_tol=1e-5)


def test_the_matrix_is_symmetric_and_pairs_at_a_distance_count_less(store):
  ours = matrix(Cooccurrences(window=4).table(store, 1, 0, 0))
  assert all(math.isclose(ours[b, a], x, rel_tol=1e-6) for (a, b), x in ours.items())
  plain = matrix(Cooccurrences(window=4, distance=False).table(store, 1, 0, 0))
  assert all(plain[pair] >= x for pair, x in ours.items()) and plain != ours


def test_rows_of_entries_are_read_without_padding(store):
  segments = Cooccurrences(window=5)
  table = segments.table(store, 8, 0, 0)
  batch = segments.read(store, table, 8, VOCAB)
  assert (batch["cooccurrences"] > 0).all() and (batch["length"] == 8).all()
  assert batch["context_ids"].shape == batch["input_ids"].shape == (len(table), 8)
  few = segments.table(store, 8192, 0, 0)
  read = segments.read(store, few, 8192, VOCAB)
  assert len(few) == 1 and (read["cooccurrences"] > 0).sum() == read["length"][0] == 64


@pytest.mark.parametrize("make", [lambda: KeptWords(sample=-1), lambda: Cooccurrences(window=0)])
def test_settings_without_a_meaning_are_refused(make):
  with pytest.raises(UserError, match="must be at least"):
    make()
