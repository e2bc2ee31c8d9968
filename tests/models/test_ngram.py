"""N-gram models: the numbers of lmplz and of closed forms, and all that a language model can do."""

import dataclasses
import itertools
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.commands.convert import write_arpa
from plm_jax.commands.encode import encode
from plm_jax.commands.generate import generate
from plm_jax.commands.inspect import neighbours
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.evaluation import mixture
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.evaluation.scores import Scores
from plm_jax.models import arpa, ngram_smoothing
from plm_jax.models.compute import Compute
from plm_jax.models.ngram import NGram
from plm_jax.models.ngram_counts import count, documents_room, suffixes
from plm_jax.models.parameters import with_roles
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.objective import token_log_p
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape, parameter_shardings, to_global
from plm_jax.train.step import evaluation_step
from tests import toy_run
from tests.toy_run import TOY

COMPUTE = Compute(dtype="float32")
FOUR = [
  "the cat sat on the mat",
  "the dog sat on the log",
  "a cat saw the dog",
  "the dog saw a cat on the mat",
]


class Words:
  """A vocabulary of words, as lmplz has it: <unk>, <s>, </s>, and those of the lines."""

  def __init__(self, lines):
    self.pieces = ["<unk>", "<s>", "</s>", *sorted({w for line in lines for w in line.split()})]
    self.ids = {word: i for i, word in enumerate(self.pieces)}
    self.vocab = SimpleNamespace(begin=[1], end=[2], unk=0, size=len(self.pieces))
    self.predicted = np.arange(len(self.pieces)) != 1

  def rows(self, lines):
    return [[1, *[self.ids.get(w, 0) for w in line.split()], 2] for line in lines]

  def text(self, lines):
    rows = self.rows(lines)
    document = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return np.concatenate(rows).astype(np.int32), document


def model_of(lines, **fields):
  words = Words(lines)
  config = NGram(vocab_size=len(words.pieces), **fields)
  return words, *config.estimated(*words.text(lines), words.predicted)


_logits = jax.jit(lambda m, x: m.token_logits(m({"input_ids": x}, COMPUTE)))
_extend = jax.jit(lambda generator, ids, cache: generator.extend(ids, cache))
_log_p = jax.jit(lambda m, x: token_log_p(m, m({"input_ids": x}, COMPUTE)[:, :-1], x[:, 1:]))


def log10_p(model, words, lines):
  """float64 [tokens]: log10 of every token of the lines but <s>."""
  rows = words.rows(lines)
  ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, tokens in zip(ids, rows, strict=True):
    row[: len(tokens)] = tokens
  lengths = np.array([len(row) for row in rows])
  real = np.arange(ids.shape[1] - 1) < lengths[:, None] - 1
  return np.asarray(_log_p(model, ids), np.float64)[real] / math.log(10)


@pytest.mark.parametrize(
  ("order", "expected"),
  [(2, (-4.849164, -5.024488, -5.894371)), (3, (-2.953697, -3.060899, -4.852603))],
)
def test_sentences_have_the_log_probabilities_of_lmplz(order, expected):
  words, _, model = model_of(FOUR, order=order)
  lines = ["the cat sat on the mat", "the dog sat on the mat", "a zebra saw the dog"]
  ours = [log10_p(model, words, [line]).sum() for line in lines]
  np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_entries_are_those_of_lmplz():
  words, _, model = model_of(FOUR, order=3)
  entries, names = {}, [""]
  for k, table in enumerate(model.tables()):
    before = [f"{names[c]} " for c in table.contexts] if k else [""] * len(words.pieces)
    names = [b + words.pieces[w] for b, w in zip(before, table.words, strict=True)]
    values = zip(table.p / math.log(10), table.backoff / math.log(10), strict=True)
    entries |= dict(zip(names, values, strict=True))
  expected = {
    "<unk>": (-1.1352365, 0),
    "</s>": (-1.1352365, 0),
    "cat": (-1.0564191, -0.19629467),
    "<s> the": (-1.1766293, None),
    "the cat": (-0.8761419, -0.30103),
    "the mat </s>": (-0.15173535, 0),
    "<s> the cat": (-0.63233167, 0),
  }
  for name, (p, backoff) in expected.items():
    assert entries[name][0] == pytest.approx(p, abs=1e-6), name
    assert backoff is None or entries[name][1] == pytest.approx(backoff, abs=1e-6), name


