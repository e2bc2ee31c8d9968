"""GloVe and fastText train, resume, load, read texts and are exported, like other families."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from plm_jax.data.cooccurrences import Cooccurrences
from plm_jax.data.kept_words import KeptWords
from plm_jax.data.subwords import fnv1a, ngrams_of
from plm_jax.data.tokenizers import Words
from plm_jax.data.vector_files import read_vectors, write_vectors
from plm_jax.decode.neighbours import with_word_vectors
from plm_jax.errors import UserError
from plm_jax.evaluation.word_vectors import words_of_run
from plm_jax.loaded_model import LoadedModel
from plm_jax.models.compute import Compute
from plm_jax.models.glove import Glove
from plm_jax.models.word_vectors import WordVectors
from plm_jax.objectives.cooccurrence import LogCounts
from plm_jax.objectives.word2vec import CBOW, SkipGram
from plm_jax.optim.sgd import SGD, Adagrad
from plm_jax.runs import Run
from plm_jax.tasks.classify import Classify
from plm_jax.train import report
from tests import toy_run
from tests.tasks.conftest import examples_of
from tests.toy_run import TOY, assert_equal, run

WORDS = Words(vocab_size=64, min_count=1, drop_unknown=True)
NGRAMS = dataclasses.replace(WORDS, buckets=40, shortest=1, longest=2)
GLOVE = dataclasses.replace(
  TOY,
  model=Glove(width=8),
  objectives=(LogCounts(x_max=10.0),),
  data=dataclasses.replace(TOY.data, length=8, tokenizer=WORDS, segments=Cooccurrences(window=3)),
  optim=Adagrad(updates=2),
)
FASTTEXT = dataclasses.replace(
  TOY,
  model=WordVectors(width=8, buckets=40, scale=1.0),
  objectives=(SkipGram(window=3, negatives=3, block=8, shared=8, power=0.5),),
  data=dataclasses.replace(TOY.data, length=16, tokenizer=NGRAMS, segments=KeptWords(sample=1e-2)),
  optim=SGD(peak=0.004),  # all words of the toy language share n-grams
)


@pytest.mark.parametrize(("experiment", "share"), [(GLOVE, 0.999), (FASTTEXT, 0.999)])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(tmp_path, experiment, share):
  state, records = run(tmp_path / "whole", experiment)
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed/checkpoints/12")
  resumed, again = run(tmp_path / "killed", experiment)
  assert_equal(resumed, state)
  assert again == records
  (name,) = (o.name for o in experiment.objectives)
  train = [r[f"{name}/loss"] for r in records if r["split"] == "train"]
  assert train[-1] < share * train[0]


def run_of(experiment) -> Run:
  ready = toy_run.prepared(tokenizer=experiment.data.tokenizer)
  experiment = experiment.resolve(ready.tokenizer.vocab.size)
  params = experiment.init_parameters(jax.random.key(0))
  return Run(experiment=experiment, params=params, tokenizer=ready.tokenizer)


def test_the_vector_of_a_word_with_n_grams_is_the_same_in_training_and_in_the_table():
  fasttext = run_of(FASTTEXT)
  train, _ = toy_run.batches(FASTTEXT)
  batch = train(0)
  states = fasttext.params(batch, Compute(dtype="float32"))
  table = np.asarray(with_word_vectors(fasttext.params, fasttext.tokenizer).token.table)
  np.testing.assert_allclose(states, table[batch["input_ids"]], atol=1e-6)
  assert not np.allclose(table, fasttext.params.token.table)


def test_an_n_gram_gets_the_whole_gradient_of_its_words():
  fasttext, (train, _) = run_of(FASTTEXT), toy_run.batches(FASTTEXT)
  batch, compute = train(0), Compute(dtype="float32")

  def total(params):
    return params(batch, compute).sum()

  grads = jax.grad(total)(fasttext.params)
  counts = np.bincount(batch["input_ids"].ravel(), minlength=len(grads.token.table))
  np.testing.assert_allclose(grads.token.table[:, 0], counts, rtol=1e-6)
  real = batch["ngram_word"] < 16
  of_ngrams = np.bincount(batch["ngrams"][real], minlength=40)
  np.testing.assert_allclose(grads.subword.table[:, 0], of_ngrams, rtol=1e-6)


def test_the_vector_of_glove_is_the_sum_of_both():
  glove = run_of(GLOVE)
  table = with_word_vectors(glove.params, glove.tokenizer).token.table
  np.testing.assert_allclose(table, glove.params.token.table[...] + glove.params.context.table[...])


@pytest.mark.parametrize("experiment", [GLOVE, FASTTEXT])
def test_a_loaded_run_finds_neighbours_and_reads_texts(tmp_path, experiment):
  run_of(experiment).save(tmp_path / "run")
  model = LoadedModel(Run.load(tmp_path / "run"), tmp_path / "run")
  (near,) = model.neighbours("w1", best=3).values()
  assert len(near) == 3 and "w1" not in [n.token for n in near]
  table = words_of_run(model.run)
  ours = model.encode(["w1 w2 w2"])[0]
  mean = (table.vector("w1") + 2 * table.vector("w2")) / 3
  np.testing.assert_allclose(ours, mean, atol=1e-5)
  results = report.Results(model.run.experiment, [], None, [])
  shown = report.examples(model.run.params, results, toy_run.prepared(tokenizer=WORDS))
  assert "no examples" in shown


def test_unknown_words_have_vectors_from_n_grams_and_survive_the_file(tmp_path):
  table = words_of_run(run_of(FASTTEXT))
  write_vectors(tmp_path / "m.bin", table, "fasttext")
  again = read_vectors(tmp_path / "m.bin")
  assert again.words == table.words
  for word in ("w1", "w999"):
    np.testing.assert_allclose(again.vector(word), table.vector(word), atol=1e-6)
  model = LoadedModel(run_of(FASTTEXT), tmp_path)
  assert len(model.neighbours("w999", best=2)["w999"]) == 2
  with pytest.raises(UserError, match="'w999' is not among"):
    LoadedModel(run_of(GLOVE), tmp_path).neighbours("w999")


def test_cbow_reads_n_grams_too():
  experiment = dataclasses.replace(
    FASTTEXT, objectives=(CBOW(window=3, negatives=3, block=8, shared=8),)
  )
  fasttext, (train, _) = run_of(experiment), toy_run.batches(experiment)
  (objective,), batch = experiment.objectives, train(0)
  hidden = fasttext.params(batch, Compute(dtype="float32"))
  total, count = objective.loss(fasttext.params, hidden, batch, None)["loss"]
  # Outputs of zeros; a few negatives are the word itself and are left out.
  assert 3.4 * np.log(2) < float(total / count) < 4 * np.log(2)


def test_a_table_of_words_can_be_fine_tuned_to_classify():
  params = WordVectors(width=8, vocab_size=20).init(jax.random.key(0), {"classes": 3})
  ids = np.array([[4, 5, 6, 0], [4, 5, 6, 7]])
  batch = {"input_ids": ids, "length": np.array([3, 3])}
  logits = params.class_logits(params(batch, Compute(dtype="float32")), batch, None)
  assert logits.shape == (2, 3)
  np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)  # padding does not count


NAMES = ["never", "good", "über", "bad"]


def rows_of(word_ngrams, characters, texts):
  """The classes' scores of texts, and their batch."""
  tokenizer = Words(min_count=1, buckets=50 if characters else 0).train(NAMES)
  config = WordVectors(
    width=8, buckets=50, word_ngrams=word_ngrams, vocab_size=tokenizer.vocab.size
  )
  examples = examples_of([tokenizer.encode(text) for text in texts])
  rows = Classify(labels=("a", "b"), length=6).rows(examples, config, tokenizer)
  batch = rows.batch(np.arange(len(texts)), np.ones(len(texts), np.float32))
  params = config.init(jax.random.key(0), {"classes": 2})
  return params, batch, params.class_logits(params(batch, Compute(dtype="float32")), batch, None)


