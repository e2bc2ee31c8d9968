"""The classification loss against a double-precision reference, predictions and scores."""

import dataclasses

import jax
import numpy as np
import pytest

from plm_jax.data.tokenizers import WordPiece
from plm_jax.errors import UserError
from plm_jax.models.bert import Bert
from plm_jax.models.compute import Compute
from plm_jax.models.dropout import Noise
from plm_jax.sharding import MeshShape
from plm_jax.tasks import metrics
from plm_jax.tasks.classification import Classification
from plm_jax.tasks.classify import Classify
from plm_jax.tasks.comparison import Cell, Comparison, table, verdict
from plm_jax.tasks.multi import Multi
from plm_jax.tasks.task import Trained
from plm_jax.train.step import forward
from tests.tasks.conftest import examples_of

COMPUTE = Compute(dtype="float32")
CLASSES, ROWS, LENGTH = 3, 16, 8


@pytest.fixture(scope="module")
def model():
  config = Bert(layers=1, width=16, heads=2, positions=LENGTH, vocab_size=30)
  params = jax.jit(lambda key: config.init(key, {"classes": CLASSES}))(jax.random.key(0))
  return jax.tree.map(lambda x: 20 * x if x.shape == (16, CLASSES) else x, params)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  weight = np.ones(ROWS, np.float32)
  weight[-5:] = 0
  return {
    "input_ids": rng.integers(5, 30, (ROWS, LENGTH)).astype(np.int32),
    "segment_ids": np.zeros((ROWS, LENGTH), np.int32),
    "length": rng.integers(3, LENGTH + 1, ROWS).astype(np.int32),
    "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
    "row_weight": weight,
  }


def reference(model, batch):
  """Loss and accuracy of the rows that count, in numpy float64 from the encoder's states on."""
  hidden = np.asarray(model(batch, COMPUTE, None), np.float64)
  parameters = {
    name: (np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64))
    for name, layer in (("pooler", model.pooler), ("classes", model.classes))
  }
  pooled = np.tanh(hidden[:, 0] @ parameters["pooler"][0] + parameters["pooler"][1])
  logits = pooled @ parameters["classes"][0] + parameters["classes"][1]
  losses = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, batch["label"])]
  counts = batch["row_weight"] > 0
  return np.mean(np.array(losses)[counts]), np.mean((logits.argmax(1) == batch["label"])[counts])


def test_the_loss_is_that_of_a_double_precision_reference(model, batch):
  terms, _ = forward(model, batch, (Classification(labels=CLASSES),), COMPUTE, None)
  loss, accuracy = reference(model, batch)
  assert float(terms["class/loss"][1]) == 11
  np.testing.assert_allclose(terms["class/loss"][0] / terms["class/loss"][1], loss, rtol=1e-6)
  np.testing.assert_allclose(terms["class/accuracy"][0] / 11, accuracy, rtol=1e-6)


def test_the_head_has_dropout_in_training_only(model, batch):
  objectives = (Classification(labels=CLASSES),)
  noise = Noise.create(jax.random.key(1), "hash")
  hidden = model(batch, COMPUTE, None)
  still = objectives[0].loss(model, hidden, batch, None)["loss"][0]
  noisy = objectives[0].loss(model, hidden, batch, noise)["loss"][0]
  assert float(still) != float(noisy)
  assert float(still) == float(forward(model, batch, objectives, COMPUTE, None)[0]["class/loss"][0])


def test_rows_that_fill_up_change_neither_loss_nor_predictions(model, batch):
  changed = {name: x.copy() for name, x in batch.items()}
  changed["input_ids"][-5:] = 7
  changed["label"][-5:] = 0
  one, other = (
    float(forward(model, b, (Classification(labels=CLASSES),), COMPUTE, None)[0]["class/loss"][0])
    for b in (batch, changed)
  )
  assert one == other


TASK = Classify(labels=("a", "b", "c"), length=LENGTH)
TOKENIZER = WordPiece(vocab_size=30).train(iter(["a b c d"] * 9))


