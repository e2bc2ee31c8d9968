"""The bidirectional LSTM reads rows from both sides, and padding from none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.bilstm import BiLstm
from plm_jax.models.compute import Compute

COMPUTE = Compute(dtype="float32")
SIZES = BiLstm(layers=2, width=8, embedding=6, vocab_size=30)
HEADS = {"classes": 3, "token_classes": 4, "span": 0}
ENDS = [9, 0], [10, 0], [9, 3]  # a token and padding; another token; other padding
IDS = np.random.default_rng(0).integers(5, 30, (2, 9)).astype(np.int32)


def rows(ids, *lengths):
  return {"input_ids": np.asarray(ids, np.int32), "length": np.array(lengths, np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def outputs(config, batch):
  """Scores of classes and of the tags of the first 5 tokens."""
  model = config.init(jax.random.key(0), HEADS)
  hidden = model(batch, COMPUTE)
  return model.class_logits(hidden, batch, None), model.token_class_logits(hidden, batch, None)[
    :, :5
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  "classifier", ["mean", *(pytest.param(c, marks=pytest.mark.slow) for c in ("max", "last"))]
)
def test_padding_changes_neither_tags_nor_classes(classifier):
  config = dataclasses.replace(SIZES, classifier=classifier)
  classes, tags = outputs(config, rows(IDS[:, :5], 5, 3))
  padded_classes, padded_tags = outputs(config, rows(IDS, 5, 3))
  np.testing.assert_allclose(padded_classes, classes, atol=1e-6)
  np.testing.assert_allclose(padded_tags[0], tags[0], atol=1e-6)
  np.testing.assert_allclose(padded_tags[1, :3], tags[1, :3], atol=1e-6)


@pytest.mark.parametrize("classifier", ["max", "mean", "last"])
def test_every_token_is_read_by_the_classifier_and_by_every_tag(classifier):
  config = dataclasses.replace(SIZES, classifier=classifier)
  classes, tags = outputs(config, rows(IDS[:1, :5], 5))
  for place in range(5):
    other = IDS[:1, :5].copy()
    other[0, place] = 5 + (other[0, place] - 4) % 25
    changed_classes, changed_tags = outputs(config, rows(other, 5))
    assert not np.allclose(changed_classes, classes, atol=1e-7), place
    assert (np.abs(changed_tags - tags).max(axis=-1) > 0).all(), place


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"width": 7}, "model.width=7 must be even"),
    ({"layers": 0}, "model.layers=0 must be at least 1"),
    ({"dropout": 1.0}, "model.dropout=1.0 must be at least 0 and below 1"),
  ],
)
def test_sizes_that_make_no_model_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    BiLstm(**fields)


def test_it_has_no_head_for_pretraining():
  with pytest.raises(UserError, match=r"no head 'mlm'.*no pretraining objective"):
    SIZES.init(jax.random.key(0), {"mlm": 0})


@pytest.mark.parametrize("classifier", ["pooler", "bilstm"])
def test_tags_and_answers_see_the_right_side_through_a_bilstm_alone(classifier):
  """BERT's Table 5: it gives a left-to-right encoder what follows, up to the end of the row."""
  sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 30, "positions": 8}
  config = Bert(**sizes, attention="causal", classifier=classifier, initializer_range=0.5)

  @jax.jit
  def scores(batch):
    model = config.init(jax.random.key(0), {"token_classes": 3, "span": 0})
    hidden = model(batch, COMPUTE)
    starts, _ = model.span_logits(hidden, batch)
    return jnp.concatenate([model.token_class_logits(hidden, batch, None), starts[..., None]], -1)

  segments = {"segment_ids": np.zeros((1, 6), np.int32)}
  first, last, padding = (
    np.asarray(scores(rows([[5, 6, 7, 8, *end]], 5) | segments))
    for end in ((9, 0), (10, 0), (9, 3))
  )
  moved = np.abs(last - first)[0, :4].max(axis=1) > 1e-4
  assert moved.tolist() == [classifier == "bilstm"] * 4
  np.testing.assert_allclose(padding[:, :5], first[:, :5], atol=1e-6)