@pytest.mark.parametrize(
  ("order", "types", "discounts", "log10", "expected"),
  [
    (2, (5135, 27037), (0.779898, 1.11433, 1.49025), -13514.738, 664.70),
    (3, (5135, 27037, 41255), (0.901004, 1.35262, 1.43491), -13417.582, 634.36),
  ],
)
def test_a_book_has_the_perplexity_of_lmplz(shared_data, order, types, discounts, log10, expected):
  text = shared_data("lm", "botchan.txt").read_text()
  lines = [" ".join(re.findall("[a-z']+", line.lower())) for line in text.splitlines()]
  lines = [line for line in lines if line]
  train, test = lines[:3858], lines[3858:]
  words, _, model = model_of(train, order=order)
  assert tuple(len(table.p) for table in model.tables()) == types
  ids, document = words.text(train)
  grams = count(ids, documents_room(document, order), order, len(words.pieces))
  found = ngram_smoothing.kneser_ney(grams, words.predicted)[1]
  np.testing.assert_allclose(found[-1], discounts, rtol=1e-5)
  log_p = log10_p(model, words, test)
  assert len(log_p) == 4788
  assert log_p.sum() == pytest.approx(log10, abs=2e-3)
  assert 10 ** -log_p.mean() == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("part", [1, 5, 1000])
def test_counts_are_those_of_a_dictionary_however_the_text_is_parted(part):
  ids = np.random.default_rng(0).integers(0, 4, 60).astype(np.uint16)
  document = np.sort(np.random.default_rng(1).integers(0, 5, 60))
  grams = count(ids, documents_room(document, 3), 3, 5, part)
  texts = [(i,) for i in range(5)]
  for k, these in enumerate(grams[1:], 2):
    below, texts = (
      texts,
      [(*texts[c], w) for c, w in zip(these.contexts, these.words.tolist(), strict=True)],
    )
    expected: dict[tuple, int] = {}
    for at in range(60 - k + 1):
      if document[at] == document[at + k - 1]:
        key = tuple(ids[at : at + k].tolist())
        expected[key] = expected.get(key, 0) + 1
    assert texts == sorted(expected)
    assert dict(zip(texts, these.counts.tolist(), strict=True)) == expected
    assert [below[s] for s in suffixes(grams)[k - 2]] == [text[1:] for text in texts]


