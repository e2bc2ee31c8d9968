"""ELMo: the released files, the formula, and training with a carried state."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from plm_jax.data.packed_documents import PackedDocuments
from plm_jax.errors import UserError
from plm_jax.evaluation.held_out import held_out
from plm_jax.evaluation.scores import Scores
from plm_jax.export import elmo
from plm_jax.models.compute import Compute
from plm_jax.models.elmo import (
  BEGIN_TEXT,
  END_TEXT,
  Elmo,
  boundary,
  characters_of,
  spellings,
)
from plm_jax.models.layer_features import ScalarMix
from plm_jax.models.parameters import named, with_roles
from plm_jax.objectives.bilm import BiLM
from plm_jax.objectives.mix_penalty import MixPenalty
from plm_jax.optim.adamw import AdamW
from plm_jax.pretraining import pretrain
from plm_jax.runs import Run
from plm_jax.sharding import MeshShape
from plm_jax.train.workdir import Workdir, read_records
from tests import toy_run
from tests.toy_run import TOY

COMPUTE = Compute(dtype="float32")
SIZES = Elmo(
  width=6,
  cell=8,
  character_width=3,
  filters=((1, 4), (3, 5)),
  longest=8,
  clip=0.3,
  vocab_size=30,
  dropout=0.0,
)
TRAINED = dataclasses.replace(
  TOY,
  model=dataclasses.replace(SIZES, vocab_size=None, width=16, cell=16, clip=3.0),
  objectives=(BiLM(),),
  data=dataclasses.replace(
    TOY.data, source=str(toy_run.text()), length=20, segments=PackedDocuments(ordered=True)
  ),
  optim=AdamW(peak=2e-2, warmup=3),
)


def test_the_released_model_has_the_published_parameters():
  config = Elmo(vocab_size=1)
  shapes = jax.eval_shape(lambda: config.init(jax.random.key(0), {}))
  sizes = {path: math.prod(x.shape) for path, x in named(shapes)}
  assert sum(sizes.values()) - sizes["characters/table"] == 93_600_864


_read = jax.jit(lambda m, c, real, carries: m.read(c, real, carries, COMPUTE, None))


def test_the_released_files_give_the_recorded_states(shared_data):
  """Three slots of ten sentences each, whose states are carried (allennlp, elmo_test.py)."""
  h5py = pytest.importorskip("h5py")
  folder = shared_data("ckpt", "elmo_fixture")
  _, params = elmo.load(folder)
  sentences = json.loads((folder / "lm_embeddings_sentences.json").read_text())
  carries = params.carry(3), params.carry(3)
  files = [h5py.File(folder / f"lm_embeddings_{slot}.hdf5") for slot in range(3)]
  for number in range(10):
    rows = [
      [
        boundary(BEGIN_TEXT, 50),
        *characters_of(sentences[slot][number].split(), 50),
        boundary(END_TEXT, 50),
      ]
      for slot in range(3)
    ]
    characters, lengths = np.zeros((3, 56, 50), np.int32), np.array([len(row) for row in rows])
    for slot, row in enumerate(rows):
      characters[slot, : len(row)] = row
    real = np.arange(56) < lengths[:, None]
    states, carries = _read(params, characters, real, carries)
    for slot, file in enumerate(files):
      expected = np.concatenate(file[str(number)][...], axis=-1)
      ours = states.layers_BTLD[slot, 1 : lengths[slot] - 1, 2]
      np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_files_that_do_not_belong_together_are_refused(shared_data, tmp_path):
  pytest.importorskip("h5py")
  folder = shared_data("ckpt", "elmo_fixture")
  options = json.loads((folder / "options.json").read_text())
  (tmp_path / "lm_weights.hdf5").write_bytes((folder / "lm_weights.hdf5").read_bytes())

  def refused(match, change):
    changed = json.loads(json.dumps(options))
    change(changed)
    (tmp_path / "options.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=match):
      elmo.load(tmp_path)

  refused("lacks CNN_high_2", lambda o: o["char_cnn"].update(n_highway=3))
  refused("the files do not belong together", lambda o: o["lstm"].update(projection_dim=15))
  refused("is not that of an ELMo: 'lstm' is missing", lambda o: o.pop("lstm"))
  refused("has 100 characters", lambda o: o["char_cnn"].update(n_characters=100))
  (tmp_path / "lm_weights.hdf5").write_text("no HDF5")
  refused("cannot be read as HDF5", lambda o: None)


def reference(model, characters_TC):
  """Layers float64 [L + 1, T, 2 P] of one row, by loops."""

  def of(param):
    return np.asarray(param[...], np.float64)

  def sigmoid(z):
    return 1 / (1 + np.exp(-z))

  c, tokens = model.config, []
  for ids in characters_TC:
    x, parts = of(model.tokens.character.table)[ids], []
    for convolution in model.tokens.convolutions:
      kernel, bias = of(convolution.filters.kernel), of(convolution.filters.bias)
      places = range(len(ids) - len(kernel) + 1)
      answers = [np.einsum("wc,wcf->f", x[p : p + len(kernel)], kernel) + bias for p in places]
      parts.append(np.maximum(np.max(answers, axis=0), 0))
    x = np.concatenate(parts)
    for highway in model.tokens.highways:
      gate = sigmoid(x @ of(highway.carry.kernel) + of(highway.carry.bias))
      new = np.maximum(x @ of(highway.transform.kernel) + of(highway.transform.bias), 0)
      x = gate * new + (1 - gate) * x
    tokens.append(x @ of(model.tokens.project.kernel) + of(model.tokens.project.bias))
  sides = []
  for stack, order in ((model.forward, 1), (model.backward, -1)):
    x, layers = np.array(tokens), [np.array(tokens)]
    for number, layer in enumerate(stack):
      h, cell, outputs = np.zeros(c.width), np.zeros(c.cell), []
      for token in x[::order]:
        gates = np.einsum("d,dgu->gu", token, of(layer.input.kernel)) + of(layer.input.bias)
        i, f, g, o = gates + np.einsum("d,dgu->gu", h, of(layer.recurrent.kernel))
        cell = np.clip(sigmoid(f) * cell + sigmoid(i) * np.tanh(g), -c.clip, c.clip)
        h = np.clip((sigmoid(o) * np.tanh(cell)) @ of(layer.output.kernel), -c.clip, c.clip)
        outputs.append(h)
      y = np.array(outputs[::order])
      x = x + y if number else y  # the residual of the second layer alone
      layers.append(x)
    sides.append(np.array(layers))
  return np.concatenate(sides, axis=-1)


@pytest.fixture(scope="module")
def model():
  params = SIZES.init(jax.random.key(0), {"bilm": 0})
  words = [f"w{number}" * (1 + number % 4) for number in range(30)]
  params.characters.table[...] = characters_of(words, 8)
  return params


_forward = jax.jit(lambda m, batch: m(batch, COMPUTE))


@pytest.mark.slow
def test_layers_are_those_of_the_formula(model):
  ids = np.array([[3, 9, 4, 17, 5]], np.int32)
  batch = {"input_ids": ids, "length": np.array([5], np.int32)}
  expected = reference(model, np.asarray(model.characters.table[...])[ids[0]])
  ours = np.moveaxis(np.asarray(_forward(model, batch).layers_BTLD[0]), 1, 0)
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  loose = jax.tree.unflatten(
    jax.tree.structure(dataclasses.replace(SIZES, clip=9.0).init(jax.random.key(0), {"bilm": 0})),
    jax.tree.leaves(model),
  )
  assert not np.allclose(_forward(loose, batch).layers_BTLD, _forward(model, batch).layers_BTLD)


def test_each_direction_sees_one_side_and_no_padding(model):
  ids = np.random.default_rng(0).integers(0, 30, (1, 7)).astype(np.int32)
  changed = ids.copy()
  changed[0, 3] = (ids[0, 3] + 1) % 30
  before, after = (
    _forward(model, {"input_ids": x, "length": np.array([6], np.int32)}) for x in (ids, changed)
  )
  np.testing.assert_array_equal(before.forward_BTP[0, :3], after.forward_BTP[0, :3])
  np.testing.assert_array_equal(before.backward_BTP[0, 4:6], after.backward_BTP[0, 4:6])
  assert not np.allclose(before.forward_BTP[0, 3:6], after.forward_BTP[0, 3:6], atol=1e-4)
  padded = ids.copy()
  padded[0, 6] = (ids[0, 6] + 1) % 30
  other = _forward(model, {"input_ids": padded, "length": np.array([6], np.int32)})
  np.testing.assert_array_equal(before.layers_BTLD[0, :6, 1:], other.layers_BTLD[0, :6, 1:])


def test_a_document_within_a_row_is_read_from_zeros_in_both_directions(model):
  ids = np.random.default_rng(0).integers(0, 30, (1, 9)).astype(np.int32)
  documents = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]], np.int32)
  batch = {"input_ids": ids, "length": np.array([9], np.int32)}
  together = _forward(model, batch | {"document_ids": documents}).layers_BTLD
  parts = [{"input_ids": x, "length": np.array([x.shape[1]])} for x in (ids[:, :4], ids[:, 4:])]
  apart = np.concatenate([_forward(model, part).layers_BTLD for part in parts], axis=1)
  np.testing.assert_allclose(together, apart, atol=1e-6)
  assert not np.allclose(_forward(model, batch).layers_BTLD, apart, atol=1e-3)


def test_characters_are_bytes_between_the_begin_and_the_end_of_a_token():
  rows = characters_of(["cat", "é", "abcdefghij"], 8)
  assert rows.tolist() == [
    [259, 100, 98, 117, 260, 261, 261, 261],
    [259, 0xC3 + 1, 0xA9 + 1, 260, 261, 261, 261, 261],
    [259, 98, 99, 100, 101, 102, 103, 260],
  ]
  tokenizer = toy_run.prepared().tokenizer
  table = spellings(tokenizer, 8)
  assert table[tokenizer.vocab.begin[0], :3].tolist() == [259, BEGIN_TEXT + 1, 260]
  assert table[tokenizer.vocab.end[0], :3].tolist() == [259, END_TEXT + 1, 260]
  (word,) = tokenizer.encode("w1")[:1]
  assert table[word].tolist() == characters_of([tokenizer.decode([word])], 8)[0].tolist()


@pytest.mark.slow
def test_heads_read_the_weighted_sum_of_the_layers(model):
  """Equation 1: gamma sum_j softmax(w)_j h_j."""
  heads = {"classes": 3, "token_classes": 4}
  tuned = jax.jit(lambda: SIZES.init(jax.random.key(1), heads))()
  w, gamma = np.array([0.5, -1.0, 2.0], np.float32), 1.7
  tuned.mix.bias[...], tuned.mix.gain[...] = w, np.array([gamma], np.float32)
  ids = np.array([[3, 9, 4, 17, 5]], np.int32)
  batch = {"input_ids": ids, "length": np.array([4], np.int32)}
  states = _forward(model, batch)
  mix = gamma * np.einsum("l,tld->td", np.exp(w) / np.exp(w).sum(), states.layers_BTLD[0])
  tags = mix @ tuned.token_classes.kernel[...] + tuned.token_classes.bias[...]
  np.testing.assert_allclose(tuned.token_class_logits(states, batch, None)[0], tags, atol=1e-6)
  classes = mix[:4].mean(axis=0) @ tuned.classes.kernel[...] + tuned.classes.bias[...]
  np.testing.assert_allclose(tuned.class_logits(states, batch, None)[0], classes, atol=1e-6)


def test_the_penalty_is_the_sum_of_squares_whatever_the_rows(model):
  tuned = SimpleNamespace(mix=ScalarMix(3))
  tuned.mix.bias[...] = np.array([0.5, -1.0, 2.0], np.float32)
  for rows in (np.ones(1), np.array([1, 1, 0, 1])):
    total, count = MixPenalty().loss(tuned, None, {"row_weight": rows}, None)["loss"]
    assert total / count == pytest.approx(0.25 + 1 + 4)


def test_both_neighbours_of_a_document_are_predicted_and_no_others():
  batch = {
    "input_ids": np.array([[5, 6, 7, 8, 0]], np.int32),
    "document_ids": np.array([[0, 0, 1, 1, -1]], np.int32),
    "length": np.array([4], np.int32),
    "row_weight": np.ones(1, np.float32),
  }
  made = BiLM().corrupt(batch, None, None)
  kept = made["bilm_weights"][0] > 0
  assert np.flatnonzero(kept).tolist() == [0, 2, 5 + 1, 5 + 3]
  assert made["bilm_targets"][0][kept].tolist() == [6, 8, 5, 7]


def final(experiment, steps=3):
  program = toy_run.program(experiment)
  state, (train, _) = program.create(), toy_run.batches(experiment)
  for step in range(steps):
    state = program.step(state, train(step))
  return jax.device_get(state)


@pytest.mark.slow
def test_devices_and_micro_batches_change_neither_parameters_nor_carry():
  compute = Compute(dtype="float32", micro_batches=2)
  mesh = MeshShape(data=2, fsdp=2)
  ours, expected = final(dataclasses.replace(TRAINED, mesh=mesh, compute=compute)), final(TRAINED)
  for a, b in ((ours.params, expected.params), (ours.carry, expected.carry)):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
  assert {len(row.axes) for _, row, _ in with_roles(expected.params)} >= {1, 2, 3}


@pytest.mark.slow
def test_a_run_reads_the_characters_of_its_tokens_and_learns(tmp_path, capsys):
  tokenizer = toy_run.prepared().tokenizer
  experiment = dataclasses.replace(TRAINED, mesh=MeshShape(data=8)).resolve(tokenizer.vocab.size)
  record = {"name": "elmo", "reference": None, "diff": []}
  with Workdir(tmp_path / "run") as workdir:
    pretrain(experiment, record, workdir, toy_run.text().parent / "cache")
  valid = [
    r["bilm/loss"] for r in read_records(tmp_path / "run/metrics.jsonl") if r["split"] == "valid"
  ]
  assert valid[-1] < 0.95 * valid[0]
  assert "BILM perplexity" in capsys.readouterr().out
  run = Run.load(tmp_path / "run")
  np.testing.assert_array_equal(run.params.characters.table[...], spellings(tokenizer, 8))
  scores = Scores.of(run)
  held_out(run, toy_run.prepared(), scores)
  assert scores.metrics["bilm_perplexity"] < tokenizer.vocab.size
  assert scores.metrics["clm_perplexity"] < tokenizer.vocab.size  # of the forward direction


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"filters": ((9, 4),), "longest": 8}, "must be pairs"),
    ({"filters": ()}, "must be pairs"),
    ({"clip": 0.0}, "model.clip=0.0 must be above 0"),
    ({"layers": 0}, "model.layers=0 must be at least 1"),
  ],
)
def test_sizes_that_make_no_model_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    Elmo(**fields)
