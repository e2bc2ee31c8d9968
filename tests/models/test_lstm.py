"""The recurrent language model is one new file, and has all that a Transformer has: training with a
carried state, exact resume, any mesh, generation, scores and fine-tuning."""

import dataclasses
import itertools
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.finetune import recipe
from plm_jax import cli
from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.evaluation import held_out as held_out_module
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.likelihood import next_log_p
from plm_jax.evaluation.perplexity import perplexity
from plm_jax.evaluation.scores import Scores
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.models.lstm import Gru, Lstm, Rnn
from plm_jax.objectives.clm import CLM
from plm_jax.objectives.mlm import MLM
from plm_jax.optim.adamw import AdamW
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.rows import LabelledBatches, framed_rows
from plm_jax.train import report
from tests import toy_run
from tests.data.toy_store import ToyStore
from tests.toy_run import TOY, assert_equal, run

COMPUTE = Compute(dtype="float32")
_extend = jax.jit(lambda generator, ids, cache: generator.extend(ids, cache))
SIZES = Lstm(layers=2, width=16, vocab_size=40, initializer_range=0.5)
ORDERED = dataclasses.replace(
  TOY,
  model=Lstm(layers=2, width=16),
  objectives=(CLM(),),
  data=dataclasses.replace(TOY.data, length=20, segments=PackedDocuments(ordered=True)),
  optim=AdamW(peak=3e-2, warmup=3),
)


CELLS = {"lstm": SIZES, "gru": Gru(**vars(SIZES)), "rnn": Rnn(**vars(SIZES))}


@pytest.fixture(scope="module", params=CELLS)
def model(request):
  return CELLS[request.param].init(jax.random.key(0), {"lm": 0})


@pytest.mark.parametrize(
  ("name", "millions"), [("small", 4.64), ("medium", 19.77), ("large", 66.01)]
)
def test_sizes_of_table_1_have_the_papers_parameters(name, millions):
  """The paper rounds the last two to 20 and 66 million."""
  model = cli.load_experiment(f"experiments/lstm.py:{name}", budget="paper")().model
  config = dataclasses.replace(model, vocab_size=10_000)
  shapes = jax.eval_shape(lambda: config.init(jax.random.key(0), {"lm": 0}))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert count == 2 * 10_000 * config.width + 2 * (8 * config.width**2 + 4 * config.width)
  assert count / 1e6 == pytest.approx(millions, abs=0.005)


def rows(ids, **more):
  ids = np.asarray(ids, np.int32)
  return {"input_ids": ids, "length": np.full(len(ids), ids.shape[1], np.int32), **more}


def batches_of(experiment, steps):
  train, _ = toy_run.batches(experiment)
  return [train(step) for step in range(steps)]


@pytest.mark.slow
def test_two_rows_with_a_carried_state_are_read_like_one(model):
  ids = np.random.default_rng(0).integers(5, 40, (3, 12))
  whole = model(rows(ids), COMPUTE)
  first, carry = model.continued(rows(ids[:, :7]), COMPUTE, None, model.carry(3))
  second, _ = model.continued(rows(ids[:, 7:]), COMPUTE, None, carry)
  np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-6)
  assert not np.allclose(model(rows(ids[:, 7:]), COMPUTE), second, atol=1e-3)


def test_a_document_within_a_row_begins_without_the_state_of_the_one_before(model):
  ids = np.random.default_rng(0).integers(5, 40, (1, 9))
  documents = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]], np.int32)
  hidden = model(rows(ids, document_ids=documents), COMPUTE)
  alone = model(rows(ids[:, 4:]), COMPUTE)
  np.testing.assert_allclose(hidden[:, 4:], alone, atol=1e-6)
  assert not np.allclose(model(rows(ids), COMPUTE)[:, 4:], alone, atol=1e-3)