@pytest.mark.parametrize("smoothing", ["kneser_ney", "jelinek_mercer", "add_k"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_after_every_context_sum_to_one(smoothing, order):
  words, config, model = model_of(FOUR, order=order, smoothing=smoothing)
  ids = np.array(list(itertools.product(range(len(words.pieces)), repeat=2)), np.int32)
  logits = _logits(model, ids)
  np.testing.assert_allclose(jnp.exp(logits).sum(axis=-1), 1, atol=1e-5)
  assert float(jnp.exp(logits[..., 1]).max()) == 0  # <s> is never predicted
  assert len(config.sizes) == 2 * (order - 1)


def test_add_k_is_its_closed_form():
  words, _, model = model_of(FOUR, order=3, smoothing="add_k", k=0.5)
  tokens = len(words.pieces) - 1

  def p(*text):
    ids = np.array([[0, *[words.ids[w] for w in text]][-3:]], np.int32)
    length = len(text) - 1  # of the context; what is padded before it is another document
    document = np.array([[0] * (2 - length) + [1] * length], np.int32)
    hidden = model({"input_ids": ids[:, :-1], "document_ids": document}, COMPUTE)
    return float(jnp.exp(model.token_logits(hidden))[0, -1, ids[0, -1]])

  assert p("the", "dog", "sat") == pytest.approx((1 + 0.5) / (3 + 0.5 * tokens))
  assert p("the", "dog", "log") == pytest.approx(0.5 / (3 + 0.5 * tokens))
  assert p("dog", "dog", "sat") == pytest.approx(1 / tokens)  # never seen: no shorter context
  assert p("the", "dog") == pytest.approx((3 + 0.5) / (7 + 0.5 * tokens))  # nothing is before


def test_jelinek_mercer_uses_the_longest_context_where_it_is_reliable():
  lines = ["a b c"] * 30 + ["d b e"] * 30
  words, _, model = model_of(lines, order=3, smoothing="jelinek_mercer")
  ids = np.array([[1, words.ids["a"], words.ids["b"]]], np.int32)
  p = jnp.exp(_logits(model, ids))[0, -1]
  assert p[words.ids["c"]] > 0.95 > 0.05 > p[words.ids["e"]]


def test_a_context_reaches_neither_beyond_its_row_nor_its_document():
  words, _, model = model_of(FOUR, order=3)
  ids = np.array([words.rows(FOUR[:1])[0] + words.rows(FOUR[1:2])[0]], np.int32)
  document = np.array([[0] * 8 + [1] * 8], np.int32)
  apart = model({"input_ids": ids, "document_ids": document}, COMPUTE)
  alone = model({"input_ids": ids[:, 8:]}, COMPUTE)
  np.testing.assert_array_equal(apart[:, 8:], alone)
  assert (apart[:, 8, 1] == -1).all()
  assert not np.array_equal(model({"input_ids": ids}, COMPUTE)[:, 8:], alone)


def test_an_arpa_file_is_read_as_it_was_written(tmp_path):
  words, config, model = model_of(FOUR, order=3)
  model.write_arpa(tmp_path / "m.arpa", words)
  again, read = config.filled(arpa.read(tmp_path / "m.arpa", words))
  assert again == config
  assert "-1.056419\tcat\t-0.1962946" in (tmp_path / "m.arpa").read_text()
  for ours, theirs in zip(read.tables(), model.tables(), strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, theirs)
  with pytest.raises(UserError, match="cannot hold an add-k model"):
    model_of(FOUR, smoothing="add_k")[2].write_arpa(tmp_path / "k.arpa", words)


def test_tokens_that_a_file_lacks_share_the_unknown_probability(tmp_path):
  words, config, model = model_of(FOUR, order=2)
  model.write_arpa(tmp_path / "m.arpa", words)
  more = Words([*FOUR, "two others"])
  _, read = dataclasses.replace(config, vocab_size=len(more.pieces)).filled(
    arpa.read(tmp_path / "m.arpa", more)
  )
  p = np.exp(read.tables()[0].p)
  assert p.sum() == pytest.approx(1, abs=1e-6)
  assert p[more.ids["two"]] == p[0] == pytest.approx(10**-1.1352365 / 3, abs=1e-6)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("ngram 2=19", "ngram 2=20", "announces 20 n-grams of order 2 and has 19"),
    ("ngram 2=19", "ngram 2=18", r"expected \\3-grams: after the announced number"),
    ("ngram 2=19", "ngram 3=19", "expected ngram 2=COUNT"),
    ("\tthe cat\t", "\tthe tiger\t", "the vocabulary has no token 'tiger'"),
    ("\tthe cat\t", "\t", "expected log10 p, 2 tokens and a backoff"),
    ("\\end\\", "", "has no line"),
    ("\\data\\", "data", "line 1: expected .data."),
    ("ngram 3=", "ngram 3=0 ", "line 4: expected ngram 3=COUNT"),
    ("ngram 2=19", "ngram 2=0", "line 3: expected ngram 2=COUNT with a count of at least 1"),
    ("ngram 2=19", "ngram 2=" + "9" * 5000, "line 3: expected ngram 2=COUNT"),
    ("\ta\t", "\tcat\t", "line 1[0-9]: expected every n-gram of order 1 once, and line [0-9]+ has"),
    ("\tthe mat\t", "\tthe log\t", "line [0-9]+: expected every n-gram of order 2 once, and line"),
    ("\tcat\t-0.1962946", "\tcat\tnan", "line [0-9]+: expected log10 p of at most 0"),
    ("\tcat\t-0.1962946", "\tcat\tinf", "line [0-9]+: expected log10 p of at most 0"),
    ("\tcat\t-0.1962946", "\tcat\t1e300", "line [0-9]+: expected log10 p of at most 0"),
    ("\n", "\n" + "x" * (1 << 20), "line 2: expected fewer than 1,048,576 bytes"),
    *(
      ("-1.056419\tcat", f"{p}\tcat", "line [0-9]+: expected log10 p of at most 0")
      for p in ("nan", "inf", "-inf", "-1e400", "0.5", "3", "-1_0", "-٣")
    ),
  ],
)
def test_a_file_that_lies_is_refused_in_one_sentence(tmp_path, old, new, message):
  words, _, model = model_of(FOUR, order=3)
  model.write_arpa(tmp_path / "m.arpa", words)
  text = (tmp_path / "m.arpa").read_text()
  assert text.count(old) >= 1
  (tmp_path / "m.arpa").write_text(text.replace(old, new, 1))
  with pytest.raises(UserError, match=message) as error:
    arpa.read(tmp_path / "m.arpa", words)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("old", "new"),
  [("cat\t-0.1962946", "cat\t0.5"), ("-1.056419\tcat", "9e-7\tcat"), ("-98.99999\t", "0\t")],
)
def test_backoffs_above_0_and_rounded_probabilities_are_read(tmp_path, old, new):
  words, _, model = model_of(FOUR, order=3)
  model.write_arpa(tmp_path / "m.arpa", words)
  text = (tmp_path / "m.arpa").read_text()
  assert old in text
  (tmp_path / "m.arpa").write_text(text.replace(old, new, 1))
  table = arpa.read(tmp_path / "m.arpa", words)[0]
  assert table.p[1] == pytest.approx(-99 * math.log(10))
  assert np.isfinite(table.p).all() and np.isfinite(table.backoff).all()


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder"])
def test_only_a_file_is_read(tmp_path, kind):
  path = Path("/dev/zero") if kind == "device" else tmp_path / "m.arpa"
  if kind != "device":
    (os.mkfifo if kind == "FIFO" else os.mkdir)(path)
  with pytest.raises(UserError, match=f"is a {kind}; expected a file"):
    arpa.read(path, Words(FOUR))


