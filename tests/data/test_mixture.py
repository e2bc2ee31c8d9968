"""Claims about several texts in one corpus: exact shares, and batches that any host can make."""

import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plm_jax.data.mixture import MixedBatches, mixed_counts, prepare_each
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.data.pipeline import Batches, Corpus, iterate
from plm_jax.data.texts import BLOCK, named_texts, rows_of_block
from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.models.ngram import NGram
from plm_jax.objectives.mlm import MLM
from plm_jax.objectives.nsp import NSP
from tests.data.test_pipeline import assert_same
from tests.data.toy_store import random_store, toy_vocab
from tests.toy_language import write_corpus
from tests.toy_run import LANGUAGE, TOY

CORPUS = Corpus(length=64, passes=2)
OLD, NEW = random_store(60), random_store(9, seed=4)


def part(store, **hosts):
  return Batches(store, CORPUS, (MLM(), NSP()), toy_vocab(), 3, 16, **hosts)


def mixture(rows=(300, 700), **hosts):
  return MixedBatches({"old": part(OLD, **hosts), "new": part(NEW, **hosts)}, np.array(rows))


def rows_of(batch):
  """The rows of a batch with all their arrays, as bytes."""
  return [b"".join(batch[name][i].tobytes() for name in sorted(batch)) for i in range(16)]


def test_every_thousand_rows_have_the_exact_shares():
  batches = mixture()
  for block in (0, 7):
    text, _ = batches._order(block * BLOCK + np.arange(BLOCK), seed=3)
    assert Counter(text.tolist()) == {0: 300, 1: 700}
    assert Counter(text[:100].tolist())[0] < 60  # and they are mixed, not one after the other


def test_a_text_in_a_mixture_is_read_as_it_would_be_alone():
  """63 steps are a block and the beginning of the next; the small text is read several times."""
  mixed = [row for step in range(63) for row in rows_of(mixture()(step))]
  alone = {name: p for name, p in mixture().parts.items()}
  sources = [[row for step in range(63) for row in rows_of(p(step))] for p in (alone.values())]
  text, place = mixture()._order(np.arange(63 * 16), seed=3)
  assert mixed == [sources[t][k] for t, k in zip(text, place, strict=True)]
  assert place[text == 1].tolist() == list(range((text == 1).sum()))
  assert place[text == 1].max() > 2 * alone["new"].rows()


def test_a_batch_of_a_mixture_is_a_pure_function_of_its_step():
  batches = mixture()
  first = [batches(step) for step in range(4)]
  assert_same(batches(2), first[2])
  assert_same(pickle.loads(pickle.dumps(batches))(3), first[3])
  for batch, step in zip(iterate(batches, 2, 4), (2, 3), strict=True):
    assert_same(batch, first[step])


def test_processes_together_make_the_batch_of_one():
  parts = [mixture(process_index=i, process_count=4) for i in range(4)]
  for step in (0, 62, 500):
    local = [p(step) for p in parts]
    assert_same(mixture()(step), {k: np.concatenate([b[k] for b in local]) for k in local[0]})


def test_one_text_is_read_as_without_a_mixture():
  single = MixedBatches({"": part(OLD)}, rows_of_block((), 1.0, [7]))
  assert_same(single(5), part(OLD)(5))


@pytest.mark.parametrize(
  ("weights", "alpha", "tokens", "rows"),
  [
    ((0.2, 0.8), 1.0, (5, 5), [200, 800]),
    ((1, 1, 1), 1.0, (1, 2, 3), [334, 333, 333]),
    ((0, 3), 1.0, (5, 5), [0, 1000]),
    ((), 1.0, (900, 100), [900, 100]),
    ((), 0.0, (900, 100), [500, 500]),
    ((), 0.5, (900, 100), [750, 250]),  # 30 : 10
    ((), 0.3, (10_000, 1), [941, 59]),
    ((), 1.0, (10_000_000, 1), [999, 1]),
    ((), 1e6, (900, 100), [1000, 0]),
    ((1e308, 1e308), 1.0, (5, 5), [500, 500]),
  ],
)
def test_shares_follow_the_weights_or_the_exponent(weights, alpha, tokens, rows):
  assert rows_of_block(weights, alpha, tokens).tolist() == rows


