"""DistilBERT: published counts, which layers the student starts with, transformers' mathematics."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.distilbert import DistilBert, Distilled, layer_selection
from plm_jax.models.parameters import path_name
from tests.models import torch_encoder as torch_names

FLOAT32 = Compute(dtype="float32")
SIZES = {"vocab_size": 50, "width": 16, "heads": 4, "positions": 12}
TEACHER = Bert(layers=4, **SIZES)
TOY = Distilled(layers=2, **SIZES, teacher="runs/toy", teacher_model=TEACHER)


def count(config, *heads):
  shapes = jax.eval_shape(lambda key: config.init(key, dict.fromkeys(heads, 2)), jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  ("vocab_size", "heads", "published"),
  [
    (30522, (), 66_362_880),
    (28996, (), 65_190_912),
    (30522, ("mlm",), 66_985_530),
    (30522, ("classes",), 66_955_010),
  ],
)
def test_counts_are_those_of_the_released_models(vocab_size, heads, published):
  """F7."""
  assert count(DistilBert(vocab_size=vocab_size), *heads) == published


def test_the_student_of_twelve_layers_starts_with_those_of_the_original():
  """F37; for other depths from first to last at equal distances."""
  assert layer_selection(12, 6) == [0, 2, 4, 7, 9, 11]
  assert layer_selection(4, 2) == [0, 3]
  assert layer_selection(24, 12)[0] == 0 and layer_selection(24, 12)[-1] == 23
  assert layer_selection(6, 6) == [0, 1, 2, 3, 4, 5]
  assert layer_selection(12, 1) == [0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial(config, seed=0):
  heads = {"mlm": 0, "teacher": 0} if isinstance(config, Distilled) else {"mlm": 0, "nsp": 0}
  return config.init(jax.random.key(seed), heads)


def named(model):
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


@pytest.mark.slow
def test_the_student_takes_tables_head_and_every_so_many_layers_of_its_teacher():
  teacher = initial(TEACHER, 7)
  teacher.nsp = teacher.pooler = None
  model = initial(TOY).taught(teacher)
  theirs = named(teacher)
  for name, leaf in named(model.teacher).items():
    np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
  for name, leaf in named(model.student).items():
    expected = theirs[name][np.array([0, 3])] if name.startswith("blocks/") else theirs[name]
    np.testing.assert_array_equal(leaf, expected, err_msg=name)
  assert "embed/segment/table" not in named(model.student)
  assert jax.tree.structure(model) == jax.tree.structure(initial(TOY))


def test_a_student_at_random_takes_nothing():
  config = dataclasses.replace(TOY, start="random")
  before, model = initial(config), initial(config).taught(initial(TEACHER, 7))
  jax.tree.map(np.testing.assert_array_equal, model.student, before.student)
  np.testing.assert_array_equal(model.teacher.mlm.bias[...], initial(TEACHER, 7).mlm.bias[...])


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["all", pytest.param("attention", marks=pytest.mark.slow)])
def test_a_teacher_whose_layers_share_is_read_where_they_read(sharing):
  teacher = dataclasses.replace(TEACHER, sharing=sharing, groups=2)
  config = dataclasses.replace(TOY, teacher_model=teacher)
  parameters = initial(teacher, 7)
  model = initial(config).taught(parameters)
  kernel = parameters.blocks.attention.query.kernel[...]
  assert kernel.shape[0] == 2
  np.testing.assert_array_equal(model.student.blocks.attention.query.kernel[...], kernel)


def test_what_is_frozen():
  assert TOY.frozen == ("teacher/*", "student/embed/position/*")
  assert dataclasses.replace(TOY, freeze_positions=False).frozen == ("teacher/*",)
  assert dataclasses.replace(TOY, start="random").frozen == ("teacher/*",)
  assert type(TOY.encoder) is DistilBert and TOY.encoder_path == "student/"
  assert TOY.encoder.layers == 2 and TOY.encoder.segments == 0


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"width": 32}, "set model.width=16"),
    ({"layers": 5}, "cannot have more layers"),
    ({"positions": 13}, "lower it"),
    ({"segments": 3}, "other segments"),
  ],
)
def test_students_that_do_not_fit_their_teacher_are_refused(change, said):
  with pytest.raises(UserError, match=said):
    dataclasses.replace(TOY, **change)


@pytest.mark.slow
def test_a_student_at_random_may_have_another_width():
  wide = initial(dataclasses.replace(TOY, width=32, start="random"))
  assert wide.student.embed.token.table.shape[1] == 32
  assert wide.teacher.embed.token.table.shape[1] == TOY.teacher_model.width


def toy_batch(rows=4, length=12):
  rng = np.random.default_rng(0)
  return {
    "input_ids": rng.integers(5, 50, (rows, length)).astype(np.int32),
    "segment_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "length": np.array([12, 7, 9, 3][:rows], np.int32),
  }


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher():
  model = initial(TOY)

  def loss(model):
    states = model(toy_batch(), FLOAT32)
    student, teacher = model.both_logits(states, None)
    return jnp.square(student - teacher).sum() + jnp.square(states.student - states.teacher).sum()

  grads = jax.jit(jax.grad(loss))(model)
  assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads.teacher))
  assert jnp.any(grads.student.embed.token.table[...])


LAYER = {
  "attention/query": "attention.q_lin",
  "attention/key": "attention.k_lin",
  "attention/value": "attention.v_lin",
  "attention/output": "attention.out_lin",
  "attention_norm": "sa_layer_norm",
  "feed_forward/up": "ffn.lin1",
  "feed_forward/down": "ffn.lin2",
  "feed_forward_norm": "output_layer_norm",
}


@pytest.fixture(scope="module")
def theirs():
  """transformers' DistilBertForMaskedLM with random weights, and ours with the same."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  sizes = transformers.DistilBertConfig(
    vocab_size=50, dim=16, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=12
  )
  model = torch_names.randomised(torch, transformers.DistilBertForMaskedLM(sizes))
  get = {name: w.detach().numpy() for name, w in model.named_parameters()}.__getitem__
  place = "distilbert.embeddings"
  arrays = {
    "embed/token/table": get(f"{place}.word_embeddings.weight"),
    "embed/position/table": get(f"{place}.position_embeddings.weight"),
    **torch_names.norm(get, "embed/norm", f"{place}.LayerNorm"),
    **torch_names.dense(get, "mlm/dense", "vocab_transform"),
    **torch_names.norm(get, "mlm/norm", "vocab_layer_norm"),
    "mlm/bias": get("vocab_projector.bias"),
  }
  layers = torch_names.blocks(get, "distilbert.transformer.layer.{}", 2, 4, LAYER)
  arrays |= torch_names.under("blocks/", layers)
  ours = jax.jit(lambda key: TOY.encoder.init(key, {"mlm": 0}))(jax.random.key(0))
  return torch, model, torch_names.filled(ours, arrays)