def test_a_padded_vocabulary_is_written_without_the_padding_or_refused(tmp_path):
  words, path = Words(FOUR), tmp_path / "m.arpa"
  config = NGram(vocab_size=len(words.pieces) + 25, order=3)
  predicted = np.arange(config.vocab_size) < len(words.pieces)
  config, model = config.estimated(*words.text(FOUR), predicted)
  model.write_arpa(path, words)
  again, read = config.filled(arpa.read(path, words))
  assert again == config
  jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), read, model)
  np.testing.assert_allclose(log10_p(read, words, FOUR), log10_p(model, words, FOUR), atol=1e-5)
  path.unlink()
  for fewer in (FOUR[:1], [*FOUR, *map(str, range(26))]):
    with pytest.raises(UserError, match="give the tokenizer that the model was counted with"):
      model.write_arpa(path, Words(fewer))
  _, smoothed = config.estimated(*words.text(FOUR), np.ones(config.vocab_size, bool))
  with pytest.raises(UserError, match=r"count the model with model.vocab_size=none"):
    smoothed.write_arpa(path, words)
  assert not list(tmp_path.iterdir())
  path.mkdir()
  with pytest.raises(UserError, match=r"m\.arpa cannot be written"):
    model.write_arpa(path, words)
  assert list(tmp_path.iterdir()) == [path]