def test_padding_does_not_change_the_state_that_is_carried(model):
  ids = np.random.default_rng(0).integers(5, 40, (1, 9))
  padded = rows(ids) | {"length": np.array([5], np.int32)}
  _, carry = model.continued(padded, COMPUTE, None, model.carry(1))
  _, expected = model.continued(rows(ids[:, :5]), COMPUTE, None, model.carry(1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, expected)


@pytest.mark.parametrize("separate", [True, False])
def test_every_slot_continues_its_row_of_the_batch_before(separate):
  segments = PackedDocuments(ordered=True, separate=separate)
  experiment = dataclasses.replace(
    ORDERED, data=dataclasses.replace(ORDERED.data, segments=segments)
  )
  train, _ = toy_run.batches(experiment)
  steps = train.rows() // experiment.global_batch
  batches = [train(step) for step in range(steps + 1)]
  for before, after in itertools.pairwise(batches[:steps]):
    continues = ~after["begins"]
    assert separate or continues.all()
    first = after["input_ids"][continues, 0]
    np.testing.assert_array_equal(before["next_ids"][continues], first)
    np.testing.assert_array_equal(before["clm_targets"][continues, -1], first)
    assert (before["clm_weights"][continues, -1] == 1).all()
    assert (before["next_ids"][after["begins"]] == -1).all()
    assert (before["clm_weights"][after["begins"], -1] == 0).all()
  assert batches[0]["begins"].all() and batches[steps]["begins"].all()  # another pass
  np.testing.assert_array_equal(batches[steps]["input_ids"], batches[0]["input_ids"])
  read = np.stack([b["input_ids"] for b in batches[:steps]])  # [steps, slots, T]
  table = train._tables.of(0, 0)
  whole = segments.read(train.store, table, experiment.data.length, train.vocab)["input_ids"]
  lanes = whole[: steps * read.shape[1]].reshape(read.shape[1], steps, -1).swapaxes(0, 1)
  np.testing.assert_array_equal(read, lanes)


def joined(batches):
  """The real rows of an evaluation, lane by lane."""
  order = [(lane, at) for lane in range(len(batches[0]["length"])) for at in range(len(batches))]
  return [(batches[at], lane) for lane, at in order if batches[at]["row_weight"][lane]]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_held_out_rows_continue_each_other_and_every_row_counts_once(slots):
  _, valid = toy_run.batches(dataclasses.replace(ORDERED, global_batch=slots))
  batches = valid.evaluation()
  rows = joined(batches)
  table = valid._tables.of(0, 0)
  whole = valid.corpus.segments.read(valid.store, table, 20, valid.vocab)["input_ids"]
  np.testing.assert_array_equal([b["input_ids"][lane] for b, lane in rows], whole)
  assert batches[0]["begins"].all() and not all(b["begins"].all() for b in batches[1:])
  few = valid.evaluation(2 * slots)
  assert len(few) == 2 and all(b["row_weight"].all() for b in few)


def final(experiment, steps=4):
  """The state after some steps on the experiment's own batches."""
  program = toy_run.program(experiment)
  state = program.create()
  for batch in batches_of(experiment, steps):
    state = program.step(state, batch)
  return jax.device_get(state)


def test_training_hands_the_state_on_and_drops_it_where_a_row_begins():
  program = toy_run.program(ORDERED)
  state = program.create()
  for batch in batches_of(ORDERED, 3):
    batch["begins"][::2] = True
    params, carry = jax.device_get((state.params, state.carry))
    carry = jax.tree.map(lambda x, b=batch["begins"]: np.where(b[:, None, None], 0, x), carry)
    _, expected = params.continued(batch, COMPUTE, None, carry)
    state = program.step(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.carry, expected)
  assert np.abs(carry.h_BU[1::2]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
  "change",
  [{"compute": Compute(dtype="float32", micro_batches=2)}, {"mesh": MeshShape(data=2, fsdp=2)}],
)
def test_micro_batches_and_devices_change_neither_carry_nor_parameters(change):
  ours, expected = final(dataclasses.replace(ORDERED, **change)), final(ORDERED)
  for a, b in ((ours.carry, expected.carry), (ours.params, expected.params)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_a_killed_run_goes_on_with_the_carried_state_bit_for_bit(tmp_path):
  state, records = run(tmp_path / "whole", ORDERED)
  shutil.copytree(tmp_path / "whole", tmp_path / "killed")
  shutil.rmtree(tmp_path / "killed/checkpoints/12")
  resumed, again = run(tmp_path / "killed", ORDERED)
  assert_equal(resumed, state)
  assert again == records
  valid = [record for record in records if record["split"] == "valid"]
  assert valid[-1]["clm/loss"] < 0.9 * valid[0]["clm/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("cell", [Gru, Rnn])
def test_every_cell_learns_in_bfloat16(cell, tmp_path):
  model = cell(layers=2, width=16, dropout=0.1, variational=True)
  experiment = dataclasses.replace(ORDERED, model=model, compute=Compute(dtype="bfloat16"))
  _, records = run(tmp_path / "run", experiment)
  valid = [record["clm/loss"] for record in records if record["split"] == "valid"]
  assert valid[-1] < 0.95 * valid[0]


def test_variational_dropout_has_one_mask_for_all_tokens_of_a_row():
  noise = Noise.create(jax.random.key(0), "hash")
  ones = jnp.ones((2, 5, 16))
  for variational in (True, False):
    config = dataclasses.replace(SIZES, dropout=0.5, variational=variational)
    model = config.init(jax.random.key(0), {"lm": 0})
    dropped = np.asarray(model.dropped(ones, noise))
    assert set(np.unique(dropped)) == {0, 2} and (dropped[0, 0] != dropped[1, 0]).any()
    assert (dropped == dropped[:, :1]).all() == variational


def test_a_model_without_a_state_to_carry_refuses_ordered_rows():
  with pytest.raises(UserError, match="ordered=true is for models that carry a state"):
    toy_run.program(dataclasses.replace(TOY, objectives=(MLM(),), data=ORDERED.data))


def test_generation_follows_the_forward_pass_and_ignores_padding(model):
  ids = np.random.default_rng(0).integers(5, 40, (2, 8)).astype(np.int32)
  generator = model.generator(COMPUTE)
  cache = generator.start({"pad": np.array([0, 3])}, capacity=8)
  logits, cache = _extend(generator, ids[:, :5], cache)
  for column in range(5, 8):
    logits, cache = _extend(generator, ids[:, column : column + 1], cache)
  hidden = model(rows(ids), COMPUTE)
  np.testing.assert_allclose(logits[0], model.token_logits(hidden[0, -1]), atol=1e-5)
  hidden = model(rows(ids[1:, 3:]), COMPUTE)
  np.testing.assert_allclose(logits[1], model.token_logits(hidden[0, -1]), atol=1e-5)
  swapped, _ = _extend(generator, ids[:, :1], cache.take(jnp.array([1, 0])))
  straight, _ = _extend(generator, ids[::-1, :1], cache)
  np.testing.assert_allclose(swapped, straight[::-1], atol=1e-5)


@pytest.fixture(scope="module")
def lstm_run(tmp_path_factory):
  """A directory of a run, read again."""
  ready = toy_run.prepared()
  experiment = ORDERED.resolve(ready.tokenizer.vocab.size)
  params = jax.jit(experiment.init_parameters)(jax.random.key(0))
  folder = tmp_path_factory.mktemp("lstm")
  Run(experiment=experiment, params=params, tokenizer=ready.tokenizer).save(folder)
  return Run.load(folder)


@pytest.mark.slow
def test_a_run_is_reported_with_continuations(lstm_run):
  results = report.Results(lstm_run.experiment, [], None, [])
  shown = report.examples(lstm_run.params, results, toy_run.prepared())
  assert "beginnings of held-out sentences" in shown and shown.count("____") == 4
  assert "plm_jax.generate" in report.goodbye(lstm_run.path, lstm_run.experiment, lstm_run.params)


def test_texts_and_held_out_text_are_scored_from_the_left(lstm_run):
  assert perplexity(lstm_run, "w1 w2 w3")["tokens"] == 3
  scores = Scores.of(lstm_run)
  held_out(lstm_run, toy_run.prepared(), scores)
  assert scores.metrics["clm_perplexity"] == pytest.approx(
    lstm_run.tokenizer.vocab.size, rel=0.05
  )  # random parameters: nearly equal scores


def held_out_nats(run, documents):
  """-log p of all tokens of some documents as held-out text."""
  store = ToyStore([[len(document)] for document in documents], run.tokenizer.vocab.size)
  store.tokens = np.concatenate(documents)
  scores = Scores.of(run)
  train = SimpleNamespace(counts=np.ones(run.tokenizer.vocab.size))
  held_out(run, SimpleNamespace(valid=store, train=train), scores)
  return scores.metrics["clm_loss"] * scores.counts["clm_loss"]


def test_held_out_documents_are_read_with_the_state_carried_and_apart(lstm_run, monkeypatch):
  """Rows have 20 tokens, and the documents with <s> and </s> 40 and 60."""
  monkeypatch.setattr(held_out_module, "LANES", 1)
  larger = jax.tree.map(lambda x: 20 * x, lstm_run.params)  # so that a state tells much
  lstm_run = dataclasses.replace(lstm_run, params=larger)
  rng = np.random.default_rng(0)
  first, last = (rng.integers(10, 39, size) for size in (38, 58))
  apart = held_out_nats(lstm_run, [first]) + held_out_nats(lstm_run, [last])
  assert held_out_nats(lstm_run, [first, last]) == pytest.approx(apart, rel=1e-6)
  vocab = lstm_run.tokenizer.vocab
  ids = np.array([*vocab.begin, *last, *vocab.end], np.int32)
  log_p = next_log_p(lstm_run, rows(ids[None]))[0]
  predicted = np.arange(1, 60) % 20 != 0  # no row predicts its first token
  assert held_out_nats(lstm_run, [last]) == pytest.approx(-log_p[predicted].sum(), rel=1e-5)
  alone = next_log_p(lstm_run, rows(ids.reshape(3, 20)))  # every row from a state of zeros
  assert held_out_nats(lstm_run, [last]) != pytest.approx(-alone.sum(), rel=1e-5)


def test_rows_of_a_classification_are_framed_and_read(lstm_run):
  vocab = lstm_run.tokenizer.vocab
  texts = framed_rows([(np.array([5, 6]),)], lstm_run.config, lstm_run.tokenizer, 6)
  (batch,) = LabelledBatches(texts, seed=0, global_batch=1).evaluation()
  assert batch["input_ids"][0, :4].tolist() == [vocab.cls, 5, 6, vocab.sep]
  params = lstm_run.config.init(jax.random.key(1), {"classes": 3})
  assert params.class_logits(params(batch, COMPUTE), batch, None).shape == (1, 3)


def test_fine_tuning_reads_the_state_after_the_last_token():
  source = SimpleNamespace(config=SIZES, document={}, experiment=SimpleNamespace(optim=None))
  experiment = recipe(source, Classify(labels=("a", "b", "c"), length=12), examples=10)
  params = SIZES.init(jax.random.key(0), experiment.heads)
  ids = np.random.default_rng(0).integers(5, 40, (2, 12))

  def logits(column, token):
    batch = rows(np.where(np.arange(12) == column, token, ids))
    batch["length"] = np.array([12, 7], np.int32)
    return params.class_logits(params(batch, COMPUTE), batch, None)

  assert logits(6, 5).shape == (2, 3)
  assert not np.allclose(logits(6, 5)[1], logits(6, 6)[1], atol=1e-4)  # the last token
  np.testing.assert_array_equal(logits(7, 5)[1], logits(7, 6)[1])  # padding
  assert not np.allclose(logits(7, 5)[0], logits(7, 6)[0], atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_an_initial_range_that_makes_no_weights_is_refused(value):
  with pytest.raises(UserError, match=r"initializer_range=\S+ must be above 0 and finite"):
    Lstm(initializer_range=value)