@pytest.mark.slow
def test_states_and_logits_are_those_of_transformers(theirs):
  torch, model, ours = theirs
  batch = toy_batch()
  real = np.arange(12) < batch["length"][:, None]
  inputs = {
    "input_ids": torch.tensor(batch["input_ids"], dtype=torch.long),
    "attention_mask": torch.tensor(real.astype(np.int64)),
  }
  with torch.no_grad():
    states = model.distilbert(**inputs).last_hidden_state.numpy()
    logits = model(**inputs).logits.numpy()

  @jax.jit
  def run(model, batch):
    hidden = model(batch, FLOAT32)
    return hidden, model.token_logits(hidden)

  found = [np.asarray(x) for x in run(ours, batch)]
  np.testing.assert_allclose(found[0][real], states[real], atol=1e-4)
  np.testing.assert_allclose(found[1][real], logits[real], atol=1e-4)


@pytest.mark.slow
def test_the_classes_stand_on_a_relu_as_in_transformers(theirs):
  torch, _, _ = theirs
  import transformers

  sizes = transformers.DistilBertConfig(
    vocab_size=50, dim=16, hidden_dim=64, n_layers=1, n_heads=4, max_position_embeddings=12
  )
  model = torch_names.randomised(torch, transformers.DistilBertForSequenceClassification(sizes))
  get = {name: w.detach().numpy() for name, w in model.named_parameters()}.__getitem__
  config = dataclasses.replace(TOY.encoder, layers=1)
  ours = jax.jit(lambda key: config.init(key, {"classes": 2}))(jax.random.key(0))
  head = torch_names.dense(get, "pooler", "pre_classifier")
  head |= torch_names.dense(get, "classes", "classifier")
  for name in ("pooler", "classes"):
    layer = getattr(ours, name)
    layer.kernel[...], layer.bias[...] = head[f"{name}/kernel"], head[f"{name}/bias"]
  states = np.random.default_rng(0).normal(size=(3, 12, 16)).astype(np.float32)
  with torch.no_grad():
    pooled = torch.relu(model.pre_classifier(torch.tensor(states[:, 0])))
    expected = model.classifier(pooled).numpy()
  found = ours.class_logits(jnp.asarray(states), {"length": np.array([12, 3, 5])}, None)
  np.testing.assert_allclose(found, expected, atol=1e-5)