def test_a_text_too_short_for_the_order_is_refused():
  with pytest.raises(UserError, match=r"no n-grams of order 4.* set model.order=3"):
    model_of(["a"], order=5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"order": 0}, "model.order=0 must be at least 1"),
    ({"order": 21}, "model.order=21 is more than 20"),
    ({"k": 0.0}, "model.k=0.0 must be above 0"),
  ],
)
def test_orders_and_constants_that_mean_nothing_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    NGram(**fields)
  with pytest.raises(UserError, match="the text has no tokens"):
    NGram(vocab_size=3).estimated(np.zeros(0, int), np.zeros(0, int), np.ones(3, bool))


def made_run(folder, **fields):
  """A run on the toy language, read again."""
  ready = toy_run.prepared()
  experiment = dataclasses.replace(
    TOY,
    model=NGram(positions=32, **fields),
    objectives=(CLM(),),
    steps=0,
    data=dataclasses.replace(TOY.data, segments=PackedDocuments()),
  ).resolve(ready.tokenizer.vocab.size)
  config, params = experiment.model.counted(experiment.data, ready.train, ready.tokenizer)
  experiment = dataclasses.replace(experiment, model=config)
  Run(experiment=experiment, params=params, tokenizer=ready.tokenizer).save(folder)
  return Run.load(folder)


@pytest.fixture(scope="module")
def ngram_run(tmp_path_factory):
  return made_run(tmp_path_factory.mktemp("ngram"), order=3)


def test_a_run_is_scored_and_generates_and_has_a_row_for_every_parameter(ngram_run):
  assert perplexity(ngram_run, "w1 w2 w3")["tokens"] == 3
  scores = Scores.of(ngram_run)
  held_out(ngram_run, toy_run.prepared(), scores)
  assert 1 < scores.metrics["clm_perplexity"] < 0.5 * ngram_run.tokenizer.vocab.size
  texts = generate(ngram_run, ["w1", "w1 w2 w3 w4"], samples=2, temperature=1.0, max_length=8)
  assert all(text.startswith("w1") for both in texts for text in both)
  assert texts == generate(
    ngram_run, ["w1", "w1 w2 w3 w4"], samples=2, temperature=1.0, max_length=8
  )
  assert {role.axes for _, role, _ in with_roles(ngram_run.params)} == {("ngrams",)}


def test_beam_search_is_refused(ngram_run):
  with pytest.raises(UserError, match="made from counts has no beam search"):
    generate(ngram_run, ["w1"], beams=2)


def test_generation_follows_the_forward_pass_and_ignores_padding(ngram_run):
  params, vocab = ngram_run.params, ngram_run.tokenizer.vocab.size
  ids = np.random.default_rng(0).integers(5, vocab, (2, 8)).astype(np.int32)
  generator = params.generator(COMPUTE)
  cache = generator.start({"pad": np.array([0, 3])}, capacity=8)
  logits, cache = _extend(generator, ids[:, :5], cache)
  for column in range(5, 8):
    logits, cache = _extend(generator, ids[:, column : column + 1], cache)
  for row, first in ((0, 0), (1, 3)):
    expected = _logits(params, ids[row : row + 1, first:])
    np.testing.assert_allclose(logits[row], expected[0, -1], atol=1e-6)
  swapped, _ = _extend(generator, ids[:, :1], cache.take(jnp.array([1, 0])))
  straight, _ = _extend(generator, ids[::-1, :1], cache)
  np.testing.assert_array_equal(swapped, straight[::-1])


def test_rows_on_several_devices_have_the_loss_of_one(ngram_run):
  _, valid = toy_run.batches(dataclasses.replace(ngram_run.experiment, global_batch=8))
  batch = valid.evaluation(8)[0]
  mesh = MeshShape(data=8).build()
  step = jax.jit(lambda p, b: evaluation_step(p, b, objectives=(CLM(),), compute=COMPUTE)[0])
  whole = jax.device_put(ngram_run.params, parameter_shardings(ngram_run.params, mesh))
  ours = step(whole, to_global(batch, mesh))
  expected = step(ngram_run.params, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)