def test_bigrams_of_words_are_hashed_as_in_fasttext():
  """dictionary.cc: `h = h * 116049371 + hashes[j]` in 64 bits, the hashes as signed numbers."""
  _, batch, _ = rows_of(2, False, ["never über good", "bad"])

  def signed(word):
    h = int(fnv1a([word])[0])
    return h - 2**32 if h >= 2**31 else h

  assert min(map(signed, NAMES)) < 0 < max(map(signed, NAMES))
  pairs = [("never", "über"), ("über", "good")]
  expected = [((signed(a) * 116049371 + signed(b)) % 2**64) % 50 for a, b in pairs]
  assert batch["bag"].tolist() == [[*expected, *[-1] * 4], [-1] * 6]


def test_the_classifier_reads_the_mean_of_words_and_all_n_grams():
  params, batch, logits = rows_of(3, True, ["never good", "good never", "bad"])
  bag = batch["bag"]
  assert (bag[2] >= 0).sum() == len(ngrams_of("bad", 3, 6))
  words, table = params.token.table[...], params.subword.table[...]
  for row, size in enumerate((2, 2, 1)):
    of_ngrams = table[bag[row][bag[row] >= 0]]
    mean = np.concatenate([words[batch["input_ids"][row, :size]], of_ngrams]).mean(axis=0)
    expected = mean @ params.classes.kernel[...] + params.classes.bias[...]
    np.testing.assert_allclose(logits[row], expected, atol=1e-6)
  assert not np.allclose(logits[0], logits[1], atol=1e-7)  # the order of the words
  _, batch, logits = rows_of(0, True, ["never good", "good never"])
  assert "bag" not in batch
  np.testing.assert_allclose(logits[0], logits[1], atol=1e-7)


def test_n_grams_of_words_need_a_table():
  with pytest.raises(UserError, match=r"model.word_ngrams=2 needs model.buckets above 0"):
    WordVectors(word_ngrams=2)