@pytest.fixture(scope="module")
def trained():
  config = Bert(layers=1, width=16, heads=2, positions=LENGTH, vocab_size=30, initializer_range=1.0)
  params = jax.jit(lambda key: config.init(key, {"classes": CLASSES}))(jax.random.key(0))
  return Trained(config, params, TOKENIZER, COMPUTE, MeshShape().build(), 8)


def test_predictions_are_those_of_every_row_by_itself_in_order(trained):
  rng = np.random.default_rng(0)
  examples = examples_of([rng.integers(5, 30, size) for size in rng.integers(1, 6, 11)])
  made = TASK.predict(trained, examples)
  alone = [TASK.predict(trained, examples.take([row]))[0] for row in range(11)]
  assert [p["label"] for p in made] == [p["label"] for p in alone]
  assert len({p["label"] for p in made}) > 1
  for prediction, single in zip(made, alone):
    assert prediction["score"] == pytest.approx(single["score"], abs=1e-5)
    assert sum(prediction["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert prediction["scores"][prediction["label"]] == prediction["score"]


def test_a_prediction_below_the_threshold_is_none_of_the_labels(trained):
  examples = examples_of([[5, 6], [7], [9, 20, 21]])
  plain = TASK.predict(trained, examples)
  limit = sorted(p["score"] for p in plain)[1]
  strict = dataclasses.replace(TASK, threshold=limit - 1e-6).predict(trained, examples)
  labels = [p["label"] if p["score"] >= limit - 1e-6 else "(none)" for p in plain]
  assert [p["label"] for p in strict] == labels and labels.count("(none)") == 1


def test_macro_f1_is_the_unweighted_mean_over_all_classes():
  targets, predictions = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
  # Class 0: P 3/4, R 3/4, F1 3/4. Class 1: P 1/2, R 1/2, F1 1/2. Class 2: never there, F1 0.
  found = metrics.classification(targets, predictions, range(3))
  assert found["accuracy"] == pytest.approx(4 / 6)
  assert found["macro_f1"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


def test_one_class_is_no_classification():
  with pytest.raises(UserError, match="at least 2 classes"):
    Classification(labels=1)


def compared(margins):
  cells = []
  for seed, margin in enumerate(margins):
    for arm, value in (("pretrained", 0.5 + margin), ("random", 0.5), ("words", 0.4)):
      cells.append(Cell(arm, "500", seed, {"accuracy": value, "macro_f1": value}))
  return Comparison.of(cells, Classify)


@pytest.mark.parametrize(
  ("margins", "said"),
  [
    ((0.1, 0.2, 0.1), "pretraining wins, and all seeds agree"),
    ((-0.1, -0.2, 0.0), "pretraining does not win, and all seeds agree"),
    ((0.1, -0.01, 0.1), "the seeds do not agree"),
    ((0.1,), "pretraining wins, on one seed"),
    ((0.0, 0.0), "no difference at all"),
  ],
)
def test_the_verdict_is_that_of_the_seeds(margins, said):
  assert said in verdict(compared(margins), "500")


def test_the_table_has_means_and_sample_deviations():
  text = table(compared((0.1, 0.2, 0.3)), {"accuracy": 0.25, "macro_f1": 0.125})
  assert "0.700 ± 0.100" in text
  assert "+0.100 +0.200 +0.300" in text
  assert text.index("0.250") < text.index("0.125")  # the most frequent class


def test_the_heads_of_a_table_have_spaces_between_them():
  scores = {"micro_f1": 0.5, "macro_f1": 0.5, "subset_accuracy": 0.5}
  cells = [Cell("pretrained", "all", 0, scores)]
  lines = table(Comparison.of(cells, Multi), scores).splitlines()
  assert "macro-F1, all  subset accuracy, all" in lines[2]
  assert len(lines[2]) == len(lines[3])


def test_a_model_below_a_baseline_is_told_what_to_try():
  cells = [Cell("pretrained", "all", 0, {"accuracy": 0.5, "macro_f1": 0.5})]
  cells += [Cell("words", "all", 0, {"accuracy": 0.6, "macro_f1": 0.6})]
  said = verdict(Comparison.of(cells, Classify), "all")
  assert "below the baseline (bag of words, linear)" in said and "optim.peak" in said
  cells.append(Cell("random", "all", 0, {"accuracy": 0.4, "macro_f1": 0.4}))
  said = verdict(Comparison.of(cells, Classify), "all")
  assert "pretraining wins" in said and "below the baseline" in said


# --- options of the loss --------------------------------------------------------------------------


def loss_of(model, batch, **options):
  """Loss by the objective, and in float64 log p [N, C], labels and weights of the rows."""
  objective = Classification(labels=CLASSES, **options)
  terms, _ = forward(model, batch, (objective,), COMPUTE, None)
  logits = np.asarray(model.class_logits(model(batch, COMPUTE, None), batch, None), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  total, count = terms["class/loss"]
  assert count == pytest.approx(float(objective.count(batch)))
  return float(total / count), log_p, terms


def test_label_smoothing_takes_a_share_from_the_label(model, batch):
  loss, log_p, _ = loss_of(model, batch, label_smoothing=0.2)
  share = np.full((ROWS, CLASSES), 0.2 / CLASSES)
  share[np.arange(ROWS), batch["label"]] += 0.8
  losses = -(share * log_p).sum(axis=1)
  assert loss == pytest.approx(np.average(losses, weights=batch["row_weight"]), rel=1e-5)


def test_class_weights_weigh_rows_and_not_the_accuracy(model, batch):
  weights = (1.0, 0.0, 3.0)
  loss, log_p, terms = loss_of(model, batch, class_weights=weights)
  losses = -log_p[np.arange(ROWS), batch["label"]]
  by_row = batch["row_weight"] * np.array(weights)[batch["label"]]
  assert loss == pytest.approx(np.average(losses, weights=by_row), rel=1e-5)
  plain = loss_of(model, batch)[2]
  assert terms["class/accuracy"] == plain["class/accuracy"]


def test_balanced_classes_weigh_alike():
  labels = np.array([0] * 8 + [1] * 2)
  made = Classification(labels=3, balanced=True).balancing(labels)
  weights = np.array(made.class_weights)[labels]
  assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
  assert weights.sum() == pytest.approx(10)
  assert Classification(labels=3).balancing(labels).class_weights == ()


def test_a_teacher_s_loss_is_the_divergence_of_both_at_the_temperature(model, batch):
  teacher = np.random.default_rng(1).normal(size=(ROWS, CLASSES)).astype(np.float32)
  taught = batch | {"teacher": teacher}
  loss, log_p, _ = loss_of(model, taught, soft=0.3, temperature=4.0)

  def at_temperature(x):
    x = x / 4 - np.log(np.exp(x / 4).sum(axis=1, keepdims=True))
    return x

  theirs, ours = at_temperature(teacher.astype(np.float64)), at_temperature(log_p)
  soft = 16 * (np.exp(theirs) * (theirs - ours)).sum(axis=1)
  losses = 0.7 * -log_p[np.arange(ROWS), batch["label"]] + 0.3 * soft
  assert loss == pytest.approx(np.average(losses, weights=batch["row_weight"]), rel=1e-5)
  assert loss_of(model, taught, soft=0.0)[0] == pytest.approx(loss_of(model, batch)[0])


@pytest.mark.parametrize(
  "options",
  [{"label_smoothing": 1.0}, {"soft": 1.5}, {"temperature": 0.0}, {"class_weights": (1.0, 2.0)}],
)
def test_options_of_the_loss_outside_their_range_are_refused(options):
  with pytest.raises(UserError, match=next(iter(options))):
    Classification(labels=CLASSES, **options)
