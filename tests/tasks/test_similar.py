"""Sentence vectors: losses by hand, what the columns ask for, ranks, and the way to encode."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.commands.encode import encode
from plm_jax.commands.search import search
from plm_jax.errors import UserError
from plm_jax.export import hf
from plm_jax.export.from_run import from_run
from plm_jax.runs import Run, row_limit
from plm_jax.tasks.augmentation import Augmentation, AugmentedBatches
from plm_jax.tasks.examples import Example, Examples
from plm_jax.tasks.finetuning import model_cell, plan
from plm_jax.tasks.metrics import retrieval
from plm_jax.tasks.pairs import Pairs
from plm_jax.tasks.predicting import load
from plm_jax.tasks.registry import guessed
from plm_jax.tasks.similar import Similar, ranks
from plm_jax.tasks.task import Context
from plm_jax.tasks.vector_losses import Cosine, PairClasses, Ranking, Triplet
from tests.tasks.conftest import TELLING, toy_sentence


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


# --- losses: the model's states are the vectors, one token to a row


def batch_of(weights, **values):
  weights = jnp.asarray(weights, jnp.float32)
  return {"row_weight": weights, "length": jnp.ones(len(weights), jnp.int32), **values}


def vectors(*shape):
  return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def cosine(a, b):
  return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def mean(terms):
  return float(terms["loss"][0]) / float(terms["loss"][1])


def test_the_cosine_s_loss_is_its_squared_error_and_rows_that_fill_up_do_not_count():
  x = vectors(3, 2, 5)
  wanted = jnp.repeat(jnp.array([0.2, 0.9, 0.5]), 2)
  batch = batch_of([1, 1, 1, 1, 0, 0], similarity=wanted)
  terms = Cosine(together=2).loss(None, jnp.asarray(x.reshape(6, 1, 5)), batch, None)
  errors = [(cosine(*x[n]) - w) ** 2 for n, w in enumerate((0.2, 0.9))]
  assert mean(terms) == pytest.approx(np.mean(errors), rel=1e-5)
  assert float(Cosine(together=2).count(batch)) == 2


@pytest.mark.parametrize("texts", [2, 3])
def test_ranking_is_a_softmax_over_the_other_texts_of_the_batch(texts):
  x = vectors(4, texts, 5)
  # The second texts of 0 and 2 are equal, and the third of 1; the last example fills up the batch.
  numbers = np.arange(4 * texts).reshape(4, texts)
  numbers[2, 1] = numbers[0, 1]
  if texts == 3:
    numbers[1, 2] = numbers[0, 1]
  batch = batch_of(np.repeat([1, 1, 1, 0], texts), text=jnp.asarray(numbers.reshape(-1)))
  loss = Ranking(together=texts, scale=3.0)
  terms = loss.loss(None, jnp.asarray(x.reshape(4 * texts, 1, 5)), batch, None)
  candidates = {0: [0, 1], 1: [1, 0, 2], 2: [2, 1]}  # the own text first
  expected = []
  for n, others in candidates.items():
    scores = [3 * cosine(x[n, 0], x[m, 1]) for m in others]
    thirds = [m for m in range(3) if texts == 3 and numbers[m, 2] != numbers[n, 1]]
    scores += [3 * cosine(x[n, 0], x[m, 2]) for m in thirds]
    expected.append(np.log(np.sum(np.exp(scores))) - scores[0])
  assert mean(terms) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_triplet_compares_two_distances():
  x = vectors(2, 3, 5)
  terms = Triplet(together=3, margin=0.5).loss(
    None, jnp.asarray(x.reshape(6, 1, 5)), batch_of([1] * 6), None
  )
  near, far = (np.linalg.norm(x[:, 0] - x[:, k], axis=1) for k in (1, 2))
  assert mean(terms) == pytest.approx(np.maximum(near - far + 0.5, 0).mean(), rel=1e-5)
  equal = jnp.ones((6, 1, 5))  # the gradient of a distance of 0
  gradient = jax.grad(
    lambda x: Triplet(together=3).loss(None, x, batch_of([1] * 6), None)["loss"][0]
  )(equal)
  assert np.isfinite(np.asarray(gradient)).all()


def test_classes_read_both_vectors_and_their_difference():
  x = vectors(2, 2, 5)
  kernel = vectors(15, 3)

  class Model:
    def pair_classes(self, features):
      return features @ kernel

  batch = batch_of([1] * 4, label=jnp.array([2, 2, 0, 0]))
  loss = PairClasses(labels=3, together=2)
  terms = loss.loss(Model(), jnp.asarray(x.reshape(4, 1, 5)), batch, None)
  logits = np.concatenate([x[:, 0], x[:, 1], np.abs(x[:, 0] - x[:, 1])], axis=1) @ kernel
  expected = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], [2, 0]]
  assert mean(terms) == pytest.approx(expected.mean(), rel=1e-5)
  assert loss.heads == {"pair_classes": 3}


# --- reading


PAIR = {"sentence1": "a cat", "sentence2": "a dog"}
KINDS = {
  "cosine": [PAIR | {"score": x} for x in ("0.5", "3", "5")],
  "softmax": [PAIR | {"label": x} for x in ("yes", "no", "yes")],
  "ranking": [{"anchor": f"a {n}", "positive": f"b {n}"} for n in range(3)],
  "triplet": [{"anchor": f"a {n}", "positive": f"b {n}", "negative": "c"} for n in range(3)],
}


@pytest.mark.parametrize("loss", KINDS)
def test_the_columns_decide_the_loss(tmp_path, loss):
  path = written(tmp_path / "train.jsonl", KINDS[loss])
  task = Similar(source=str(path)).with_columns()
  assert task.loss == {"triplet": "ranking"}.get(loss, loss)
  assert task == task.with_columns()
  items = task.fitted(task.read_file(path, labelled=True)), task.read_file(path, labelled=True)
  assert {len(item.texts) for item in items[1]} == {task.together}
  assert task.together == (3 if loss == "triplet" else 2)
  if loss == "triplet":
    chosen = dataclasses.replace(Similar(source=str(path), loss="triplet")).with_columns()
    assert isinstance(chosen.objective(), Triplet) and chosen.negative == "negative"


@pytest.mark.parametrize(
  ("settings", "rows", "said"),
  [
    ({"loss": "triplet"}, KINDS["ranking"], "needs a third text"),
    ({"loss": "cosine"}, KINDS["softmax"], "needs numbers"),
    ({"loss": "softmax", "negative": "x"}, [PAIR | {"label": "y", "x": "z"}], "reads two texts"),
    ({"negative": "anchor"}, KINDS["ranking"], "a column of another text"),
    ({}, [PAIR | {"score": x} for x in ("-1.7e308", "1.7e308")], "too far"),
    ({"negative": "worse"}, KINDS["triplet"], "no column 'worse'"),
    ({}, [PAIR | {"score": "1"}] * 2, "all equal"),
    ({"loss": "softmax"}, [PAIR | {"label": "yes"}] * 2, "one class"),
    ({}, [{"anchor": f"a {n}", "positive": "b"} for n in range(9)], "one second text"),
    ({}, [{"anchor": "a", "positive": ""}], 'has no "positive"'),
  ],
)
def test_data_that_cannot_be_learnt_is_a_sentence(tmp_path, settings, rows, said):
  with pytest.raises(UserError, match=said):
    Similar(source=str(written(tmp_path / "train.jsonl", rows)), **settings).read_files()


def test_a_third_text_is_read_only_from_a_table_without_labels(tmp_path):
  rows = [PAIR | {"neg": str(n % 2), "score": str(n)} for n in range(3)]
  task = Similar(source=str(written(tmp_path / "train.jsonl", rows))).with_columns()
  assert (task.loss, task.negative, task.label) == ("cosine", None, "score")
  rows = KINDS["triplet"]
  _, notes = (
    Similar(source=str(written(tmp_path / "b.jsonl", rows)))
    .with_columns()
    .read_noted(str(tmp_path / "b.jsonl"))
  )
  assert "negative = 'negative'" in notes[0] and "not read" not in notes[0]
  two = written(tmp_path / "two.jsonl", KINDS["ranking"])
  task = Similar(source=str(tmp_path / "b.jsonl")).with_columns()
  assert {len(item.texts) for item in task.read_file(two, labelled=False)} == {2}
  with pytest.raises(UserError, match="no column 'negative'"):
    task.read_file(two, labelled=True)


def test_a_table_of_pairs_without_labels_is_one_of_sentence_vectors(tmp_path):
  assert guessed(str(written(tmp_path / "a.jsonl", KINDS["ranking"]))) is Similar
  assert guessed(str(written(tmp_path / "b.jsonl", KINDS["softmax"]))) is Pairs


def test_a_test_split_with_one_second_text_ranks_nothing(tmp_path):
  rows = [{"anchor": f"a {n}", "positive": f"b {n}"} for n in range(9)]
  train, test = written(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl"
  written(test, [row | {"positive": "b"} for row in rows])
  with pytest.raises(UserError, match=r"the test split of .* has one second text"):
    Similar(source=str(train), test=str(test)).read_files()


def test_a_batch_that_would_split_an_example_is_refused_before_training(
  source, recipe, couples, tmp_path
):
  settings = ["global_batch=32"]
  with pytest.raises(UserError, match="multiple of the 3 rows of an example"):
    plan(source, recipe, Similar(source=str(couples)), settings, tmp_path, tmp_path)


def test_settings_out_of_range_are_a_sentence():
  for settings in ({"loss": "dot"}, {"pooling": "sum"}, {"scale": 0.0}, {"margin": -1.0}):
    with pytest.raises(UserError, match=f"task.{next(iter(settings))}"):
      Similar(source="x", **settings)


# --- ranks


def test_ranks_count_different_texts_and_metrics_are_their_closed_forms():
  items = [Example((f"q{n}", text)) for n, text in enumerate("abac")]
  u = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [0, 1]])
  v = np.array([[1.0, 0], [0.8, 0.6], [1, 0], [0, 1]])
  assert ranks(Examples(items, []), u, v) == [1, 2, 3, 1]
  scores = retrieval(np.array([1, 2, 3, 1]))
  assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1) / 4)
  assert (scores["recall1"], scores["recall10"]) == (0.5, 1)
  assert scores["ndcg10"] == pytest.approx((2 + 1 / np.log2(3) + 1 / 2) / 4)


def test_vectors_that_are_not_finite_are_no_ranks():
  items = [Example(("a", "b"))]
  with pytest.raises(UserError, match="its training diverged"):
    Similar(source="x", loss="ranking").from_vectors(
      Examples(items, []), np.full((1, 2, 3), np.nan)
    )


def test_an_encoder_decoder_s_vectors_have_its_dropout():
  class Model:
    def encode(self, batch, compute, noise):
      return jnp.full((2, 1, 3), 2.0 if noise is None else 3.0)

  batch = batch_of([1, 1])
  losses = Cosine(together=2)
  assert float(losses.vectors(Model(), None, batch, None)[0, 0, 0]) == 2
  assert float(losses.vectors(Model(), None, batch, "noise")[0, 0, 0]) == 3


# --- training, and what comes after it


@pytest.fixture(scope="module")
def couples(tmp_path_factory):
  """Sentences that belong together have the word of the same kind."""
  kinds = sorted(TELLING)
  rows = [
    {
      "anchor": toy_sentence(7 * n, kinds[n % 3]),
      "positive": toy_sentence(11 * n + 5, kinds[n % 3]),
      "negative": toy_sentence(13 * n + 2, kinds[(n + 1) % 3]),
    }
    for n in range(60)
  ]
  return written(tmp_path_factory.mktemp("similar") / "couples.jsonl", rows)


def test_the_vectors_of_frozen_states_are_a_baseline(source, couples, tmp_path):
  from plm_jax.tasks.probe import Probe

  task, splits = Similar(source=str(couples)).read(Context(source, tmp_path))
  assert Probe.fits(splits)
  scores = Probe(source, task).cell(splits, "all", 0).test
  (words, equal) = (task.score(splits.test, task.baseline(n, splits)) for n in task.baselines)
  assert {*scores} == {*words} == {*equal} == {"mrr", "recall1", "recall10", "ndcg10"}
  assert equal["recall1"] == 0


def test_changed_texts_keep_the_size_of_a_batch(source, tokenizer, couples, tmp_path):
  task = Similar(source=str(couples), augment=Augmentation(drop=0.3))
  task, splits = task.read(Context(source, tmp_path))
  model = source.config
  rows = task.rows(splits.train, model, tokenizer)
  more = {"examples": splits.train, "task": task, "model": model, "tokenizer": tokenizer}
  batch = AugmentedBatches(rows=rows, seed=1, global_batch=12, **more)(0)
  assert {len(array) for array in batch.values()} == {12}
  assert len({*batch["text"].tolist()}) == 12


@pytest.mark.slow
def test_vectors_are_learnt_encoded_searched_and_exported(source, recipe, couples, tmp_path):
  settings = ["steps=60", "model.initializer_range=0.2", "task.test_share=0.2"]
  settings += ["task.loss=triplet"]

  def grouped(source, task, examples):
    return dataclasses.replace(recipe(source, task, examples), global_batch=24)

  chosen = plan(source, grouped, Similar(source=str(couples)), settings, tmp_path, tmp_path)
  model_cell(chosen, "random", None, 0, "toy")
  path = tmp_path / "random-all-0"
  task, trained = load(path)
  kinds = sorted(TELLING)
  items = [  # sentences that training never saw
    Example(tuple(toy_sentence(5000 + 17 * n + k, kinds[(n + k // 2) % 3]) for k in range(3)))
    for n in range(9)
  ]
  predictions = task.predict(trained, task.encode(items, trained.tokenizer))
  assert np.mean([1 / p["rank"] for p in predictions]) > 0.45  # by chance .31

  pair = [Example(item.texts[:2]) for item in items]
  again = task.predict(trained, task.encode(pair, trained.tokenizer))
  assert np.mean([1 / p["rank"] for p in again]) > 0.45

  texts = [text for item in items for text in item.texts]
  vectors_ND = encode(path, texts)
  unit = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
  similar = [p["similarity"] for p in predictions]
  np.testing.assert_allclose((unit[::3] * unit[1::3]).sum(axis=1), similar, atol=1e-5)
  ((first, *_),) = search(path, texts[1:], texts[:1], best=1)
  assert {word for word in first.text.split()} & {*TELLING[kinds[0]]}
  again = search(path, texts[1:], texts[:1], best=1, vectors=vectors_ND[1:])
  assert again[0][0] == first
  for other in (vectors_ND[1:], vectors_ND[:2, :3], vectors_ND[:2] > 0):
    with pytest.raises(UserError, match="2 texts of this model have"):
      search(path, texts[:2], ["x"], vectors=other)
  with pytest.raises(UserError, match="no finite numbers"):
    search(path, texts[:2], ["x"], vectors=np.full_like(vectors_ND[:2], np.nan))
  ((first, second),) = search(path, ["one", "one"], ["two"], vectors=vectors_ND[[0, 0]])
  assert (first.place, second.place, first.score) == (0, 1, second.score)

  run = Run.load(path)
  hf.save(from_run(run), tmp_path / "exported")
  back = hf.load(tmp_path / "exported")
  assert back.pooling.modes == ("mean",) and not back.pooling.normalize
  assert back.pooling.length == row_limit(run) >= task.length
  switches = json.loads((tmp_path / "exported" / "1_Pooling" / "config.json").read_text())
  assert switches["pooling_mode_mean_tokens"] is True