def test_a_run_becomes_a_file_and_the_file_a_run(ngram_run, tmp_path):
  write_arpa(ngram_run, tmp_path / "toy.arpa")
  data, ready = ngram_run.experiment.data, toy_run.prepared()
  config = NGram(order=3, arpa=str(tmp_path / "toy.arpa"), vocab_size=ready.tokenizer.vocab.size)
  read, params = config.counted(data, ready.train, ready.tokenizer)
  assert read.sizes == ngram_run.experiment.model.sizes
  np.testing.assert_allclose(
    params.order_3.log_p[...], ngram_run.params.order_3.log_p[...], atol=2e-6
  )
  with pytest.raises(UserError, match=r"n-grams of order 3, and model.order=5; set model.order=3"):
    dataclasses.replace(config, order=5).counted(data, ready.train, ready.tokenizer)
  rows = dataclasses.replace(data, segments=TOY.data.segments)
  with pytest.raises(UserError, match="reads running text, not SegmentPair"):
    NGram(vocab_size=config.vocab_size).counted(rows, ready.train, ready.tokenizer)


def test_a_run_has_no_vectors_and_no_classes(ngram_run):
  for make in (lambda: encode(ngram_run, ["w1"]), lambda: neighbours(ngram_run, ["w1"])):
    with pytest.raises(UserError, match=r"the model NGram .*has no vectors of tokens"):
      make()
  with pytest.raises(UserError, match="an n-gram model has no head 'classes'"):
    ngram_run.config.init(jax.random.key(0), {"classes": 2})


def test_a_mixture_has_the_weights_that_predict_held_out_text_best(ngram_run, tmp_path):
  ready = toy_run.prepared()
  other = made_run(tmp_path / "other", order=2, smoothing="add_k", k=50.0)
  weights = mixture.weights_on([ngram_run, other], ready)
  assert weights.sum() == pytest.approx(1) and weights[0] > 0.9
  text = "w1 w2 w3 w4 w5 w6"
  mixed = perplexity(ngram_run, text, [other], weights)
  only = perplexity(ngram_run, text, [other], np.array([1.0, 0.0]))
  assert only == pytest.approx(perplexity(ngram_run, text))
  assert mixed["perplexity"] != pytest.approx(only["perplexity"], rel=1e-6)
  stranger = SimpleNamespace(fingerprint="another")
  with pytest.raises(UserError, match="different vocabularies, so that they cannot be mixed"):
    mixture.check_mixed([ngram_run, dataclasses.replace(other, tokenizer=stranger)])


def test_the_fitted_weights_are_the_maximum_of_the_likelihood():
  p = np.random.default_rng(0).uniform(0.01, 1, (3, 500)) * np.array([[1], [0.8], [0.1]])
  weights = mixture.fitted(np.log(p))
  best = mixture.log_mean(np.log(p), weights).mean()
  for step in ([0.01, -0.01, 0], [-0.01, 0.01, 0], [-0.01, 0, 0.01]):
    moved = np.maximum(weights + step, 0)
    assert mixture.log_mean(np.log(p), moved / moved.sum()).mean() <= best + 1e-6


def test_a_part_of_the_text_is_counted_in_documents_at_equal_distances():
  document = np.repeat(np.arange(20, dtype=np.int32), 10)
  ids, chosen = NGram(order=2, tokens=45)._part(np.arange(200), document)
  assert len(ids) == len(chosen) <= 45
  assert set(np.diff(np.unique(chosen))) == {4, 5}
  np.testing.assert_array_equal(document[ids], chosen)
  assert len(NGram(order=2, tokens=45)._part(np.arange(200), 0 * document)[0]) == 45
  assert len(NGram(order=2)._part(np.arange(200), document)[0]) == 200