def test_names_come_from_the_places_or_from_the_user(tmp_path):
  assert named_texts("tfds:installed_text,novels/moby-dick.txt") == {
    "installed_text": "tfds:installed_text",
    "moby_dick": "novels/moby-dick.txt",
  }
  assert named_texts("old=tfds:a/b:train[:10%], new=x=y.txt") == {
    "old": "tfds:a/b:train[:10%]",
    "new": "x=y.txt",
  }
  assert named_texts("old=a.txt") == {"": "a.txt"}
  file = tmp_path / "x=y.txt"
  file.write_text("x")
  assert named_texts(f"{file},b.txt") == {"x_y": str(file), "b": "b.txt"}
  (tmp_path / "a,b.txt").write_text("x")
  assert named_texts(f"{tmp_path}/a,b.txt") == {"": f"{tmp_path}/a,b.txt"}


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"source": "a.txt,"}, "has an empty text"),
    ({"source": "x/a.txt,y/a.txt"}, "two texts with the name a; name them"),
    ({"source": "one=a.txt,two=a.txt"}, "has the text a.txt twice"),
    ({"source": "my text=a.txt,b.txt"}, "'my text' is no name: a name is a letter"),
    ({"source": "a.txt,b.txt", "weights": (1.0,)}, "has 1 weight, and data.source"),
    ({"source": "a.txt,b.txt", "weights": (0.0, 0.0)}, "one of them above 0"),
    ({"source": "a.txt,b.txt", "weights": (2.0, -1.0)}, "must be at least 0 and finite"),
    ({"source": "a.txt,b.txt", "alpha": -0.3}, "at least 0 and finite, such as 0.3"),
    ({"source": "a.txt,b.txt", "alpha": 0.3, "weights": (1.0, 1.0)}, "leave one out"),
    ({"source": "a.txt", "weights": (1.0,)}, "is one text; give several"),
    ({"source": "a.txt", "alpha": 0.3}, "is one text; give several"),
    ({"source": "a,b", "segments": PackedDocuments(ordered=True)}, "reads one from beginning"),
  ],
)
def test_mistakes_in_a_mixture_are_a_sentence(fields, said):
  with pytest.raises(UserError, match=said.replace(".", r"\.")):
    Corpus(**fields)


def test_a_model_made_from_counts_refuses_several_texts():
  data = dataclasses.replace(TOY.data, source="a.txt,b.txt")
  with pytest.raises(UserError, match="counts one; give one text"):
    dataclasses.replace(TOY, model=NGram(), steps=0, data=data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  place = tmp_path_factory.mktemp("texts")
  write_corpus(place / "a.txt", LANGUAGE, 40, sentences=6, words=12, seed=0)
  (place / "b.txt").write_text("\n\n".join(f"zebra number {i} eats grass ." for i in range(60)))
  (place / "empty.txt").write_text("")
  return place


def test_one_tokenizer_is_trained_on_all_texts_and_each_is_prepared_once(folder):
  both = Corpus(source=f"{folder}/a.txt,{folder}/b.txt", tokenizer=WordPiece(vocab_size=120),
                held_out=0.2)  # fmt: skip
  texts = prepare_each(both, folder / "cache", progress=False)
  assert list(texts) == ["a", "b"]
  one, other = (text.tokenizer for text in texts.values())
  assert one.fingerprint == other.fingerprint and "zebra" in one.pieces
  again = prepare_each(dataclasses.replace(both, weights=(0.0, 1.0)), folder / "cache", False)
  assert [t.directory for t in again.values()] == [t.directory for t in texts.values()]
  # Another partner, with the same tokenizer: this text is not read again.
  one.save(folder / "tokenizer")
  known = dataclasses.replace(both.tokenizer, path=str(folder / "tokenizer"))
  alone = Corpus(source=f"{folder}/b.txt", tokenizer=known, held_out=0.2)
  assert prepare_each(alone, folder / "cache", False)[""].directory == texts["b"].directory
  counts, own = mixed_counts(texts, np.array([0, 1000])), texts["b"].train.counts
  np.testing.assert_allclose(counts / counts.sum(), own / own.sum(), atol=1e-3)


@pytest.mark.parametrize(("name", "said"), [("empty", "is empty"), ("none", "does not exist")])
def test_an_empty_or_unknown_text_of_a_mixture_is_a_sentence(folder, name, said):
  corpus = Corpus(source=f"{folder}/a.txt,{folder}/{name}.txt", tokenizer=WordPiece(vocab_size=60))
  with pytest.raises(UserError, match=said):
    prepare_each(corpus, folder / "cache", progress=False)
